// A line chart (uPlot) that follows its container's width and the theme; lines differ by dash as well as by colour.
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export type Line = { name: string; values: (number | null)[]; colour: 1 | 2 | 3 | 4; dash?: number[]; points?: boolean };
type Props = { x: number[]; lines: Line[]; xName: string; yName: string; label: string; marks?: number[] };

const HEIGHT = 240;
/** Steps and positions are whole numbers, and so are their marks. */
const WHOLE = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((one) => one * 10 ** power)).flat();
const variable = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function Chart({ x, lines, xName, yName, label, marks = [] }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const shape = JSON.stringify([lines.map((line) => [line.name, line.colour, line.dash, line.points]), xName, yName, marks]);

  useEffect(() => {
    const place = box.current;
    if (!place) return;
    const axis = (name: string): uPlot.Axis => ({
      label: name,
      stroke: () => variable("--quiet"),
      grid: { stroke: () => variable("--line"), width: 1 },
      ticks: { stroke: () => variable("--line"), width: 1 },
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      labelSize: 20,
      size: 44,
    });
    const made = new uPlot(
      {
        width: place.clientWidth || 320,
        height: HEIGHT,
        cursor: { drag: { x: false, y: false } },
        legend: { show: true, live: true },
        scales: { x: { time: false } },
        axes: [{ ...axis(xName), size: 34, incrs: WHOLE }, axis(yName)],
        series: [
          { label: xName },
          ...lines.map((line) => ({
            label: line.name,
            stroke: () => variable(`--chart-${line.colour}`),
            width: 2,
            dash: line.dash,
            spanGaps: true,
            points: { show: line.points ?? false, size: 6 },
          })),
        ],
        hooks: { draw: [(drawn) => drawMarks(drawn, marks)] },
      },
      [x, ...lines.map((line) => line.values)] as uPlot.AlignedData,
      place,
    );
    plot.current = made;
    const watch = new ResizeObserver(() => made.setSize({ width: place.clientWidth, height: HEIGHT }));
    watch.observe(place);
    const theme = new MutationObserver(() => made.redraw());
    theme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => {
      watch.disconnect();
      theme.disconnect();
      made.destroy();
      plot.current = null;
    };
    // eslint-disable-next-line react-hooks/exhaustive-deps -- `shape` is what the drawing is made of; values come by setData
  }, [shape]);

  useEffect(() => plot.current?.setData([x, ...lines.map((line) => line.values)] as uPlot.AlignedData), [x, lines]);
  return <div ref={box} className="chart" role="img" aria-label={label} />;
}

/** Upright lines at chosen places, such as the end of the native window. */
function drawMarks(plot: uPlot, marks: number[]): void {
  plot.ctx.save();
  plot.ctx.strokeStyle = variable("--quiet");
  plot.ctx.setLineDash([4, 4]);
  for (const mark of marks) {
    const at = Math.round(plot.valToPos(mark, "x", true));
    plot.ctx.beginPath();
    plot.ctx.moveTo(at, plot.bbox.top);
    plot.ctx.lineTo(at, plot.bbox.top + plot.bbox.height);
    plot.ctx.stroke();
  }
  plot.ctx.restore();
}
