// What a spoken word may do: pause and repeat at once; going back only where another word confirms it in time. Pure.
export type Order = "pause" | "repeat" | "ask" | "rollback" | "cancel";
export type Phrases = Record<"pause" | "repeat" | "rollback" | "confirm" | "cancel", readonly string[]>;
export type Listening = {
  /** When going back was asked for; null while nothing waits for a second word. */
  asked: number | null;
  /** True while the page itself speaks: it would hear its own words. */
  deaf: boolean;
};
export type Sound = { kind: "heard"; text: string; now: number } | { kind: "speaking"; on: boolean } | { kind: "tick"; now: number };
export type Understood = { state: Listening; order: Order | null };

export const CONFIRM_MS = 10_000;
export const attentive: Listening = { asked: null, deaf: false };

export function hear(state: Listening, sound: Sound, phrases: Phrases): Understood {
  switch (sound.kind) {
    case "speaking":
      return { state: { ...state, deaf: sound.on }, order: null };
    case "tick":
      return state.asked !== null && sound.now - state.asked > CONFIRM_MS ? { state: { ...state, asked: null }, order: "cancel" } : { state, order: null };
    case "heard":
      return state.deaf ? { state, order: null } : obey(state, meaning(sound.text, phrases), sound.now);
  }
}

function obey(state: Listening, meant: keyof Phrases | null, now: number): Understood {
  const waiting = state.asked !== null && now - state.asked <= CONFIRM_MS;
  const settled = { ...state, asked: null };
  if (meant === "confirm") return { state: settled, order: waiting ? "rollback" : null };
  if (meant === "rollback") return waiting ? { state, order: null } : { state: { ...state, asked: now }, order: "ask" };
  if (meant === "cancel") return { state: settled, order: waiting ? "cancel" : null };
  return meant === null ? { state, order: null } : { state: settled, order: meant };
}

/** The whole of what was said has to be a known phrase: a word inside a sentence, "do not pause", orders nothing. */
function meaning(text: string, phrases: Phrases): keyof Phrases | null {
  const said = plain(text);
  const known = Object.entries(phrases) as [keyof Phrases, readonly string[]][];
  return known.find(([, forms]) => forms.some((form) => plain(form) === said))?.[0] ?? null;
}

export function plain(text: string): string {
  const bare = text.normalize("NFKD").replace(/[\p{M}\p{P}\p{S}]/gu, " ").toLowerCase();
  const spaced = bare.replace(/\s+/g, " ").trim();
  return /\p{Script=Han}/u.test(spaced) ? spaced.replaceAll(" ", "") : spaced;
}
