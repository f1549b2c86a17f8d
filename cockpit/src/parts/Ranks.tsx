// Where the adapters had most room: their rank at each matrix of each layer.
import type { RankView, RunDetail } from "../generated/wire";
import { useWords } from "../words";

const SHADES = 4;

export function Ranks({ detail }: { detail: RunDetail }) {
  const { t } = useWords();
  const { ranks, plan } = detail;
  const nothing = plan.trains === "lora" ? t("ranks_ahead", { rank: plan.loraRank ?? "–" }) : t("ranks_none");
  return (
    <figure className="card figure">
      <figcaption>
        <h2>{t("ranks")}</h2>
      </figcaption>
      {ranks.length === 0 ? <p className="quiet nothing">{nothing}</p> : <RankTable ranks={ranks} />}
    </figure>
  );
}

function RankTable({ ranks }: { ranks: readonly RankView[] }) {
  const { t } = useWords();
  const layers = [...new Set(ranks.map((one) => one.layer))].sort((a, b) => (a ?? -1) - (b ?? -1));
  const matrices = [...new Set(ranks.map((one) => one.matrix))];
  const largest = Math.max(...ranks.map((one) => one.rank));
  const rankAt = new Map(ranks.map((one) => [`${one.layer} ${one.matrix}`, one.rank]));
  return (
    <>
      <div className="scroll" tabIndex={0} role="group" aria-label={t("ranks")}>
        <table className="needles">
          <thead>
            <tr>
              <th scope="col">{t("layer")}</th>
              {layers.map((layer) => (
                <th key={layer} scope="col">
                  {layer ?? "–"}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {matrices.map((matrix) => (
              <tr key={matrix}>
                <th scope="row" lang="en">
                  {matrix}
                </th>
                {layers.map((layer) => {
                  const rank = rankAt.get(`${layer} ${matrix}`);
                  if (rank === undefined) return <td key={layer}>–</td>;
                  return (
                    <td key={layer} className={`heat heat-${Math.round((SHADES * rank) / largest)}`}>
                      {rank}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p className="quiet">{t("ranks_how")}</p>
    </>
  );
}
