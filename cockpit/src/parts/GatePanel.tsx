// The open gate: what it says, on which evidence, how long it waits; its answers name exactly this evidence.
import { useEffect, useState } from "react";
import { Trouble, api, newKey } from "../api";
import type { Command, GateView } from "../generated/wire";
import { useWords } from "../words";
import { Icon } from "./Icon";
import { TroubleBox } from "./Trouble";

const WARN_SECONDS = 20;

export function GatePanel({ run, gate, until, changed }: { run: string; gate: GateView; until: string | null; changed: () => void }) {
  const words = useWords();
  const { t } = words;
  const [busy, setBusy] = useState(false);
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const left = useSecondsLeft(until);
  const answer = (action: Command["action"]) => {
    setBusy(true);
    setTrouble(null);
    const command: Command = { key: newKey(), action, gate: gate.id, evidenceHash: gate.evidenceHash, confirmed: false };
    api
      .command(run, command)
      .catch((error: unknown) => setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), "")))
      .finally(() => (setBusy(false), changed()));
  };
  const soon = left !== null && left <= WARN_SECONDS;
  return (
    <section className="card gate" data-phase={gate.phase} aria-labelledby="gate-title">
      <h2 id="gate-title">
        <Icon name="wait" /> {t("gate_asks")}
      </h2>
      {gate.reasons.length > 0 && (
        <>
          <p>{t("gate_outside")}</p>
          <ul className="reasons">
            {gate.reasons.map((reason) => {
              const told = words.say(reason);
              return (
                <li key={reason} lang={told.language}>
                  <Icon name="warn" /> {told.text}
                </li>
              );
            })}
          </ul>
        </>
      )}
      {gate.reasons.length === 0 && <p>{t("gate_inside")}</p>}
      <dl className="evidence">
        {gate.evidence.map(({ name, value }) => {
          const label = words.label(name);
          return (
            <div key={name}>
              <dt lang={label.language}>{label.text}</dt>
              <dd lang="en">{value}</dd>
            </div>
          );
        })}
      </dl>
      {gate.stopped && <p className="quiet">{t("gate_go_on_what")}</p>}
      {trouble && <TroubleBox trouble={trouble} />}
      <div className="row">
        <button type="button" className="main big" disabled={busy} onClick={() => answer("Approve")}>
          <Icon name="ok" /> {t("approve")}
        </button>
        {gate.stopped && (
          <button type="button" className="plain big" disabled={busy} onClick={() => answer("Resume")}>
            <Icon name="run" /> {t("gate_go_on")}
          </button>
        )}
        {left !== null && left > 0 && (
          <>
            <p className={soon ? "soon" : "quiet"} role="timer">
              {soon && <Icon name="warn" />} {t("gate_pauses_in", { time: words.seconds(Math.ceil(left)) })}
            </p>
            <button type="button" className="plain" disabled={busy} onClick={() => answer("Extend")}>
              {t("extend")}
            </button>
            <span className="unseen" role="status">
              {soon ? t("gate_soon") : ""}
            </span>
          </>
        )}
      </div>
    </section>
  );
}

function useSecondsLeft(until: string | null): number | null {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(timer);
  }, []);
  return until === null ? null : (Date.parse(until) - now) / 1000;
}
