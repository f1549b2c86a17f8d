// A note by the person, stored with the run.
import { useId, useState } from "react";
import { Trouble, api } from "../api";
import { useWords } from "../words";
import { TroubleBox } from "./Trouble";

const LONGEST = 500;

export function Note({ id, noted }: { id: string; noted: string }) {
  const { t } = useWords();
  const [text, setText] = useState<string | null>(null);
  const [saved, setSaved] = useState(false);
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const field = useId();
  const shown = text ?? noted;
  const save = () =>
    api.feedback(id, shown).then(
      () => setSaved(true),
      (error: unknown) => setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), "")),
    );
  return (
    <section className="card">
      <h2>
        <label htmlFor={field}>{t("note")}</label>
      </h2>
      <textarea id={field} rows={3} maxLength={LONGEST} value={shown} onChange={(event) => (setText(event.target.value), setSaved(false))} />
      <div className="row">
        <button type="button" className="plain" disabled={text === null} onClick={() => void save()}>
          {t("save")}
        </button>
        <span className="quiet" role="status">
          {saved ? t("saved") : t("characters", { count: LONGEST - shown.length })}
        </span>
      </div>
      {trouble && <TroubleBox trouble={trouble} />}
    </section>
  );
}
