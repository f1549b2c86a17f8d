// The rules of the alerts, on ten thousand made-up histories.
import fc from "fast-check";
import { expect, test } from "vitest";
import { type Alert, type Alerts, type Happening, type Mode, SHOWN_MS, WAITING, modality, next, quiet } from "./alerts";

const mode: fc.Arbitrary<Mode> = fc.record({ muted: fc.boolean(), reader: fc.boolean(), canSpeak: fc.boolean() });
const alert: fc.Arbitrary<Alert> = fc.record({
  id: fc.nat(50),
  level: fc.constantFrom("critical", "warn", "info"),
  sentence: fc.constantFrom("a", "b", "c", "d", "e", "f"),
  aloud: fc.boolean(),
});
const happening: fc.Arbitrary<Happening> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("arrive" as const), alert, now: fc.nat(1e5) }) },
  fc.record({ kind: fc.constant("spoken" as const), id: fc.nat(50), now: fc.nat(1e5) }),
  fc.record({ kind: fc.constant("dismiss" as const), now: fc.nat(1e5) }),
  fc.record({ kind: fc.constant("tick" as const), now: fc.nat(1e5) }),
  fc.record({ kind: fc.constant("mode" as const), mode, now: fc.nat(1e5) }),
);
const history = fc.array(happening, { maxLength: 40 });
const WEIGHT = { critical: 2, warn: 1, info: 0 };

function always(rule: (after: Alerts, before: Alerts, by: Happening) => void): void {
  fc.assert(
    fc.property(mode, history, (first, happenings) => {
      let alerts = quiet(first);
      for (const by of happenings.sort((a, b) => a.now - b.now)) {
        const before = alerts;
        alerts = next(before, by);
        rule(alerts, before, by);
      }
    }),
    { numRuns: 10_000 },
  );
}

test("never more than three wait, heaviest first", () => {
  always(({ queue }) => {
    expect(queue.length).toBeLessThanOrEqual(WAITING);
    for (let at = 1; at < queue.length; at++) {
      expect(WEIGHT[queue[at - 1]!.level]).toBeGreaterThanOrEqual(WEIGHT[queue[at]!.level]);
    }
  });
});

test("nothing waits while nothing is told, and what is told is told in the one way that its level and the mode allow", () => {
  always(({ current, queue, mode }) => {
    if (current === null) expect(queue).toEqual([]);
    else expect(current.modality).toBe(modality(current.alert, mode));
  });
});

test("nobody who uses a screen reader, has muted the voice or has none is spoken to", () => {
  always(({ current, mode }) => {
    if (mode.reader || mode.muted || !mode.canSpeak) expect(current?.modality).not.toBe("voice");
  });
});

test("a critical alert is told at once, or waits behind another critical one", () => {
  always((after, _, by) => {
    if (by.kind === "arrive" && by.alert.level === "critical") expect(after.current?.alert.level).toBe("critical");
  });
});

test("the same words never wait twice", () => {
  always(({ current, queue }) => {
    const told = [current?.alert, ...queue].map((one) => one && `${one.level} ${one.sentence}`);
    expect(new Set(told).size).toBe(told.length);
  });
});

test("a critical alert is never dropped for a lighter one", () => {
  always((after, before, by) => {
    const critical = (alerts: Alerts) => [alerts.current?.alert, ...alerts.queue].filter((one) => one?.level === "critical").length;
    if (by.kind === "arrive" && by.alert.level !== "critical") expect(critical(after)).toBe(critical(before));
  });
});

test("every alert ends by itself", () => {
  const one: Alert = { id: 1, level: "critical", sentence: "a" };
  for (const canSpeak of [true, false]) {
    const told = next(quiet({ muted: false, reader: false, canSpeak }), { kind: "arrive", alert: one, now: 0 });
    expect(told.current).not.toBeNull();
    expect(next(told, { kind: "tick", now: SHOWN_MS.voice }).current).toBeNull();
  }
});
