// Facts hidden in a text and asked for at its end: found of asked, by length of the text and depth of the fact.
import type { Measurement } from "../generated/wire";
import { useWords } from "../words";

export function Needles({ measured }: { measured: Measurement | null }) {
  const words = useWords();
  const { t } = words;
  const cells = measured?.needles ?? [];
  const lengths = [...new Set(cells.map((cell) => cell.length))].sort((a, b) => a - b);
  const depths = [...new Set(cells.map((cell) => cell.depth))].sort((a, b) => a - b);
  return (
    <figure className="card figure">
      <figcaption>
        <h2>{t("needles")}</h2>
      </figcaption>
      {cells.length === 0 ? (
        <p className="quiet nothing">{t("needles_none")}</p>
      ) : (
        <>
          <div className="scroll" tabIndex={0} role="group" aria-label={t("needles")}>
            <table className="needles">
              <thead>
                <tr>
                  <th scope="col">{t("depth")}</th>
                  {lengths.map((length) => (
                    <th key={length} scope="col">
                      {words.tokens(length)}
                    </th>
                  ))}
                </tr>
              </thead>
              <tbody>
                {depths.map((depth) => (
                  <tr key={depth}>
                    <th scope="row">{words.percent(depth)}</th>
                    {lengths.map((length) => {
                      const cell = cells.find((one) => one.length === length && one.depth === depth);
                      if (!cell) return <td key={length}>–</td>;
                      const fifth = Math.round((4 * cell.found) / cell.asked);
                      return (
                        <td key={length} className={`heat heat-${fifth}`}>
                          {cell.found}/{cell.asked}
                        </td>
                      );
                    })}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
          <p className="quiet">{t("needles_how")}</p>
        </>
      )}
    </figure>
  );
}
