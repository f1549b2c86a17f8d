// A run as it is now: its event stream, resumed by sequence number, and its details, asked for again when they change.
import { useCallback, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { Trouble, api } from "./api";
import { type Flight, grounded, take } from "./flight";
import type { Cockpit, Frame, RunDetail } from "./generated/wire";
import { isCockpit } from "./generated/validate";

export type Line = "connecting" | "open" | "offline";
const AGAIN_MS = 2000;
type OnFrame = (frame: Frame, caughtUp: boolean) => void;
export type Live = { flight: Flight; cockpit: Cockpit | null; line: Line; caughtUp: boolean; version: number };

/** One run's stream. Everything since the beginning is replayed, then events come as they happen. */
export class Stream {
  private source: EventSource | null = null;
  private listeners = new Set<() => void>();
  private due = 0;
  private again: ReturnType<typeof setTimeout> | undefined;
  live: Live = { flight: grounded(), cockpit: null, line: "connecting", caughtUp: false, version: 0 };
  private onFrame: OnFrame = () => undefined;

  constructor(private readonly id: string) {}

  open(onFrame: OnFrame): void {
    this.onFrame = onFrame;
    const source = new EventSource(api.eventsPath(this.id, this.live.flight.seq));
    source.onopen = () => this.change({ line: "open" });
    source.onerror = () => this.lost(source);
    source.onmessage = (message) => this.frame(JSON.parse(message.data as string) as Frame);
    source.addEventListener("cockpit", (message) => {
      const payload: unknown = JSON.parse((message as MessageEvent<string>).data);
      if (isCockpit(payload)) this.change({ cockpit: payload, caughtUp: true });
    });
    this.source = source;
  }

  /** The browser tries again by itself where nobody answered; after a refusal it gives up, and this goes on. */
  private lost(source: EventSource): void {
    this.change({ line: "offline" });
    if (source.readyState !== EventSource.CLOSED) return;
    void api.runs().catch(() => undefined); // tells everybody where the session is over
    this.again = setTimeout(() => this.open(this.onFrame), AGAIN_MS);
  }

  close(): void {
    this.source?.close();
    clearTimeout(this.again);
    cancelAnimationFrame(this.due);
    this.due = 0;
  }

  private frame(frame: Frame): void {
    if (frame.seq <= this.live.flight.seq) return; // told before, by an earlier connection
    take(this.live.flight, frame);
    this.onFrame(frame, this.live.caughtUp);
    this.change({});
  }

  /** Screens are told once a picture, however many events came. A hidden page gets no pictures, so a timer helps. */
  private change(some: Partial<Live>): void {
    this.live = { ...this.live, ...some, version: this.live.version + 1 };
    if (this.due) return;
    const tell = () => {
      this.due = 0;
      for (const listener of this.listeners) listener();
    };
    this.due = document.hidden ? window.setTimeout(tell, 100) : requestAnimationFrame(tell);
  }

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  snapshot = (): Live => this.live;
}

export function useStream(id: string, onFrame?: OnFrame): Live {
  const stream = useMemo(() => new Stream(id), [id]);
  const heard = useRef(onFrame);
  useEffect(() => {
    heard.current = onFrame;
  });
  useEffect(() => {
    stream.open((frame, caughtUp) => heard.current?.(frame, caughtUp));
    return () => stream.close();
  }, [stream]);
  return useSyncExternalStore(stream.subscribe, stream.snapshot);
}

export type Loaded<T> = { data: T | null; trouble: Trouble | null; again: () => void };

/** Ask once, and again whenever `on` changes; what was known stays on the screen meanwhile. */
export function useLoaded<T>(ask: () => Promise<T>, on: readonly unknown[]): Loaded<T> {
  const [data, setData] = useState<T | null>(null);
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let wanted = true;
    ask().then(
      (found) => wanted && (setData(found), setTrouble(null)),
      (error: unknown) => wanted && setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), "")),
    );
    return () => {
      wanted = false;
    };
    // eslint-disable-next-line react-hooks/exhaustive-deps -- the caller says what the answer depends on
  }, [...on, turn]);
  const again = useCallback(() => setTurn((now) => now + 1), []);
  return { data, trouble, again };
}

export function useDetail(id: string, live: Live): Loaded<RunDetail> {
  return useLoaded(() => api.run(id), [id, live.flight.turns, live.line === "open"]);
}
