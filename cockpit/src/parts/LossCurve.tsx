// Training loss step by step, with the evaluations on calibration text, for the grown model and its control.
import { useState } from "react";
import type { Flight, Point } from "../flight";
import { useWords } from "../words";
import { Chart, type Line } from "./Chart";
import { Icon } from "./Icon";

export type NamedCurve = { name: string; points: Point[]; colour: 1 | 2 | 3 | 4; dash?: number[]; dots?: boolean };

export function LossCurve({ flight }: { flight: Flight }) {
  const { t } = useWords();
  const { grown, control } = flight.curves;
  const curves: NamedCurve[] = [
    { name: t("c_loss"), points: grown.loss, colour: 1 },
    { name: t("c_evaluated"), points: grown.evaluated, colour: 2, dots: true },
    { name: t("c_control"), points: control.loss, colour: 3, dash: [8, 4] },
    { name: t("c_control_evaluated"), points: control.evaluated, colour: 4, dash: [2, 4], dots: true },
  ];
  const any = curves.some((curve) => curve.points.length > 0);
  return (
    <figure className="card figure">
      <figcaption>
        <h2>{t("loss")}</h2>
        {any && <Listen points={grown.loss} />}
      </figcaption>
      {any ? <Curves curves={curves.filter((curve) => curve.points.length > 0)} label={t("loss_label")} /> : <p className="quiet nothing">{t("loss_none")}</p>}
    </figure>
  );
}

export function Curves({ curves, label }: { curves: NamedCurve[]; label: string }) {
  const { t } = useWords();
  const x = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point.x)))].sort((a, b) => a - b);
  const lines: Line[] = curves.map((curve) => {
    const at = new Map(curve.points.map((point) => [point.x, point.y]));
    return { name: curve.name, values: x.map((step) => at.get(step) ?? null), colour: curve.colour, dash: curve.dash, points: curve.dots };
  });
  const last = curves[0]?.points.at(-1);
  return (
    <>
      <Chart x={x} lines={lines} xName={t("step")} yName={t("nats")} label={label} />
      {last && <p className="quiet">{t("loss_last", { step: last.x, loss: last.y === null ? "nan" : last.y.toFixed(3) })}</p>}
    </>
  );
}

const LISTEN_SECONDS = 3;

/** The curve as sound: high is a high loss. */
function Listen({ points }: { points: Point[] }) {
  const { t } = useWords();
  const [playing, setPlaying] = useState(false);
  const play = () => {
    const heights = points.flatMap((point) => (point.y === null ? [] : [point.y]));
    const [low, high] = [Math.min(...heights), Math.max(...heights)];
    const audio = new AudioContext();
    const tone = audio.createOscillator();
    const volume = audio.createGain();
    volume.gain.value = 0.1;
    tone.connect(volume).connect(audio.destination);
    const pitches = Float32Array.from(heights, (height) => 220 * 4 ** ((height - low) / (high - low || 1)));
    if (pitches.length > 1) tone.frequency.setValueCurveAtTime(pitches, audio.currentTime, LISTEN_SECONDS);
    tone.start();
    tone.stop(audio.currentTime + LISTEN_SECONDS);
    setPlaying(true);
    tone.onended = () => (setPlaying(false), void audio.close());
  };
  return (
    <button type="button" className="plain small" disabled={playing || points.length < 2} onClick={play}>
      <Icon name="sound" /> {t("listen")}
    </button>
  );
}
