// One voice at a time: which alert is shown or spoken now, which wait, which are dropped. Pure, so that it can be proved.
export type Level = "critical" | "warn" | "info";
export type Modality = "voice" | "visual" | "banner";
export type Alert = { id: number; level: Level; sentence: string; /** Asked for by the ear: spoken whatever its level. */ aloud?: boolean };
export type Mode = { muted: boolean; reader: boolean; canSpeak: boolean };
export type Shown = { alert: Alert; modality: Modality; since: number };
export type Alerts = { current: Shown | null; queue: Alert[]; dropped: number; mode: Mode };
export type Happening =
  | { kind: "arrive"; alert: Alert; now: number }
  | { kind: "spoken"; id: number; now: number }
  | { kind: "dismiss"; now: number }
  | { kind: "tick"; now: number }
  | { kind: "mode"; mode: Mode; now: number };

export const WAITING = 3;
export const SHOWN_MS: Record<Modality, number> = { voice: 20_000, visual: 8_000, banner: 5_000 };
const WEIGHT: Record<Level, number> = { critical: 2, warn: 1, info: 0 };

export function quiet(mode: Mode): Alerts {
  return { current: null, queue: [], dropped: 0, mode };
}

/** Voice is for what is critical, and only where it can and may be used; otherwise the eye gets it. */
export function modality({ level, aloud }: Alert, mode: Mode): Modality {
  if ((level === "critical" || aloud) && mode.canSpeak && !mode.muted && !mode.reader) return "voice";
  return level === "info" ? "banner" : "visual";
}

export function next(alerts: Alerts, happening: Happening): Alerts {
  switch (happening.kind) {
    case "arrive":
      return arrive(alerts, happening.alert, happening.now);
    case "spoken":
      return alerts.current?.alert.id === happening.id && alerts.current.modality === "voice" ? advance(alerts, happening.now) : alerts;
    case "dismiss":
      return advance(alerts, happening.now);
    case "tick": {
      const { current } = alerts;
      return current && happening.now - current.since >= SHOWN_MS[current.modality] ? advance(alerts, happening.now) : alerts;
    }
    case "mode":
      return remode({ ...alerts, mode: happening.mode }, happening.now);
  }
}

function arrive(alerts: Alerts, alert: Alert, now: number): Alerts {
  const { current } = alerts;
  const known = [current?.alert, ...alerts.queue].some((one) => one?.sentence === alert.sentence && one.level === alert.level);
  if (known) return alerts;
  if (current === null) return show(alerts, alert, now);
  if (WEIGHT[alert.level] <= WEIGHT[current.alert.level]) return wait(alerts, alert);
  // What is heavier interrupts; what was interrupted waits, unless it only informed.
  const interrupted = show(alerts, alert, now);
  return current.alert.level === "info" ? { ...interrupted, dropped: alerts.dropped + 1 } : wait(interrupted, current.alert);
}

/** Heaviest first, oldest first among equals; beyond the queue's length the lightest and newest is dropped. */
function wait(alerts: Alerts, alert: Alert): Alerts {
  const sorted = [...alerts.queue, alert].sort((a, b) => WEIGHT[b.level] - WEIGHT[a.level] || a.id - b.id);
  const over = Math.max(0, sorted.length - WAITING);
  return { ...alerts, queue: sorted.slice(0, WAITING), dropped: alerts.dropped + over };
}

function show(alerts: Alerts, alert: Alert, now: number): Alerts {
  return { ...alerts, current: { alert, modality: modality(alert, alerts.mode), since: now } };
}

function advance(alerts: Alerts, now: number): Alerts {
  const [first, ...rest] = alerts.queue;
  return first ? show({ ...alerts, queue: rest }, first, now) : { ...alerts, current: null };
}

/** A changed mode changes how the current alert is told, not which one it is. */
function remode(alerts: Alerts, now: number): Alerts {
  const { current } = alerts;
  if (current === null) return alerts;
  const told = modality(current.alert, alerts.mode);
  return told === current.modality ? alerts : { ...alerts, current: { ...current, modality: told, since: now } };
}
