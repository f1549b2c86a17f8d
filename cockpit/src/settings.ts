// What a person set for this browser: language, theme, voice. Kept in the browser; none of it is secret.
import { LANGUAGES, type Language } from "./words";

export type Settings = { language: Language; theme: "auto" | "light" | "dark"; voice: boolean; reader: boolean; notify: boolean; listen: boolean };

const KEY = "scaler-wizard";

export function firstLanguage(wanted: readonly string[]): Language {
  const known = wanted.map((tag) => tag.slice(0, 2)).find((tag) => tag in LANGUAGES);
  return (known as Language | undefined) ?? "en";
}

export function loadSettings(): Settings {
  const usual: Settings = { language: firstLanguage(navigator.languages), theme: "auto", voice: false, reader: false, notify: false, listen: false };
  try {
    return { ...usual, ...(JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Settings>) };
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof DOMException) return usual;
    throw error;
  }
}

export function saveSettings(settings: Settings): void {
  localStorage.setItem(KEY, JSON.stringify(settings));
}
