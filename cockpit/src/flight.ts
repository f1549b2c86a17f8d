// What the event stream adds up to: one fold over the journal, the same for a live run and for a finished one.
import type { Frame } from "./generated/wire";

export type Point = { x: number; y: number | null };
export type Curves = Record<"grown" | "control", { loss: Point[]; evaluated: Point[] }>;
export type Usage = { ram_bytes: number; cpu_percent: number | null; share: number | null; doing: string; seconds_left: number | null };
export type Said = { sentence: string; time: number; level: "critical" | "warn" | "info"; seq: number; kind: string; /** Spoken whatever its level. */ aloud?: boolean };

export type Flight = {
  seq: number;
  status: string;
  why: string;
  phase: string | null;
  curves: Curves;
  usage: Usage | null;
  slope: number[];
  said: Said | null;
  log: Frame[];
  turns: number;
};

export const KEPT = 400;
const TURNS = new Set(["gate", "decision", "committed", "moved", "status", "phase_started", "extended", "resumed", "feedback"]);
const QUIET = new Set(["step", "usage", "evaluated", "command", "commanded", "committing"]);

export function grounded(): Flight {
  const curve = () => ({ loss: [], evaluated: [] });
  const curves = { grown: curve(), control: curve() };
  return { seq: 0, status: "initializing", why: "", phase: null, curves, usage: null, slope: [], said: null, log: [], turns: 0 };
}

/** A number of the journal; null where it was not finite, since that cannot be drawn. */
export function finite(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** Add one event. The flight is changed in place: thousands of events arrive at once when a run is opened. */
export function take(flight: Flight, frame: Frame): void {
  if (frame.seq <= flight.seq) return;
  flight.seq = frame.seq;
  if (TURNS.has(frame.kind)) flight.turns += 1;
  if (!QUIET.has(frame.kind)) flight.log = [...flight.log, frame].slice(-KEPT);
  const said = sayable(frame);
  if (said) flight.said = said;
  FOLD[frame.kind]?.(flight, frame.data as never, frame);
}

const FOLD: Record<string, (flight: Flight, data: never, frame: Frame) => void> = {
  status: (flight, data: { status: string; why: string }) => {
    flight.status = data.status;
    flight.why = data.why;
    if (data.status !== "running") flight.usage = null;
  },
  phase_started: (flight, data: { slug: string }) => {
    flight.phase = data.slug;
    if (data.slug.includes("heal")) flight.curves = grounded().curves;
  },
  usage: (flight, data: Usage) => {
    flight.usage = data;
  },
  step: (flight, data: { step: number; loss: unknown; arm: "grown" | "control" }) => {
    flight.curves[data.arm].loss.push({ x: data.step, y: finite(data.loss) });
  },
  evaluated: (flight, data: { step: number; nll: unknown; arm: "grown" | "control" }) => {
    flight.curves[data.arm].evaluated.push({ x: data.step, y: finite(data.nll) });
  },
};

/** The sentence of an event that a person should hear, with how much it matters. */
export function sayable(frame: Frame): Said | null {
  const data = frame.data as { hard?: boolean; sentence?: string; text?: string; why?: string; status?: string; verdict?: { action: string } };
  const said = (level: Said["level"], sentence: string): Said => ({ sentence, level, time: frame.time, seq: frame.seq, kind: frame.kind });
  switch (frame.kind) {
    case "telegram":
      return said(data.hard ? "critical" : "warn", data.sentence ?? "");
    case "gate":
      return data.verdict?.action === "pass" ? { ...said("warn", data.sentence ?? ""), aloud: true } : said("critical", data.sentence ?? "");
    case "note":
      return said("info", data.text ?? "");
    case "commanded":
      return data.sentence === undefined ? null : said("info", data.sentence);
    case "status":
      return data.status === "failed" || data.status === "stopped" ? said("critical", data.why ?? "") : null;
    default:
      return null;
  }
}
