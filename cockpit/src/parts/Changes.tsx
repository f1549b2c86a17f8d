// What changed between two checkpoints.
import { useState } from "react";
import { api } from "../api";
import type { RunDetail } from "../generated/wire";
import { useLoaded } from "../live";
import { useWords } from "../words";
import { TroubleBox } from "./Trouble";

export function Changes({ detail }: { detail: RunDetail }) {
  const { t } = useWords();
  const slugs = detail.checkpoints.map((one) => one.slug);
  const [first, setFirst] = useState<string | null>(null);
  const [second, setSecond] = useState<string | null>(null);
  const [from, until] = [first ?? slugs[0] ?? "", second ?? detail.current ?? ""];
  if (slugs.length < 2) return null;
  return (
    <section className="card">
      <h2>{t("changes")}</h2>
      <div className="row">
        <Choice name={t("from")} value={from} slugs={slugs} set={setFirst} />
        <Choice name={t("until")} value={until} slugs={slugs} set={setSecond} />
      </div>
      <Table id={detail.id} first={from} second={until} />
    </section>
  );
}

function Choice({ name, value, slugs, set }: { name: string; value: string; slugs: string[]; set: (slug: string) => void }) {
  return (
    <label className="field">
      <span>{name}</span>
      <select value={value} onChange={(event) => set(event.target.value)}>
        {slugs.map((slug) => (
          <option key={slug}>{slug}</option>
        ))}
      </select>
    </label>
  );
}

function Table({ id, first, second }: { id: string; first: string; second: string }) {
  const words = useWords();
  const { t } = words;
  const { data, trouble } = useLoaded(() => api.difference(id, first, second), [id, first, second]);
  if (trouble) return <TroubleBox trouble={trouble} />;
  if (data === null) return <p className="quiet">{t("loading")}</p>;
  const sentence = words.say(data.sentence);
  return (
    <>
      <p className="lead" lang={sentence.language}>
        {sentence.text}
      </p>
      <div className="scroll" tabIndex={0} role="group" aria-label={t("changes")}>
        <table>
          <thead>
            <tr>
              <th scope="col">{t("figure")}</th>
              <th scope="col">{first}</th>
              <th scope="col">{second}</th>
            </tr>
          </thead>
          <tbody>
            {Object.entries(data.figures).map(([name, { before, after }]) => (
              <tr key={name}>
                <th scope="row" lang={words.label(name).language}>
                  {words.label(name).text}
                </th>
                <td>{before === "unknown" ? t("unknown") : before}</td>
                <td>{after === "unknown" ? t("unknown") : after}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
