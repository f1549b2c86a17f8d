// Step 4: read the contract, sign it, start.
import { type FormEvent, useState } from "react";
import { api } from "../api";
import type { Wish } from "../generated/wire";
import { useLoaded } from "../live";
import { useWords } from "../words";
import { TroubleBox } from "./Trouble";

type Props = { wish: Wish; ready: boolean; busy: boolean; start: (sign: string, textHash: string, standing: boolean) => Promise<void> };

export function ContractStep({ wish, ready, busy, start }: Props) {
  const words = useWords();
  const { t } = words;
  const [name, setName] = useState("");
  const [standing, setStanding] = useState(false);
  const contract = useLoaded(() => api.contract(wish), [wish.memoryShare]);
  const send = (event: FormEvent) => {
    event.preventDefault();
    if (contract.data) void start(name.trim(), contract.data.textHash, standing);
  };
  return (
    <form className="card step" onSubmit={send}>
      <h2>
        <i aria-hidden="true">4</i> {t("step_contract")}
      </h2>
      {contract.trouble && <TroubleBox trouble={contract.trouble} again={contract.again} />}
      <ol className="contract">
        {contract.data?.points.map((point) => {
          const told = words.say(point);
          return (
            <li key={point} lang={told.language}>
              {told.text}
            </li>
          );
        })}
      </ol>
      <label className="check">
        <input type="checkbox" checked={standing} onChange={(event) => setStanding(event.target.checked)} />
        <span>{t("standing")}</span>
      </label>
      <label className="field">
        <span>{t("sign")}</span>
        <input value={name} maxLength={80} autoComplete="name" required onChange={(event) => setName(event.target.value)} />
      </label>
      <button type="submit" className="main big" disabled={!ready || busy || name.trim() === "" || contract.data === null}>
        {busy ? t("working") : t("start")}
      </button>
      {!ready && <p className="quiet">{t("start_wait")}</p>}
    </form>
  );
}
