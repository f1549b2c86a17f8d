// How much larger the model becomes: parameters and window, before and after, in proportion.
import type { PlanView } from "../generated/wire";
import { useWords } from "../words";

export function GrowthPicture({ plan }: { plan: PlanView }) {
  const words = useWords();
  const { t } = words;
  const rows = [
    { name: t("parameters"), before: plan.base.parameters, after: plan.parameters, show: words.compact },
    { name: t("window"), before: plan.base.context, after: plan.context, show: words.tokens },
  ];
  return (
    <figure className="card figure">
      <figcaption>
        <h2>{t("growth")}</h2>
      </figcaption>
      {rows.map((row) => (
        <div key={row.name} className="growth">
          <p>
            {row.name} <b>{words.number(row.after / row.before, 2)}×</b>
          </p>
          <Bar name={t("before")} share={row.before / Math.max(row.after, row.before)} shown={row.show(row.before)} />
          <Bar name={t("after")} share={row.after / Math.max(row.after, row.before)} shown={row.show(row.after)} grown />
        </div>
      ))}
    </figure>
  );
}

function Bar({ name, share, shown, grown }: { name: string; share: number; shown: string; grown?: boolean }) {
  return (
    <p className="growth-row">
      <span className="growth-name">{name}</span>
      <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" className={grown ? "growth-after" : "growth-before"}>
        <rect x="0" y="0" width={100 * share} height="10" rx="1" />
      </svg>
      <span className="growth-value">{shown}</span>
    </p>
  );
}
