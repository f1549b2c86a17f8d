// What a person can do to a run. Rollback is the largest and in the middle; it shows what returns before it does.
import { useState } from "react";
import { Trouble, api, newKey } from "../api";
import type { Command, RunDetail } from "../generated/wire";
import type { Order } from "../listening";
import { useLoaded } from "../live";
import { useWords } from "../words";
import { Dialog } from "./Dialog";
import { Ear } from "./Ear";
import { Icon } from "./Icon";
import { TroubleBox } from "./Trouble";

/** What voice commands need of the page; null while they are off. */
export type VoiceIn = { repeat: (sentence: string) => void; speaking: boolean };
type Props = { detail: RunDetail; changed: () => void; ear: VoiceIn | null; sentence: string };
type Ask = (some: Pick<Command, "action"> & Partial<Command>) => Promise<void>;

export function Controls({ detail, changed, ear, sentence }: Props) {
  const words = useWords();
  const { t } = words;
  const [open, setOpen] = useState<"rollback" | "abort" | null>(null);
  const [busy, setBusy] = useState(false);
  const [said, setSaid] = useState("");
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const [wanted, setWanted] = useState<string | null>(null);
  const earlier = detail.checkpoints.map((one) => one.slug).filter((slug) => detail.current !== null && slug < detail.current);
  const target = wanted !== null && earlier.includes(wanted) ? wanted : (earlier.at(-1) ?? "");
  const complete = detail.current === detail.plan.phases.at(-1)?.slug;

  const ask: Ask = async (some) => {
    setBusy(true);
    setTrouble(null);
    setSaid("");
    try {
      const done = await api.command(detail.id, { key: newKey(), gate: null, evidenceHash: null, to: null, confirmed: false, ...some });
      setSaid(done.sentence);
    } catch (error) {
      setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), ""));
    } finally {
      setBusy(false);
      setOpen(null);
      changed();
    }
  };
  const obey = (order: Order) => {
    if (order === "repeat") ear?.repeat(sentence);
    if (order === "pause" && detail.alive) void ask({ action: "Pause" });
    if (order === "ask" && earlier.length > 0) setOpen("rollback");
    if (order === "cancel") setOpen(null);
    if (order === "rollback" && open === "rollback") void ask({ action: "Rollback", to: target, confirmed: true });
  };
  const told = words.say(said);
  return (
    <section className="controls" aria-label={t("controls")}>
      <div className="controls-row">
        <div className="controls-side">
          {detail.alive ? (
            <button type="button" className="plain big" disabled={busy} onClick={() => void ask({ action: "Pause" })}>
              <Icon name="pause" /> {t("pause")}
            </button>
          ) : (
            <button type="button" className="plain big" disabled={busy || complete} onClick={() => void ask({ action: "Resume" })}>
              <Icon name="run" /> {t("resume")}
            </button>
          )}
        </div>
        <button type="button" className="rollback" disabled={busy || earlier.length === 0} onClick={() => setOpen("rollback")}>
          <Icon name="back" /> {t("rollback")}
          <small>{earlier.length ? t("rollback_hint", { phase: earlier.at(-1) ?? "" }) : t("rollback_none")}</small>
        </button>
        <div className="controls-side controls-end">
          {detail.undo !== null && (
            <button type="button" className="plain big" disabled={busy} onClick={() => void ask({ action: "Undo" })}>
              <Icon name="undo" /> {t("undo")}
            </button>
          )}
          <button type="button" className="plain big" disabled={busy || (!detail.alive && !detail.gate)} onClick={() => setOpen("abort")}>
            <Icon name="stop" /> {t("abort")}
          </button>
        </div>
      </div>
      <p className="said" role="status" lang={told.language}>
        {busy ? t("working") : told.text}
      </p>
      {ear && <Ear speaking={ear.speaking} obey={obey} />}
      {trouble && <TroubleBox trouble={trouble} />}
      {open === "rollback" && <RollbackDialog detail={detail} earlier={earlier} target={target} choose={setWanted} busy={busy} close={() => setOpen(null)} ask={ask} />}
      {open === "abort" && (
        <Dialog
          title={t("abort_title")}
          safe={t("keep_going")}
          act={t("abort")}
          danger
          busy={busy}
          onSafe={() => setOpen(null)}
          onAct={() => void ask({ action: "Abort", confirmed: true, gate: detail.gate?.id ?? null, evidenceHash: detail.gate?.evidenceHash ?? null })}
        >
          <p>{t("abort_what")}</p>
        </Dialog>
      )}
    </section>
  );
}

type RollbackProps = { detail: RunDetail; earlier: string[]; target: string; choose: (slug: string) => void; busy: boolean; close: () => void; ask: Ask };

function RollbackDialog({ detail, earlier, target, choose, busy, close, ask }: RollbackProps) {
  const words = useWords();
  const { t } = words;
  const preview = useLoaded(() => api.preview(detail.id, target), [target]);
  const title = (slug: string) => words.title(detail.plan.phases.find((phase) => phase.slug === slug)?.title ?? slug).text;
  const sentence = words.say(preview.data?.sentence ?? "");
  return (
    <Dialog
      title={t("rollback_title")}
      safe={t("stay")}
      act={busy ? t("working") : t("rollback_do")}
      danger
      busy={busy || preview.data === null}
      onSafe={close}
      onAct={() => void ask({ action: "Rollback", to: target, confirmed: true })}
    >
      <label className="field">
        <span>{t("rollback_to")}</span>
        <select value={target} onChange={(event) => choose(event.target.value)}>
          {earlier.map((slug) => (
            <option key={slug} value={slug}>
              {slug} – {title(slug)}
            </option>
          ))}
        </select>
      </label>
      {preview.trouble && <TroubleBox trouble={preview.trouble} />}
      {preview.data && (
        <ul className="preview">
          <li>
            <Icon name="back" /> <b>{t("preview_returns", { phase: title(preview.data.to) })}</b>{" "}
            <span lang={sentence.language} className="quiet">
              {sentence.text}
            </span>
          </li>
          <li>
            <Icon name="pause" /> {t("preview_leaves", { phases: preview.data.leaves.join(", ") || "–" })}
          </li>
          {preview.data.running && (
            <li>
              <Icon name="warn" /> {t("preview_running")}
            </li>
          )}
          <li>
            <Icon name="undo" /> {t("preview_undo")}
          </li>
        </ul>
      )}
    </Dialog>
  );
}
