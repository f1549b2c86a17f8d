// What happened, newest first.
import { useState } from "react";
import type { Frame } from "../generated/wire";
import { type Key, type Told, type Words, useWords } from "../words";

const FEW = 8;
const KINDS = ["created", "started", "resumed", "phase_started", "gate", "decision", "committing", "committed", "moved", "status", "telegram", "note", "failed", "extended", "feedback"];

export function Log({ frames }: { frames: Frame[] }) {
  const words = useWords();
  const { t } = words;
  const [all, setAll] = useState(false);
  const newest = [...frames].reverse();
  const shown = all ? newest : newest.slice(0, FEW);
  return (
    <section className="card">
      <h2>{t("log")}</h2>
      {frames.length === 0 && <p className="quiet">{t("log_none")}</p>}
      <ol className="log">
        {shown.map((frame) => {
          const told = line(frame) === "" && frame.kind === "status" ? statusOf(frame, words) : words.say(line(frame));
          return (
            <li key={frame.seq}>
              <time dateTime={new Date(frame.time * 1000).toISOString()}>{words.clock(frame.time)}</time>
              <b>{KINDS.includes(frame.kind) ? t(`kind_${frame.kind}` as Key) : frame.kind}</b>
              <span lang={told.language}>{told.text}</span>
            </li>
          );
        })}
      </ol>
      {newest.length > FEW && (
        <button type="button" className="plain" aria-expanded={all} onClick={() => setAll(!all)}>
          {all ? t("log_few") : t("log_all", { count: newest.length })}
        </button>
      )}
    </section>
  );
}

/** A status that has no reason says what it is. */
function statusOf(frame: Frame, words: Words): Told {
  return { text: words.t(`status_${frame.data.status as string}` as Key), language: words.language };
}

function line(frame: Frame): string {
  const data = frame.data as Record<string, string | undefined>;
  switch (frame.kind) {
    case "decision":
      return `${data.action} · ${data.who} (${data.how})`;
    case "moved":
      return `${data.before} → ${data.after} · ${data.who}`;
    case "status":
      return data.why ?? "";
    default:
      return data.sentence ?? data.text ?? data.wrong ?? data.slug ?? data.name ?? frame.phase ?? "";
  }
}
