// The road of a run: five stages, the phases inside them, where the model stands and what is being done.
import type { Flight } from "../flight";
import type { PhaseView, PlanView, RunDetail } from "../generated/wire";
import { type Key, useWords } from "../words";
import { Icon, type IconName } from "./Icon";

type State = "done" | "here" | "doing" | "asks" | "ahead";
const ICONS: Record<State, IconName> = { done: "ok", here: "ok", doing: "run", asks: "wait", ahead: "wait" };

export function Timeline({ plan, detail, flight }: { plan: PlanView; detail: RunDetail; flight: Flight }) {
  const { t } = useWords();
  const stages = ["P0", "P1", "P2", "P3", "P4"];
  const state = (phase: PhaseView): State => {
    if (detail.gate?.phase === phase.slug) return "asks";
    if (detail.current === phase.slug) return "here";
    if (detail.current !== null && phase.slug < detail.current) return "done";
    return detail.alive && flight.phase === phase.slug ? "doing" : "ahead";
  };
  return (
    <nav className="timeline" aria-label={t("timeline")}>
      <ol>
        {stages.map((stage) => {
          const phases = plan.phases.filter((phase) => phase.stage === stage);
          return (
            <li key={stage} className={phases.length ? "" : "skipped"}>
              <p className="stage">
                <b>{stage}</b> {t(`stage_${stage}` as Key)}
              </p>
              {phases.length === 0 && <p className="quiet">{t("stage_none")}</p>}
              <ol>
                {phases.map((phase) => (
                  <Rung key={phase.slug} phase={phase} state={state(phase)} share={flight.usage?.share ?? null} />
                ))}
              </ol>
            </li>
          );
        })}
      </ol>
    </nav>
  );
}

function Rung({ phase, state, share }: { phase: PhaseView; state: State; share: number | null }) {
  const words = useWords();
  const title = words.title(phase.title);
  return (
    <li className={`rung rung-${state}`} aria-current={state === "doing" || state === "asks" ? "step" : undefined}>
      <Icon name={ICONS[state]} />
      <span className="rung-text">
        <span lang={title.language}>{title.text}</span>
        <small>{words.t(`rung_${state}`)}</small>
        {state === "doing" && share !== null && <progress value={share} max={1} aria-label={words.t("progress")} />}
      </span>
    </li>
  );
}
