// A wish in plain words: the advisor's recipe is laid over the sliders, with its reasons, or it asks one question.
import { type KeyboardEvent, useState } from "react";
import { Trouble, api } from "../api";
import type { Advised, Wish } from "../generated/wire";
import { useWords } from "../words";
import { TroubleBox } from "./Trouble";

type Props = { wish: Wish; change: (some: Partial<Wish>) => void };

export function WishBox({ wish, change }: Props) {
  const { t } = useWords();
  const [text, setText] = useState("");
  const [busy, setBusy] = useState(false);
  const [advised, setAdvised] = useState<Advised | null>(null);
  const [trouble, setTrouble] = useState<Trouble | null>(null);
  const ask = async (choose: string | null) => {
    setBusy(true);
    setTrouble(null);
    try {
      const found = await api.advise({ text, model: wish.model, choose });
      setAdvised(found);
      if (found.wish) change({ ...found.wish, data: wish.data, name: wish.name });
    } catch (error) {
      setTrouble(error instanceof Trouble ? error : new Trouble(0, String(error), ""));
    } finally {
      setBusy(false);
    }
  };
  const onKey = (event: KeyboardEvent) => {
    if (event.key === "Enter" && text.trim() !== "") void ask(null);
  };
  return (
    <div className="wish">
      <div className="row">
        <label className="field">
          <span>{t("wish_say")}</span>
          <input value={text} maxLength={500} placeholder={t("wish_example")} onChange={(event) => setText(event.target.value)} onKeyDown={onKey} />
        </label>
        <button type="button" className="plain" disabled={busy || text.trim() === ""} onClick={() => void ask(null)}>
          {busy ? t("working") : t("wish_ask")}
        </button>
      </div>
      <div role="status">
        {advised?.question && (
          <div className="kept" lang="en">
            <p>{advised.question}</p>
            <div className="row">
              {advised.choices.map((choice) => (
                <button key={choice} type="button" className="plain" onClick={() => void ask(choice)}>
                  {choice}
                </button>
              ))}
            </div>
          </div>
        )}
        {advised?.recipe && (
          <div className="kept">
            <p>
              <b>{t("wish_became", { name: advised.recipe })}</b>
            </p>
            <ul lang="en">
              {advised.reasons.map((reason) => (
                <li key={reason}>{reason}</li>
              ))}
            </ul>
          </div>
        )}
      </div>
      {trouble && <TroubleBox trouble={trouble} />}
    </div>
  );
}
