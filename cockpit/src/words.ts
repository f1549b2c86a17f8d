// Words in six languages, from the package's one catalogue: the page, the voice and the sentences of the gates.
import { createContext, useContext } from "react";
import type { Phrases } from "./listening";
import english from "../../src/scaler_wizard/words/en.json";

export type Language = "en" | "pt" | "es" | "fr" | "de" | "zh";
export type Key = keyof (typeof english)["page"];
type Catalogue = { page: Record<string, string>; say: Record<string, string> };
export type Values = Record<string, string | number>;

export const LANGUAGES: Record<Language, string> = {
  en: "English",
  pt: "Português",
  es: "Español",
  fr: "Français",
  de: "Deutsch",
  zh: "中文",
};

const LOADERS: Record<Language, () => Promise<{ default: Catalogue }>> = {
  en: () => Promise.resolve({ default: english }),
  pt: () => import("../../src/scaler_wizard/words/pt.json"),
  es: () => import("../../src/scaler_wizard/words/es.json"),
  fr: () => import("../../src/scaler_wizard/words/fr.json"),
  de: () => import("../../src/scaler_wizard/words/de.json"),
  zh: () => import("../../src/scaler_wizard/words/zh.json"),
};

export type Told = { text: string; language: Language };

export class Words {
  constructor(
    readonly language: Language,
    private readonly catalogue: Catalogue,
  ) {}

  /** A word of the page. */
  t = (key: Key, values: Values = {}): string => fill(this.catalogue.page[key] ?? english.page[key], values);

  /** A sentence of the run, in this language where the catalogue has its form; otherwise as it was written. */
  say = (sentence: string): Told => {
    return this.told(sentence, (say) => whole(sentence, say) ?? clauses(sentence, say) ?? changes(sentence, say));
  };

  /** The title of a phase, likewise. */
  title = (title: string): Told => {
    return this.told(title, (say) => match(title, TITLES, say, asIs));
  };

  /** The name of a figure of the evidence, likewise. */
  label = (label: string): Told => {
    return this.told(label, (say) => match(label, LABELS, say, asIs));
  };

  private told(sentence: string, translate: (say: Record<string, string>) => string | null): Told {
    const text = this.language === "en" || sentence === "" ? null : translate(this.catalogue.say);
    return { text: (text ?? sentence).replaceAll("->", "→"), language: text === null ? "en" : this.language };
  }

  /** The same sentence for the ear. */
  aloud = (told: Told): string => told.text.replaceAll("→", (told.language === "en" ? english : this.catalogue).say["arrow" as never]);

  number = (value: number, digits = 2, least = 0): string =>
    new Intl.NumberFormat(this.language, { maximumFractionDigits: digits, minimumFractionDigits: least }).format(value);

  percent = (value: number, digits = 0, least = 0): string =>
    new Intl.NumberFormat(this.language, { style: "percent", maximumFractionDigits: digits, minimumFractionDigits: least }).format(value);

  compact = (value: number): string =>
    new Intl.NumberFormat(this.language, { notation: "compact", maximumSignificantDigits: 3 }).format(value);

  bytes = (value: number | null | undefined): string => {
    if (value == null) return this.t("unknown");
    const gib = value / 2 ** 30;
    return gib >= 0.95 ? `${this.number(gib, 1)} GiB` : `${this.number(value / 2 ** 20, 0)} MiB`;
  };

  seconds = (value: number | null | undefined): string => {
    if (value == null) return this.t("unknown");
    if (value < 90) return `${this.number(value, 0)} s`;
    return value < 5400 ? `${this.number(value / 60, 0)} min` : `${this.number(value / 3600, 1)} h`;
  };

  tokens = (value: number): string => (value >= 1024 && value % 1024 === 0 ? `${value / 1024}K` : String(value));

  clock = (seconds: number): string =>
    new Intl.DateTimeFormat(this.language, { timeStyle: "medium", hourCycle: "h23" }).format(seconds * 1000);

  date = (text: string): string =>
    new Intl.DateTimeFormat(this.language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(text));
}

export function fill(template: string, values: Values): string {
  return template.replace(/\{(\w+)\}/g, (hole, name: string) => (name in values ? String(values[name]) : hole));
}

export async function loadWords(language: Language): Promise<Words> {
  return new Words(language, (await LOADERS[language]()).default);
}

/** What may be said aloud in this language; forms of one command are divided by a bar. */
export function phrasesOf({ t }: Words): Phrases {
  const forms = (key: Key) => t(key).split("|");
  return {
    pause: forms("hear_pause"),
    repeat: forms("hear_repeat"),
    rollback: forms("hear_rollback"),
    confirm: forms("hear_confirm"),
    cancel: forms("hear_cancel"),
  };
}

// -- sentences: the English templates of the catalogue are the grammar, the other languages' are the translation ------

const say = english.say as Record<string, string>;
const names = (prefix: string) => Object.keys(say).filter((key) => key.startsWith(prefix));
const WHOLE = names("whole.");
const CLAUSES = names("clause.");
const TITLES = names("title.");
const FIGURES = names("figure.");
const LABELS = names("label.");
const CHANGES = names("change.");

function pattern(template: string): RegExp {
  const escaped = template.replace(/[.*+?^$()|[\]\\]/g, "\\$&");
  return new RegExp(`^${escaped.replace(/\{(\w+)\}/g, "(?<$1>.+?)")}$`);
}

const PATTERNS = new Map(Object.entries(say).map(([key, template]) => [key, pattern(template)]));

/** The first form that fits, said in the other catalogue; holes are translated by `inner` where it knows their name. */
function match(text: string, keys: string[], other: Record<string, string>, inner: (hole: string, value: string) => string | null): string | null {
  for (const key of keys) {
    const groups = PATTERNS.get(key)?.exec(text);
    if (!groups) continue;
    const values: Values = {};
    for (const [hole, value] of Object.entries(groups.groups ?? {})) {
      const told = inner(hole, value);
      if (told === null) return null;
      values[hole] = told;
    }
    return fill(other[key] ?? "", values);
  }
  return null;
}

const asIs = (_: string, value: string) => value;

function whole(sentence: string, other: Record<string, string>): string | null {
  return match(sentence, WHOLE, other, (hole, value) => (hole === "sentence" ? (whole(value, other) ?? clauses(value, other)) : value));
}

function clauses(sentence: string, other: Record<string, string>): string | null {
  const told: string[] = [];
  const ending = /[?.…]$/.exec(sentence)?.[0] ?? "";
  for (const clause of sentence.slice(0, sentence.length - ending.length).split("; ")) {
    const text = match(clause, CLAUSES, other, (hole, value) => {
      if (hole === "title") return match(value, TITLES, other, asIs);
      if (hole === "why") return whole(value, other);
      return hole === "figures" ? listed(value, FIGURES, other) : value;
    });
    if (text === null) return null;
    told.push(text);
  }
  return told.join(other.joint ?? "; ") + (other[`end.${ending}`] ?? ending);
}

function changes(sentence: string, other: Record<string, string>): string | null {
  const told = listed(sentence.charAt(0).toLowerCase() + sentence.slice(1), CHANGES, other);
  return told && told.charAt(0).toUpperCase() + told.slice(1);
}

function listed(list: string, keys: string[], other: Record<string, string>): string | null {
  const told = list.split(", ").map((one) => match(one, keys, other, asIs));
  return told.includes(null) ? null : told.join(other.comma ?? ", ");
}

export const WordsContext = createContext<Words>(new Words("en", english));
export const useWords = (): Words => useContext(WordsContext);
