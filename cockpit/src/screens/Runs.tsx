// All runs: what each one says, which wait for an answer, and a way to compare two.
import { useEffect, useState } from "react";
import { api } from "../api";
import type { RunRow } from "../generated/wire";
import { useLoaded } from "../live";
import { Badge } from "../parts/Badge";
import { Icon } from "../parts/Icon";
import { TroubleBox } from "../parts/Trouble";
import { to } from "../route";
import { useWords } from "../words";

const LOOK_MS = 3000;

export function Runs() {
  const { t } = useWords();
  const { data, trouble, again } = useLoaded(() => api.runs(), []);
  const [chosen, setChosen] = useState<string[]>([]);
  useEffect(() => {
    const timer = setInterval(again, LOOK_MS);
    return () => clearInterval(timer);
  }, [again]);
  const choose = (id: string, on: boolean) => setChosen((now) => (on ? [...now, id].slice(-2) : now.filter((one) => one !== id)));
  return (
    <section className="page">
      <div className="page-head">
        <h1>{t("runs")}</h1>
        <a className="button main" href={to.fresh}>
          {t("new_run")}
        </a>
      </div>
      {trouble && <TroubleBox trouble={trouble} again={again} />}
      {data === null && !trouble && <Skeleton />}
      {data?.length === 0 && <Empty />}
      {data && data.length > 0 && (
        <>
          <ul className="runs">
            {data.map((row) => (
              <Row key={row.id} row={row} chosen={chosen.includes(row.id)} choose={choose} />
            ))}
          </ul>
          {chosen.length === 2 ? (
            <a className="button plain" href={to.compare(chosen[0] ?? "", chosen[1] ?? "")}>
              {t("compare_two")}
            </a>
          ) : (
            data.length > 1 && <p className="quiet">{t("compare_how")}</p>
          )}
        </>
      )}
    </section>
  );
}

function Row({ row, chosen, choose }: { row: RunRow; chosen: boolean; choose: (id: string, on: boolean) => void }) {
  const words = useWords();
  const { t } = words;
  const sentence = words.say(row.sentence);
  return (
    <li className="card run-row">
      <div className="run-main">
        <a className="run-link" href={to.run(row.id)}>
          {row.id}
        </a>
        <Badge status={row.status} waits={row.waits} />
      </div>
      <p lang={sentence.language}>{sentence.text || t("no_sentence")}</p>
      {row.trouble && (
        <p lang="en" className="quiet">
          <Icon name="warn" /> {row.trouble}
        </p>
      )}
      <p className="quiet facts">
        {row.model !== null && <span>{row.model}</span>}
        {row.parameters !== null && <span>{t("to_parameters", { count: words.compact(row.parameters) })}</span>}
        {row.context !== null && <span>{t("to_window", { count: words.tokens(row.context) })}</span>}
        <span>{words.date(row.changed)}</span>
      </p>
      <label className="check">
        <input type="checkbox" checked={chosen} onChange={(event) => choose(row.id, event.target.checked)} />
        <span>
          {t("compare")} <span className="unseen">{row.id}</span>
        </span>
      </label>
    </li>
  );
}

function Empty() {
  const { t } = useWords();
  return (
    <div className="card empty">
      <p className="lead">{t("runs_none")}</p>
      <p className="quiet">{t("runs_none_how")}</p>
      <a className="button main" href={to.fresh}>
        {t("new_run")}
      </a>
    </div>
  );
}

export function Skeleton() {
  const { t } = useWords();
  return (
    <div className="skeleton" role="status">
      <span className="unseen">{t("loading")}</span>
      <i />
      <i />
      <i />
    </div>
  );
}
