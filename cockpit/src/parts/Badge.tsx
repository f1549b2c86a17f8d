// Where a run stands: a word and a drawing, with a colour as the third cue.
import { type Key, useWords } from "../words";
import { Icon, type IconName } from "./Icon";

const LOOKS: Record<string, { icon: IconName; tone: string }> = {
  initializing: { icon: "wait", tone: "calm" },
  running: { icon: "run", tone: "good" },
  paused: { icon: "pause", tone: "warn" },
  warning: { icon: "warn", tone: "warn" },
  stopped: { icon: "stop", tone: "bad" },
  completed: { icon: "ok", tone: "good" },
  failed: { icon: "fail", tone: "bad" },
  waits: { icon: "wait", tone: "warn" },
};

export function Badge({ status, waits }: { status: string; waits: boolean }) {
  const { t } = useWords();
  const shown = waits ? "waits" : status in LOOKS ? status : "initializing";
  const look = LOOKS[shown];
  return (
    <span className={`badge tone-${look?.tone}`}>
      <Icon name={look?.icon ?? "wait"} /> {t(`status_${shown}` as Key)}
    </span>
  );
}
