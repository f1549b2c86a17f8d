// The Calm Architect: says one sentence through the browser's own speech, where it has one for the language.
import type { Level } from "./alerts";
import type { Language } from "./words";

const TONE: Record<Level, { rate: number; pitch: number }> = {
  info: { rate: 1, pitch: 1 },
  warn: { rate: 0.96, pitch: 0.97 },
  critical: { rate: 0.9, pitch: 0.92 },
};
const STUCK_MS = 15_000;
/** eSpeak calls Mandarin by its own code. */
const CODES: Record<Language, readonly string[]> = { en: ["en"], pt: ["pt"], es: ["es"], fr: ["fr"], de: ["de"], zh: ["zh", "cmn"] };

/** Browsers load their voices late; false after a while means that there is none for this language. */
export async function canSpeak(language: Language, wait = 1500): Promise<boolean> {
  const speech = window.speechSynthesis as SpeechSynthesis | undefined;
  if (!speech) return false;
  if (voiceFor(speech, language)) return true;
  await new Promise((resolve) => {
    speech.addEventListener("voiceschanged", resolve, { once: true });
    setTimeout(resolve, wait);
  });
  return voiceFor(speech, language) !== undefined;
}

function voiceFor(speech: SpeechSynthesis, language: Language): SpeechSynthesisVoice | undefined {
  const fitting = speech.getVoices().filter((voice) => CODES[language].includes(voice.lang.toLowerCase().split(/[-_]/)[0] ?? ""));
  return fitting.find((voice) => voice.localService) ?? fitting[0];
}

/** Three dots: eSpeak gives them sound that is silence. At a full stop it gives none, and stays asleep. */
const SILENCE = "…";

/** Say silence once: a synthesiser takes a second to open its sound, and the first alert shall not wait for that. */
export function wake(language: Language): void {
  const speech = window.speechSynthesis;
  const said = new SpeechSynthesisUtterance(SILENCE);
  Object.assign(said, { volume: 0, lang: language, voice: voiceFor(speech, language) ?? null });
  said.onerror = ({ error }) => {
    if (error === "not-allowed") whenTouched(() => wake(language)); // some browsers let no page speak before
  };
  speech.speak(said);
}

/** Once, at the first click or key. */
function whenTouched(then: () => void): void {
  const waiting = new AbortController();
  const touched = () => {
    waiting.abort();
    then();
  };
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, touched, { signal: waiting.signal });
}

/** Speak, then call `end` once; the returned function stops at once. */
export function speak(sentence: string, language: Language, level: Level, end: () => void): () => void {
  const speech = window.speechSynthesis;
  const said = new SpeechSynthesisUtterance(sentence);
  Object.assign(said, TONE[level], { lang: language, voice: voiceFor(speech, language) ?? null });
  let over = false;
  const finish = () => {
    if (over) return;
    over = true;
    clearTimeout(stuck);
    end();
  };
  const stuck = setTimeout(finish, STUCK_MS);
  said.onend = finish;
  said.onerror = finish;
  if (speech.speaking) speech.cancel(); // the silence that wakes is not waited for
  speech.speak(said);
  return () => {
    over = true;
    clearTimeout(stuck);
    speech.cancel();
  };
}
