// Step 1: which model is grown; one that is not here yet is fetched or converted before it is planned with.
import { type KeyboardEvent, useState } from "react";
import { Trouble, api } from "../api";
import type { ModelRow, Wish } from "../generated/wire";
import { useWords } from "../words";
import { TroubleBox } from "./Trouble";

type Props = { rows: ModelRow[]; wish: Wish; change: (some: Partial<Wish>) => void; again: () => void };

export function ModelStep({ rows, wish, change, again }: Props) {
  const { t } = useWords();
  const [hub, setHub] = useState("");
  const [busy, setBusy] = useState<string | null>(null);
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const choose = async (id: string, ready: boolean) => {
    setTrouble(null);
    if (ready) {
      change({ model: id });
      return;
    }
    setBusy(id);
    try {
      await api.prepare(id);
      change({ model: id });
      again();
    } catch (error) {
      setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), ""));
    } finally {
      setBusy(null);
    }
  };
  const onKey = (event: KeyboardEvent) => {
    if (event.key === "Enter" && hub.trim() !== "") void choose(hub.trim(), false);
  };
  return (
    <fieldset className="card step">
      <legend>
        <h2>
          <i aria-hidden="true">1</i> {t("step_model")}
        </h2>
      </legend>
      <div className="choices">
        {rows.map((row) => (
          <label key={row.id} className="choice">
            <input type="radio" name="model" checked={wish.model === row.id} disabled={busy !== null} onChange={() => void choose(row.id, row.ready)} />
            <span>
              <b>{row.name}</b>
              <small lang="en">{row.detail}</small>
              {!row.ready && <small>{busy === row.id ? t("working") : t("model_fetched")}</small>}
            </span>
          </label>
        ))}
      </div>
      <div className="row">
        <label className="field">
          <span>{t("model_hub")}</span>
          <input value={hub} maxLength={200} placeholder="HuggingFaceTB/SmolLM2-135M" spellCheck={false} onChange={(event) => setHub(event.target.value)} onKeyDown={onKey} />
        </label>
        <button type="button" className="plain" disabled={busy !== null || hub.trim() === ""} onClick={() => void choose(hub.trim(), false)}>
          {busy !== null && busy === hub.trim() ? t("working") : t("model_fetch")}
        </button>
      </div>
      {trouble && <TroubleBox trouble={trouble} />}
      <p className="quiet">{t("model_more")}</p>
    </fieldset>
  );
}
