// The fold over the journal.
import { expect, test } from "vitest";
import { KEPT, grounded, sayable, take } from "./flight";
import type { Frame } from "./generated/wire";

const frame = (seq: number, kind: string, data: Record<string, unknown> = {}): Frame => ({ seq, time: seq, phase: null, kind, data });

test("an event that was seen is not counted again", () => {
  const flight = grounded();
  for (const seq of [1, 2, 2, 1, 3]) take(flight, frame(seq, "step", { step: seq, loss: 1, arm: "grown" }));
  expect(flight.curves.grown.loss.map((point) => point.x)).toEqual([1, 2, 3]);
});

test("a loss that is not finite is a hole in the curve, not a zero", () => {
  const flight = grounded();
  take(flight, frame(1, "step", { step: 1, loss: { value: null, nonfinite: "nan" }, arm: "grown" }));
  expect(flight.curves.grown.loss).toEqual([{ x: 1, y: null }]);
});

test("the log keeps what a person wants to read, and not for ever", () => {
  const flight = grounded();
  take(flight, frame(1, "usage", {}));
  for (let seq = 2; seq < KEPT + 100; seq++) take(flight, frame(seq, "note", { text: "x" }));
  expect(flight.log.length).toBe(KEPT);
  expect(flight.log[0]?.kind).toBe("note");
});

test("a gate outside its limits is critical, one inside them is not", () => {
  const gate = (action: string) => frame(1, "gate", { sentence: "s", verdict: { action } });
  expect([sayable(gate("ask"))?.level, sayable(gate("pass"))?.level]).toEqual(["critical", "warn"]);
  expect(sayable(gate("pass"))?.aloud).toBe(true); // a person is asked there as well
});
