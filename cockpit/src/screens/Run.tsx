// One run: where it stands, what it asks, what can be done, what was measured. The same for live and finished runs.
import { useCallback } from "react";
import { type Said, sayable } from "../flight";
import type { Frame, RunDetail } from "../generated/wire";
import { type Live, useDetail, useStream } from "../live";
import { Badge } from "../parts/Badge";
import { Controls, type VoiceIn } from "../parts/Controls";
import { Changes } from "../parts/Changes";
import { Fusion } from "../parts/Fusion";
import { GatePanel } from "../parts/GatePanel";
import { Gauges } from "../parts/Gauges";
import { GrowthPicture } from "../parts/GrowthPicture";
import { Log } from "../parts/Log";
import { LossCurve } from "../parts/LossCurve";
import { Needles } from "../parts/Needles";
import { Note } from "../parts/Note";
import { Positions } from "../parts/Positions";
import { Ranks } from "../parts/Ranks";
import { Timeline } from "../parts/Timeline";
import { TroubleBox } from "../parts/Trouble";
import { Icon } from "../parts/Icon";
import { api } from "../api";
import { useWords } from "../words";
import { Skeleton } from "./Runs";

export function RunScreen({ id, tell, ear }: { id: string; tell: (said: Said) => void; ear: VoiceIn | null }) {
  const heard = useCallback(
    (frame: Frame, caughtUp: boolean) => {
      const said = sayable(frame);
      if (said && caughtUp) tell(said);
    },
    [tell],
  );
  const live = useStream(id, heard);
  const detail = useDetail(id, live);
  if (detail.data === null)
    return (
      <section className="page">
        <h1>{id}</h1>
        {detail.trouble ? <TroubleBox trouble={detail.trouble} again={detail.again} /> : <Skeleton />}
      </section>
    );
  return <Shown live={live} detail={detail.data} changed={detail.again} ear={ear} />;
}

function Shown({ live, detail, changed, ear }: { live: Live; detail: RunDetail; changed: () => void; ear: VoiceIn | null }) {
  const words = useWords();
  const { t } = words;
  const { flight } = live;
  const measured = [...detail.checkpoints.flatMap((one) => one.measurement ?? []), ...(detail.gate?.measurement ? [detail.gate.measurement] : [])];
  const base = measured[0] ?? null;
  const now = measured.at(-1) ?? null;
  return (
    <section className="cockpit" aria-busy={!live.caughtUp}>
      {live.line === "offline" && (
        <p className="offline" role="alert">
          <Icon name="warn" /> {t("stream_lost")}
        </p>
      )}
      <Hero live={live} detail={detail} />
      <Timeline plan={detail.plan} detail={detail} flight={flight} />
      {detail.gate && <GatePanel key={detail.gate.id} run={detail.id} gate={detail.gate} until={live.cockpit?.humanContract.nextDecisionPoint ?? null} changed={changed} />}
      <Controls detail={detail} changed={changed} ear={ear} sentence={sentenceOf(live, detail)} />
      <Gauges live={live} detail={detail} base={base} now={now} />
      <div className="charts">
        <LossCurve flight={flight} />
        <Positions base={base} now={now} />
        <Needles measured={now} />
        <GrowthPicture plan={detail.plan} />
        <Ranks detail={detail} />
      </div>
      <Fusion detail={detail} />
      <Changes detail={detail} />
      <Log frames={flight.log} />
      <div className="charts">
        <Note id={detail.id} noted={detail.cockpit.userFeedback ?? ""} />
        <Downloads detail={detail} />
      </div>
    </section>
  );
}

function Hero({ live, detail }: { live: Live; detail: RunDetail }) {
  const words = useWords();
  const { t } = words;
  const { flight } = live;
  const status = live.cockpit?.status ?? detail.cockpit.status;
  const raw = sentenceOf(live, detail);
  const sentence = words.say(raw);
  const usage = flight.usage;
  return (
    <div className="hero">
      <p className="facts quiet">
        <span>{detail.id}</span>
        <span>{detail.plan.base.name}</span>
        <span>{t("signed", { name: detail.signedBy })}</span>
      </p>
      <h1 lang={sentence.language} data-seq={flight.seq}>
        {sentence.text || t("no_sentence")}
      </h1>
      <p className="facts">
        <Badge status={status} waits={detail.gate !== null} />
        {usage && (
          <span lang="en" className="doing">
            {usage.doing}
          </span>
        )}
        {usage?.seconds_left != null && <span>{t("left", { time: words.seconds(usage.seconds_left) })}</span>}
        {flight.why && flight.why !== raw && !detail.alive && status !== "completed" && (
          <span className="quiet" lang={words.say(flight.why).language}>
            {words.say(flight.why).text}
          </span>
        )}
      </p>
    </div>
  );
}

/** What the first heading says: what is critical, else the open gate's question. */
function sentenceOf(live: Live, detail: RunDetail): string {
  return live.flight.said?.level === "critical" || !detail.gate ? (headline(live, detail) ?? "") : detail.gate.sentence;
}

/** The newest sentence that is about the whole run; the payload's canonical one until something newer was said. */
function headline(live: Live, detail: RunDetail): string | undefined {
  const said = live.flight.said;
  if (said && said.level !== "info" && said.kind !== "status") return said.sentence;
  return live.cockpit?.qualityMetrics.canonicalSentence ?? detail.cockpit.qualityMetrics.canonicalSentence;
}

function Downloads({ detail }: { detail: RunDetail }) {
  const { t } = useWords();
  return (
    <section className="card">
      <h2>{t("downloads")}</h2>
      <div className="row">
        {detail.current ? (
          <a className="button plain" href={api.exportPath(detail.id)} download>
            <Icon name="down" /> {t("download_model")}
          </a>
        ) : (
          <p className="quiet">{t("download_none")}</p>
        )}
        {detail.hasReport && (
          <>
            <a className="button plain" href={api.pagePath(detail.id)} download>
              <Icon name="down" /> {t("download_page")}
            </a>
            <a className="button plain" href={api.reportPath(detail.id)} download>
              <Icon name="down" /> {t("download_report")}
            </a>
          </>
        )}
      </div>
      <p className="quiet">{t("download_what", { phase: detail.current ?? "–" })}</p>
    </section>
  );
}
