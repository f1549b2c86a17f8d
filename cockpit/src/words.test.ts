// Six languages: every sentence that a run can say has its translation.
import { expect, test } from "vitest";
import SENTENCES from "../../tests/sentences.json";
import { LANGUAGES, type Language, loadWords } from "./words";

const OTHERS = (Object.keys(LANGUAGES) as Language[]).filter((language) => language !== "en");

test.each(OTHERS)("every sentence of the run is said in %s, with the same figures", async (language) => {
  const words = await loadWords(language);
  for (const sentence of SENTENCES) {
    const told = words.say(sentence);
    expect(told.language, sentence).toBe(language);
    const figures = (text: string) => (text.match(/\d+(\.\d+)?/g) ?? []).sort();
    expect(figures(told.text), sentence).toEqual(figures(sentence));
    expect(told.text).not.toMatch(/[{}]/);
  }
});

test("a sentence of an unknown form is left as it is, and says that it is English", async () => {
  const words = await loadWords("de");
  expect(words.say("Quite another thing.")).toEqual({ text: "Quite another thing.", language: "en" });
});
