// Before a merge: how far each layer moved from the base, and how the models' changes get on with each other.
import { api } from "../api";
import type { FusionCell, RunDetail } from "../generated/wire";
import { useLoaded } from "../live";
import { type Words, useWords } from "../words";
import { TroubleBox } from "./Trouble";

const PARTS = ["attention", "feed-forward", "norms", "embeddings"] as const;

export function Fusion({ detail }: { detail: RunDetail }) {
  if (detail.current === null || !detail.plan.phases.some((phase) => phase.kind === "merge")) return null;
  return <Preview id={detail.id} at={detail.current} />;
}

function Preview({ id, at }: { id: string; at: string }) {
  const words = useWords();
  const { t } = words;
  const { data, trouble } = useLoaded(() => api.fusion(id), [id, at]);
  return (
    <section className="card figure">
      <h2>{t("fusion")}</h2>
      {trouble && <TroubleBox trouble={trouble} />}
      {data === null && !trouble && <p className="quiet">{t("loading")}</p>}
      {data && (
        <>
          <p className="quiet">{t("fusion_how", { models: data.models.join(", "), method: data.method })}</p>
          <Heat cells={data.cells} />
        </>
      )}
    </section>
  );
}

function Heat({ cells }: { cells: FusionCell[] }) {
  const { t } = useWords();
  const layers = [...new Set(cells.map((cell) => cell.layer))];
  const parts = PARTS.filter((part) => cells.some((cell) => cell.part === part));
  const most = Math.max(...cells.map((cell) => cell.change), 1e-9);
  return (
    <div className="scroll" tabIndex={0} role="group" aria-label={t("fusion")}>
      <table className="needles fusion">
        <thead>
          <tr>
            <th scope="col">{t("layer")}</th>
            {parts.map((part) => (
              <th key={part} scope="col">
                {t(`fusion_${part}`)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {layers.map((layer) => (
            <tr key={layer ?? "ends"}>
              <th scope="row">{layer ?? t("fusion_ends")}</th>
              {parts.map((part) => (
                <Cell key={part} cell={cells.find((one) => one.layer === layer && one.part === part)} most={most} />
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Deeper where more moved; the number is the cosine between the changes, or the change itself where there is one. */
function Cell({ cell, most }: { cell: FusionCell | undefined; most: number }) {
  const words = useWords();
  if (!cell) return <td>–</td>;
  const moved = words.percent(cell.change, 1, 1);
  const cosine = cell.cosine === null ? null : signed(cell.cosine, words);
  return <td className={`heat heat-${Math.round((4 * cell.change) / most)}`}>{cosine === null ? moved : `${cosine} (${moved})`}</td>;
}

/** Two digits, and a sign where they are not both zero. */
function signed(cosine: number, words: Words): string {
  const shown = words.number(Math.abs(cosine), 2, 2);
  if (Math.abs(cosine) < 0.005) return shown;
  return (cosine < 0 ? "−" : "+") + shown;
}
