// Two runs side by side: their curves over each other, and the figures that differ.
import type { RunDetail } from "../generated/wire";
import { finite } from "../flight";
import { useDetail, useStream } from "../live";
import { Curves } from "../parts/LossCurve";
import { TroubleBox } from "../parts/Trouble";
import { to } from "../route";
import { type Words, useWords } from "../words";
import { Skeleton } from "./Runs";

export function Compare({ first, second }: { first: string; second: string }) {
  const words = useWords();
  const { t } = words;
  const [left, right] = [useStream(first), useStream(second)];
  const [one, two] = [useDetail(first, left), useDetail(second, right)];
  const trouble = one.trouble ?? two.trouble;
  if (one.data === null || two.data === null)
    return (
      <section className="page">
        <h1>{t("compare")}</h1>
        {trouble ? <TroubleBox trouble={trouble} again={() => (one.again(), two.again())} /> : <Skeleton />}
      </section>
    );
  const curves = [
    { name: `${t("run")} 1`, points: left.flight.curves.grown.loss, colour: 1 as const },
    { name: `${t("run")} 2`, points: right.flight.curves.grown.loss, colour: 2 as const, dash: [8, 4] },
  ].filter((curve) => curve.points.length > 0);
  return (
    <section className="page">
      <h1>{t("compare")}</h1>
      <ol className="pair">
        {[one.data, two.data].map((run) => (
          <li key={run.id} className="card">
            <a href={to.run(run.id)}>{run.id}</a>
            <p lang={words.say(run.cockpit.qualityMetrics.canonicalSentence ?? "").language}>{words.say(run.cockpit.qualityMetrics.canonicalSentence ?? "").text}</p>
          </li>
        ))}
      </ol>
      <figure className="card figure">
        <figcaption>
          <h2>{t("loss")}</h2>
        </figcaption>
        {curves.length ? <Curves curves={curves} label={t("loss_label")} /> : <p className="quiet nothing">{t("loss_none")}</p>}
      </figure>
      <div className="card scroll" tabIndex={0} role="group" aria-label={t("changes")}>
        <table>
          <thead>
            <tr>
              <th scope="col">{t("figure")}</th>
              <th scope="col">{t("run")} 1</th>
              <th scope="col">{t("run")} 2</th>
            </tr>
          </thead>
          <tbody>
            {rows(one.data, two.data, words).map(([name, before, after]) => (
              <tr key={name} className={before === after ? "" : "differs"}>
                <th scope="row">{name}</th>
                <td>{before}</td>
                <td>
                  {after}
                  {before !== after && <span className="unseen"> ({t("differs")})</span>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function rows(one: RunDetail, two: RunDetail, words: Words): [string, string, string][] {
  const { t } = words;
  const both = (name: string, show: (run: RunDetail) => string): [string, string, string] => [name, show(one), show(two)];
  const value = (found: unknown, show: (value: number) => string) => {
    const number = finite(found);
    return number === null ? t("unknown") : show(number);
  };
  return [
    both(t("model"), (run) => run.plan.base.name),
    both(t("parameters"), (run) => words.compact(run.plan.parameters)),
    both(t("window"), (run) => words.tokens(run.plan.context)),
    both(t("trains"), (run) => run.plan.trains ?? "–"),
    both(t("tokens"), (run) => (run.plan.tokens === null ? "–" : words.compact(run.plan.tokens))),
    both(t("checkpoint"), (run) => run.current ?? "–"),
    both(t("g_perplexity"), (run) => value(run.cockpit.qualityMetrics.perplexity, (found) => words.number(found, 3))),
    both(t("g_quality"), (run) => value(run.cockpit.qualityMetrics.emergentVibeScore, words.percent)),
    both(t("g_retention"), (run) => value(run.cockpit.qualityMetrics.contextRetention, words.percent)),
    both(t("g_accuracy"), (run) => value(run.cockpit.qualityMetrics.accuracy, words.percent)),
  ];
}
