// The rules of the voice commands, on made-up conversations in every language.
import fc from "fast-check";
import { expect, test } from "vitest";
import { CONFIRM_MS, type Listening, type Order, type Phrases, type Sound, attentive, hear, plain } from "./listening";
import { LANGUAGES, type Language, type Words, loadWords, phrasesOf } from "./words";

const SPOKEN = Object.keys(LANGUAGES) as Language[];
const words = new Map<Language, Words>();
for (const language of SPOKEN) words.set(language, await loadWords(language));
const phrases = (language: Language): Phrases => phrasesOf(words.get(language)!);

function talk(language: Language, ...sounds: (Sound | string)[]): (Order | null)[] {
  let state: Listening = attentive;
  let now = 0;
  return sounds.map((sound) => {
    const done = hear(state, typeof sound === "string" ? { kind: "heard", text: sound, now: (now += 1000) } : sound, phrases(language));
    state = done.state;
    return done.order;
  });
}

test.each(SPOKEN)("in %s every phrase does one thing, however it is written", (language) => {
  const known = phrases(language);
  const all = Object.values(known).flat().map(plain);
  expect(new Set(all).size).toBe(all.length);
  expect(all).not.toContain("");
  for (const form of known.pause) expect(talk(language, `${form.toUpperCase()}!`)).toEqual(["pause"]);
  for (const form of known.repeat) expect(talk(language, `${form}?`)).toEqual(["repeat"]);
  for (const form of known.rollback) for (const second of known.confirm) expect(talk(language, form, second)).toEqual(["ask", "rollback"]);
  for (const form of known.rollback) for (const second of known.cancel) expect(talk(language, form, second)).toEqual(["ask", "cancel"]);
});

test.each(SPOKEN)("in %s one phrase alone never goes back, nor the same one twice", (language) => {
  const { rollback, confirm } = phrases(language);
  for (const form of rollback) expect(talk(language, form, form, form)).toEqual(["ask", null, null]);
  for (const form of confirm) expect(talk(language, form, form)).toEqual([null, null]);
});

test("a word inside a sentence orders nothing", () => {
  expect(talk("en", "do not pause", "should we roll back", "roll back", "I do not confirm rollback")).toEqual([null, null, "ask", null]);
});

test("while the page speaks it hears nothing", () => {
  expect(talk("en", { kind: "speaking", on: true }, "pause", "roll back", { kind: "speaking", on: false }, "confirm rollback", "pause")).toEqual([null, null, null, null, null, "pause"]);
});

const sound: fc.Arbitrary<Sound> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ kind: fc.constant("heard" as const), text: fc.constantFrom(...Object.values(phrases("en")).flat(), "hello", ""), now: fc.nat(60_000) }) },
  fc.record({ kind: fc.constant("speaking" as const), on: fc.boolean() }),
  fc.record({ kind: fc.constant("tick" as const), now: fc.nat(60_000) }),
);

test("going back always has its question before it, at most ten seconds old, with nothing else understood between", () => {
  fc.assert(
    fc.property(fc.array(sound, { maxLength: 40 }), (sounds) => {
      let state = attentive;
      let asked: number | null = null;
      let now = 0;
      for (const one of sounds) {
        if (one.kind !== "speaking") one.now = now = Math.max(now, one.now % 70_000);
        const { state: after, order } = hear(state, one, phrases("en"));
        if (order === "rollback") {
          expect(asked).not.toBeNull();
          expect(now - (asked ?? 0)).toBeLessThanOrEqual(CONFIRM_MS);
          expect(state.deaf).toBe(false);
        }
        if (order === "ask") asked = now;
        else if (order !== null) asked = null;
        state = after;
      }
    }),
    { numRuns: 10_000 },
  );
});
