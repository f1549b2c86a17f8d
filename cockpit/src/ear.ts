// The browser's own speech recognition, where it has one: every whole utterance, until it is stopped.
import type { Language } from "./words";

export type Deafness = "refused" | "silent";
type Result = { isFinal: boolean; 0: { transcript: string; confidence: number } };
type Recognition = EventTarget & {
  lang: string;
  continuous: boolean;
  interimResults: boolean;
  start: () => void;
  abort: () => void;
  onresult: ((event: { resultIndex: number; results: ArrayLike<Result> }) => void) | null;
  onerror: ((event: { error: string }) => void) | null;
  onend: (() => void) | null;
};
type Maker = new () => Recognition;

const TAGS: Record<Language, string> = { en: "en-US", pt: "pt-BR", es: "es-ES", fr: "fr-FR", de: "de-DE", zh: "zh-CN" };
const SURE = 0.5;
const AGAIN_MS = 500;
const FINAL = new Set(["not-allowed", "service-not-allowed", "audio-capture", "language-not-supported", "network"]);

function maker(): Maker | undefined {
  const found = window as { SpeechRecognition?: Maker; webkitSpeechRecognition?: Maker };
  return found.SpeechRecognition ?? found.webkitSpeechRecognition;
}

export const canListen = (): boolean => maker() !== undefined;

/** Listen until the returned function is called; `end` is called once where the browser cannot go on. */
export function listen(language: Language, heard: (text: string) => void, end: (why: Deafness) => void): () => void {
  const Made = maker();
  if (!Made) {
    end("silent");
    return () => undefined;
  }
  const recognition = new Made();
  let over = false;
  let again: ReturnType<typeof setTimeout> | undefined;
  Object.assign(recognition, { lang: TAGS[language], continuous: true, interimResults: false });
  recognition.onresult = ({ resultIndex, results }) => {
    for (let at = resultIndex; at < results.length; at++) {
      const result = results[at];
      // Some browsers give a confidence of 0 for "unknown".
      if (result?.isFinal && (result[0].confidence === 0 || result[0].confidence >= SURE)) heard(result[0].transcript);
    }
  };
  recognition.onerror = ({ error }) => {
    if (over || !FINAL.has(error)) return;
    over = true;
    end(error === "not-allowed" || error === "service-not-allowed" ? "refused" : "silent");
  };
  recognition.onend = () => {
    if (!over) again = setTimeout(() => recognition.start(), AGAIN_MS);
  };
  recognition.start();
  return () => {
    over = true;
    clearTimeout(again);
    recognition.abort();
  };
}
