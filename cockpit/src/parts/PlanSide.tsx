// What the wish would need and what would be done: the command line's own plan, number for number.
import type { PlanView } from "../generated/wire";
import type { Planned } from "../screens/Wizard";
import { useWords } from "../words";
import { TroubleBox } from "./Trouble";

export function PlanSide({ planned }: { planned: Planned }) {
  const { t } = useWords();
  const { plan, trouble, waiting } = planned;
  return (
    <aside className="card plan" aria-label={t("plan")} aria-busy={waiting}>
      <h2>{t("plan")}</h2>
      {trouble && <TroubleBox trouble={trouble} />}
      {plan === null && !trouble && <p className="quiet">{t("loading")}</p>}
      {plan && <Numbers plan={plan} stale={trouble !== null || waiting} />}
    </aside>
  );
}

function Numbers({ plan, stale }: { plan: PlanView; stale: boolean }) {
  const words = useWords();
  const { t } = words;
  const facts: [string, string][] = [
    [t("parameters"), `${words.compact(plan.base.parameters)} → ${words.compact(plan.parameters)}`],
    [t("window"), `${words.tokens(plan.base.context)} → ${words.tokens(plan.context)}`],
    [t("time"), words.seconds(plan.estimate.seconds)],
    [t("memory_growth"), `${words.bytes(plan.estimate.memoryBytes)} / ${words.bytes(plan.memoryLimitBytes)}`],
    [t("memory_use"), words.bytes(plan.usingBytes)],
    [t("disk"), words.bytes(plan.estimate.diskBytes)],
    [t("tokens"), plan.tokens === null ? "–" : words.compact(plan.tokens)],
    [t("expected"), t("expected_what")],
  ];
  return (
    <div className={stale ? "stale" : ""}>
      <dl className="numbers">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      <ol className="phases">
        {plan.phases.map((phase) => {
          const title = words.title(phase.title);
          return (
            <li key={phase.slug}>
              <b>{phase.stage}</b> <span lang={title.language}>{title.text}</span>
              <small>{words.seconds(phase.estimate.seconds)}</small>
            </li>
          );
        })}
      </ol>
      {plan.notes.length > 0 && (
        <details>
          <summary>{t("reasons", { count: plan.notes.length })}</summary>
          <ul lang="en" className="notes">
            {plan.notes.map((note) => (
              <li key={note}>{note}</li>
            ))}
            <li>{plan.estimate.basis}</li>
          </ul>
        </details>
      )}
      <details>
        <summary>{t("show_recipe")}</summary>
        <pre tabIndex={0}>{plan.recipe}</pre>
        <p className="quiet">{t("recipe_how")}</p>
      </details>
    </div>
  );
}
