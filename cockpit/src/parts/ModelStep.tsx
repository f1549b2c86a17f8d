// Step 1: which model is grown.
import type { ModelRow, Wish } from "../generated/wire";
import { useWords } from "../words";

type Props = { rows: ModelRow[]; wish: Wish; change: (some: Partial<Wish>) => void };

export function ModelStep({ rows, wish, change }: Props) {
  const { t } = useWords();
  return (
    <fieldset className="card step">
      <legend>
        <h2>
          <i aria-hidden="true">1</i> {t("step_model")}
        </h2>
      </legend>
      <div className="choices">
        {rows.map((row) => (
          <label key={row.id} className="choice">
            <input type="radio" name="model" checked={wish.model === row.id} onChange={() => change({ model: row.id })} />
            <span>
              <b>{row.name}</b>
              <small lang="en">{row.detail}</small>
              {!row.ready && <small>{t("model_fetched")}</small>}
            </span>
          </label>
        ))}
      </div>
      <p className="quiet">{t("model_more")}</p>
    </fieldset>
  );
}
