// Live values, each beside its limit; what is unknown says so.
import type { Measurement, RunDetail } from "../generated/wire";
import { finite } from "../flight";
import type { Live } from "../live";
import { type Words, useWords } from "../words";
import { Icon } from "./Icon";

type GaugeProps = {
  name: string;
  shown: string;
  /** Where the needle stands, 0..1; null where the value is unknown. */
  share: number | null;
  limit?: { share: number; shown: string } | null;
  /** True where the value is on the wrong side of its limit. */
  over?: boolean;
};

export function Gauges({ live, detail, base, now }: { live: Live; detail: RunDetail; base: Measurement | null; now: Measurement | null }) {
  const words = useWords();
  const { t } = words;
  const quality = live.cockpit?.qualityMetrics ?? detail.cockpit.qualityMetrics;
  const limits = detail.limits;
  const usage = live.flight.usage;
  const rise = riseOf(base, now);
  const slope = finite(quality.perplexitySlope);
  const vibe = finite(quality.emergentVibeScore);
  const retention = finite(quality.contextRetention);
  const accuracy = finite(quality.accuracy);
  const floor = base?.probe ? base.probe.accuracy.value - limits.accuracyDrop : null;
  const resources = live.cockpit?.resourceUsage;
  const perplexity = quality.perplexity;
  const memory = usage?.ram_bytes ?? null;
  const least = base === null ? null : leastRetention(base, limits.needleShare);
  const nearest = nearestLimit([
    { name: t("g_rise"), used: share(rise, limits.shortRegression) },
    { name: t("g_slope"), used: share(slope, limits.slope) },
    { name: t("g_accuracy"), used: share(base?.probe && accuracy !== null ? base.probe.accuracy.value - accuracy : null, limits.accuracyDrop) },
    { name: t("g_retention"), used: least === null || retention === null ? null : share(least.base - retention, least.base - least.limit) },
  ]);
  return (
    <section className="gauges" aria-label={t("gauges")}>
      <Gauge
        name={t("g_red_line")}
        shown={nearest === null ? t("unknown") : words.percent(nearest.used)}
        share={nearest === null ? null : clamp(nearest.used / REACH)}
        limit={{ share: 1 / REACH, shown: nearest === null ? words.percent(1) : `${words.percent(1)} · ${nearest.name}` }}
        over={nearest !== null && nearest.used > 1}
      />
      <Gauge name={t("g_quality")} shown={vibe === null ? t("unknown") : words.percent(vibe)} share={vibe} />
      <Gauge
        name={t("g_rise")}
        shown={rise === null ? t("unknown") : signed(words.number(rise, 3), rise)}
        share={rise === null ? null : clamp(rise / (2 * limits.shortRegression))}
        limit={{ share: 0.5, shown: words.number(limits.shortRegression, 3) }}
        over={rise !== null && rise > limits.shortRegression}
      />
      <Gauge name={t("g_perplexity")} shown={numberOr(perplexity, words.number, t("unknown"))} share={null} />
      <Gauge
        name={t("g_slope")}
        shown={slope === null ? t("unknown") : signed(words.percent(slope, 1), slope)}
        share={slope === null ? null : clamp(slope / (2 * limits.slope))}
        limit={{ share: 0.5, shown: words.percent(limits.slope) }}
        over={slope !== null && slope > limits.slope}
      />
      <Gauge
        name={t("g_accuracy")}
        shown={accuracy === null ? t("unknown") : words.percent(accuracy)}
        share={accuracy}
        limit={floor === null ? null : { share: floor, shown: words.percent(floor) }}
        over={accuracy !== null && floor !== null && accuracy < floor}
      />
      <Gauge
        name={t("g_retention")}
        shown={retention === null ? t("unknown") : words.percent(retention)}
        share={retention}
        limit={least === null ? null : { share: least.limit, shown: words.percent(least.limit) }}
        over={retention !== null && least !== null && retention < least.limit}
      />
      <Gauge
        name={t("g_memory")}
        shown={memory === null ? t("not_running") : words.bytes(memory)}
        share={memory === null ? null : clamp(memory / detail.limits.memoryBytes)}
        limit={{ share: 1, shown: words.bytes(detail.limits.memoryBytes) }}
        over={memory !== null && memory > detail.limits.memoryBytes}
      />
      {resources?.vramTotalGb != null && (
        <Gauge
          name={t("g_vram")}
          shown={`${words.number(resources.vramUsedGb ?? 0, 1)} GiB`}
          share={clamp((resources.vramUsedGb ?? 0) / resources.vramTotalGb)}
          limit={{ share: 0.9, shown: words.percent(0.9) }}
          over={(resources.vramUsedGb ?? 0) > 0.9 * resources.vramTotalGb}
        />
      )}
      <Gauge name={t("g_left")} shown={usage?.seconds_left == null ? (detail.alive ? t("unknown") : t("not_running")) : words.seconds(usage.seconds_left)} share={null} />
      <Gauge name={t("g_gate")} shown={nextGate(detail, words)} share={null} />
    </section>
  );
}

function Gauge({ name, shown, share, limit, over }: GaugeProps) {
  const { t } = useWords();
  return (
    <div className={`card gauge ${over ? "gauge-over" : ""}`}>
      <p className="gauge-name">{name}</p>
      <p className="gauge-value">
        {over && <Icon name="warn" />} {shown}
      </p>
      {(share !== null || limit) && (
        <svg className="gauge-bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
          <rect className="gauge-track" x="0" y="2" width="100" height="4" rx="2" />
          {share !== null && <rect className="gauge-fill" x="0" y="2" width={100 * clamp(share)} height="4" rx="2" />}
          {limit && <rect className="gauge-limit" x={Math.min(99, 100 * limit.share)} y="0" width="1" height="8" />}
        </svg>
      )}
      <p className="gauge-limit-text">{limit ? `${over ? t("over_limit") : t("limit")} ${limit.shown}` : "\u00a0"}</p>
    </div>
  );
}

/** A little past the limit is still seen on the bar. */
const REACH = 1.5;

/** How much of a limit is used; 0 on the good side, null where either is unknown. */
function share(value: number | null, limit: number): number | null {
  return value === null || limit <= 0 ? null : Math.max(0, value / limit);
}

/** The limit of a gate or the breaker that the model is nearest to. */
function nearestLimit(limits: { name: string; used: number | null }[]): { name: string; used: number } | null {
  const known = limits.flatMap(({ name, used }) => (used === null ? [] : [{ name, used }]));
  return known.reduce<{ name: string; used: number } | null>((worst, one) => (worst === null || one.used > worst.used ? one : worst), null);
}

/** What the base finds in its own window, and the share of it that has to be found in the longest one. */
function leastRetention(base: Measurement, share: number): { base: number; limit: number } | null {
  const near = (base.needles ?? []).filter((cell) => cell.length === base.native_length);
  const asked = near.reduce((sum, cell) => sum + cell.asked, 0);
  if (asked === 0) return null;
  const found = near.reduce((sum, cell) => sum + cell.found, 0) / asked;
  return { base: found, limit: share * found };
}

/** Which phase asks next: the open gate, or the phase after the current checkpoint. */
function nextGate(detail: RunDetail, words: Words): string {
  if (detail.gate) return words.t("gate_open");
  const { current } = detail;
  const next = detail.plan.phases.find((phase) => current === null || phase.slug > current);
  return next ? words.title(next.title).text : "–";
}

/** Rise of the loss on the same short windows, nats per token. */
function riseOf(base: Measurement | null, now: Measurement | null): number | null {
  const before = base?.short_nll_by_window ?? [];
  const after = now?.short_nll_by_window ?? [];
  const pairs = Math.min(before.length, after.length);
  if (!pairs) return null;
  let sum = 0;
  for (let at = 0; at < pairs; at++) sum += Number(after[at]) - Number(before[at]);
  return finite(sum / pairs);
}

const clamp = (share: number) => Math.min(1, Math.max(0, share));
const signed = (text: string, value: number) => (value > 0 ? `+${text}` : text);

function numberOr(value: unknown, show: (value: number) => string, unknown: string): string {
  if (typeof value === "number") return show(value);
  const odd = (value as { nonfinite?: string } | null)?.nonfinite;
  return odd ?? unknown;
}
