// Step 3: the text it learns from and is measured on; a dropped file shows what will be kept of it.
import { type DragEvent, useState } from "react";
import { Trouble, api } from "../api";
import type { Upload, Wish } from "../generated/wire";
import { useLoaded } from "../live";
import { type Key, useWords } from "../words";
import { TroubleBox } from "./Trouble";

type Props = { wish: Wish; change: (some: Partial<Wish>) => void };

export function DataStep({ wish, change }: Props) {
  const { t } = useWords();
  const uploads = useLoaded(() => api.uploads(), []);
  const [busy, setBusy] = useState(false);
  const [over, setOver] = useState(false);
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const receive = async (file: File | undefined) => {
    if (!file) return;
    setBusy(true);
    setTrouble(null);
    try {
      const kept = await api.upload(file);
      change({ data: kept.id });
      uploads.again();
    } catch (error) {
      setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), ""));
    } finally {
      setBusy(false);
    }
  };
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    void receive(event.dataTransfer.files[0]);
  };
  const chosen = uploads.data?.find((one) => one.id === wish.data);
  return (
    <fieldset className="card step">
      <legend>
        <h2>
          <i aria-hidden="true">3</i> {t("step_data")}
        </h2>
      </legend>
      <div className="choices">
        <label className="choice">
          <input type="radio" name="data" checked={wish.data === "kjv"} onChange={() => change({ data: "kjv" })} />
          <span>
            <b>{t("data_kjv")}</b>
            <small>{t("data_kjv_what")}</small>
          </span>
        </label>
        {uploads.data?.map((one) => (
          <label key={one.id} className="choice">
            <input type="radio" name="data" checked={wish.data === one.id} onChange={() => change({ data: one.id })} />
            <span>
              <b>{one.name}</b>
              <small>{t("data_size", { documents: one.documents, characters: one.characters })}</small>
            </span>
          </label>
        ))}
      </div>
      <label
        className={`drop ${over ? "drop-over" : ""}`}
        onDragOver={(event) => (event.preventDefault(), setOver(true))}
        onDragLeave={() => setOver(false)}
        onDrop={drop}
      >
        <input type="file" accept=".txt,.md,.jsonl" disabled={busy} onChange={(event) => void receive(event.target.files?.[0])} />
        <span>{busy ? t("working") : t("data_drop")}</span>
        <small>{t("data_kinds")}</small>
      </label>
      {trouble && <TroubleBox trouble={trouble} />}
      {chosen && <Kept upload={chosen} />}
    </fieldset>
  );
}

function Kept({ upload }: { upload: Upload }) {
  const words = useWords();
  const { t } = words;
  return (
    <div className="kept" role="status">
      <p>
        <b>{t("data_kept", { name: upload.name })}</b>
      </p>
      <ul className="facts">
        {Object.entries(upload.shares).map(([part, share]) => (
          <li key={part}>
            {t(`part_${part}` as Key)} {words.percent(share)}
          </li>
        ))}
      </ul>
      <ul lang="en">
        {upload.notes.map((note) => (
          <li key={note}>{note}</li>
        ))}
      </ul>
      <blockquote>{upload.beginning}</blockquote>
    </div>
  );
}
