// Loss by position in the text, before and now: where a window ends, the base rises and a longer one does not.
import type { Measurement } from "../generated/wire";
import { finite } from "../flight";
import { useWords } from "../words";
import { Chart, type Line } from "./Chart";

export function Positions({ base, now }: { base: Measurement | null; now: Measurement | null }) {
  const words = useWords();
  const { t } = words;
  const measured = now?.buckets?.length ? now : base;
  if (!measured?.buckets?.length)
    return (
      <figure className="card figure">
        <h2>{t("positions")}</h2>
        <p className="quiet nothing">{t("positions_none")}</p>
      </figure>
    );
  const middle = (bucket: { start: number; end: number }) => (bucket.start + bucket.end) / 2;
  const both = base?.buckets ?? [];
  const x = [...new Set([...both, ...measured.buckets].map(middle))].sort((a, b) => a - b);
  const line = (of: Measurement | null, pick: "nll" | "truncated_nll") => {
    const at = new Map((of?.buckets ?? []).map((bucket) => [middle(bucket), finite(bucket[pick])]));
    return x.map((place) => at.get(place) ?? null);
  };
  const lines: Line[] = [{ name: t("p_base"), values: line(base, "nll"), colour: 3, dash: [8, 4], points: true }];
  if (measured !== base) lines.push({ name: t("p_now"), values: line(measured, "nll"), colour: 1, points: true });
  lines.push({ name: t("p_truncated"), values: line(base, "truncated_nll"), colour: 2, dash: [2, 4], points: true });
  return (
    <figure className="card figure">
      <figcaption>
        <h2>{t("positions")}</h2>
      </figcaption>
      <Chart x={x} lines={lines} xName={t("position")} yName={t("nats")} label={t("positions_label")} marks={[measured.native_length]} />
      <details>
        <summary>{t("as_table")}</summary>
        <div className="scroll" tabIndex={0} role="group" aria-label={t("positions")}>
          <table>
            <thead>
              <tr>
                <th scope="col">{t("position")}</th>
                {lines.map((one) => (
                  <th key={one.name} scope="col">
                    {one.name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {x.map((place, row) => (
                <tr key={place}>
                  <th scope="row">{place}</th>
                  {lines.map((one) => (
                    <td key={one.name}>{one.values[row] == null ? "–" : words.number(one.values[row], 3)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}
