// What the wish would need and what would be done: the command line's own plan, number for number.
import { api } from "../api";
import type { Expected, PlanView, Wish } from "../generated/wire";
import { useLoaded } from "../live";
import type { Planned } from "../screens/Wizard";
import { type Words, useWords } from "../words";
import { TroubleBox } from "./Trouble";

export function PlanSide({ planned, wish }: { planned: Planned; wish: Wish }) {
  const { t } = useWords();
  const { plan, trouble, waiting } = planned;
  return (
    <aside className="card plan" aria-label={t("plan")} aria-busy={waiting}>
      <h2>{t("plan")}</h2>
      {trouble && <TroubleBox trouble={trouble} />}
      {plan === null && !trouble && <p className="quiet">{t("loading")}</p>}
      {plan && <Numbers plan={plan} wish={wish} stale={trouble !== null || waiting} />}
    </aside>
  );
}

function Numbers({ plan, wish, stale }: { plan: PlanView; wish: Wish; stale: boolean }) {
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
      <Foreseen plan={plan} wish={wish} />
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

/** What past runs like this plan came to; asked for after the plan, which it never holds up. */
function Foreseen({ plan, wish }: { plan: PlanView; wish: Wish }) {
  const words = useWords();
  const { t } = words;
  // The plan came from this wish or from the one before: the answer is asked for again when the plan is.
  const { data, trouble } = useLoaded(() => api.expected(wish), [plan]);
  return (
    <div className="foreseen">
      <p>
        {t("expected")} <b>{data ? band(data, words) : trouble ? t("unknown") : t("loading")}</b>
      </p>
      {data && (
        <p className="quiet" lang="en">
          {data.basis}
        </p>
      )}
      <p className="quiet">{t("expected_what")}</p>
    </div>
  );
}

function band({ low, middle, high }: Expected, words: Words): string {
  if (low === null || middle === null || high === null) return words.t("unknown");
  const said = (value: number) => (value > 0 ? "+" : "") + words.number(value, 3);
  return words.t("expected_band", { middle: said(middle), low: said(low), high: said(high) });
}
