"""The pictures of a report, drawn by matplotlib: loss by position, loss curves, needles, parameters by part.

Colours are told apart by colour-blind eyes (Okabe and Ito) and by labels at the lines; base, grown model and
truncation keep theirs in every picture. A picture whose figures were not measured is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from scaler_wizard.gate import tokens
from scaler_wizard.metrics import Bucket, NeedleCell
from scaler_wizard.story import Curve, Story
from scaler_wizard.wording import number, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
Label = tuple[float, str, str]
"""A line's last value, its name and its colour."""
WIDTH = 5.8  # inches; narrow, so that letters can be read on a telephone


@dataclass(frozen=True)
class Theme:
    """Colours on one background."""

    page: str
    ink: str
    faint: str
    base: str
    grown: str
    truncated: str
    empty: str
    """Of a cell in which nothing was found."""


LIGHT = Theme(
    page="#ffffff",
    ink="#24292f",
    faint="#8c959f",
    base="#d55e00",
    grown="#0072b2",
    truncated="#57606a",
    empty="#e3e8ed",
)
DARK = Theme(
    page="#161b22",
    ink="#e6edf3",
    faint="#7d8590",
    base="#f0a050",
    grown="#56b4e9",
    truncated="#b1bac4",
    empty="#2d333b",
)
THEMES: Mapping[str, Theme] = {"light": LIGHT, "dark": DARK}


@dataclass(frozen=True)
class Picture:
    """One drawn picture."""

    name: str
    """Name of its file, without the ending."""
    title: str
    alt: str
    """What can be seen, for those who cannot see it."""
    draw: Callable[[Theme], Figure]

    def bytes(self, theme: Theme, kind: Literal["png", "svg"]) -> bytes:
        """The picture as a file; letters become paths, so that no font is needed."""
        from matplotlib import rc_context

        out = BytesIO()
        with rc_context({"svg.fonttype": "path", "svg.hashsalt": self.name}):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            self.draw(theme).savefig(out, format=kind, dpi=200, metadata=metadata, facecolor=theme.page)
        return out.getvalue()


def pictures(story: Story) -> tuple[Picture, ...]:
    """Every picture that the run has figures for."""
    found = (positions(story), needles(story), curves(story), parameters(story))
    return tuple(picture for picture in found if picture is not None)


# -- loss by position --------------------------------------------------------------------------------------------------


def positions(story: Story) -> Picture | None:
    """Loss by position in the text: base, grown model, and the base with the text truncated."""
    base, grown = story.baseline, story.final
    if base is None or not _points(base.buckets):
        return None
    lines = [("base", "base", _points(base.buckets))]
    if grown is not None and _points(grown.buckets):
        lines.append(("grown model", "grown", _points(grown.buckets)))
    cut = _cut(base.buckets)

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(theme, height=3.5)
        length = max(bucket.end for bucket in base.buckets)
        _native(axes, theme, base.native_length, length)
        labels = [_line(axes, name, points, getattr(theme, colour)) for name, colour, points in lines]
        if cut:
            labels.append(_line(axes, f"base, cut to {tokens(base.native_length)}", cut, theme.truncated, dashed=True))
        _label_ends(axes, labels)
        axes.set_xlabel("position in the text (tokens)")
        axes.set_ylabel("loss (nats per token)")
        return figure

    ends = "; ".join(f"{name} {points[-1][1]:.2f}" for name, _, points in lines)
    said = f"; base with the text cut to its window {cut[-1][1]:.2f}" if cut else ""
    alt = f"Loss by position in the text. At the end: {ends}{said}."
    return Picture("nll_by_position", "Loss by position in the text (lower is better)", alt, draw)


def _line(axes: Axes, name: str, points: list[Point], colour: str, *, dashed: bool = False) -> Label:
    style: dict[str, Any] = {"ls": (0, (1.6, 0.8))} if dashed else {"marker": "o", "ms": 3.5}
    axes.plot(*_columns(points), color=colour, lw=2.4, **style)
    return points[-1][1], name, colour


def _cut(buckets: Sequence[Bucket]) -> list[Point]:
    """Loss of what was read again with the text truncated; a single bucket is drawn over all its positions."""
    found = [one for one in buckets if one.truncated_nll is not None and math.isfinite(one.truncated_nll)]
    if len(found) == 1:
        return [(at, found[0].truncated_nll or 0.0) for at in (found[0].start, found[0].end)]
    return [((one.start + one.end) / 2, one.truncated_nll or 0.0) for one in found]


def _points(buckets: Sequence[Bucket]) -> list[Point]:
    return [((one.start + one.end) / 2, one.nll) for one in buckets if math.isfinite(one.nll)]


def _native(axes: Axes, theme: Theme, native: int, length: int) -> None:
    """Shade the base's own window, and name quarters of the whole one."""
    axes.axvspan(0, native, color=theme.faint, alpha=0.13, lw=0)
    place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    axes.text(native / 2, 1.02, "native window", color=theme.faint, fontsize=9.5, **place)
    axes.set_xlim(0, length)
    places = [length * part // 4 for part in range(5)]
    axes.set_xticks(places, [tokens(at) for at in places])


# -- needles -----------------------------------------------------------------------------------------------------------


def needles(story: Story) -> Picture | None:
    """Needles found by length and depth, base beside grown model."""
    models = [("base", story.baseline), ("grown model", story.final)]
    shown = [(name, one) for name, one in models if one is not None and one.needles]
    if not shown:
        return None
    lengths = sorted({cell.length for _, one in shown for cell in one.needles})
    depths = sorted({cell.depth for _, one in shown for cell in one.needles})

    def draw(theme: Theme) -> Figure:
        figure, panels = _panels(theme, len(shown))
        for axes, (name, measured) in zip(panels, shown, strict=True):
            _heat(axes, theme, measured.needles, lengths, depths)
            axes.set_title(name, color=theme.ink, fontsize=11, loc="left")
            axes.set_xlabel("length of the text (tokens)")
        panels[0].set_ylabel("place of the needle\n(0 % is the start)")
        return figure

    found = "; ".join(f"{name} {_found(one.needles)}" for name, one in shown)
    return Picture("needles", "Needles found", f"Needles found by length and depth: {found}.", draw)


def _found(cells: Sequence[NeedleCell]) -> str:
    return f"{sum(cell.found for cell in cells)} of {sum(cell.asked for cell in cells)}"


def _heat(
    axes: Axes, theme: Theme, cells: Sequence[NeedleCell], lengths: Sequence[int], depths: Sequence[float]
) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shade = LinearSegmentedColormap.from_list("found", [theme.empty, theme.grown])
    for cell in cells:
        share, x, y = cell.found / cell.asked, lengths.index(cell.length), depths.index(cell.depth)
        axes.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=shade(share), lw=0))
        ink = theme.page if share > 0.5 else theme.ink
        axes.text(x, y, f"{cell.found}/{cell.asked}", ha="center", va="center", color=ink, fontsize=10)
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_ylim(len(depths) - 0.5, -0.5)
    axes.set_xticks(range(len(lengths)), [tokens(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


# -- training ----------------------------------------------------------------------------------------------------------


def curves(story: Story) -> Picture | None:
    """Loss while training: the grown model and its control."""
    arms = [(name, story.curves[name]) for name in ("grown", "control") if _drawable(story.curves.get(name))]
    if not arms:
        return None
    names = {"grown": "grown model", "control": "control (the base)"}
    colours = {"grown": "grown", "control": "base"}

    def draw(theme: Theme) -> Figure:
        from matplotlib.ticker import MaxNLocator

        figure, axes = _figure(theme, height=3.3)
        labels = []
        for arm, curve in arms:
            colour = getattr(theme, colours[arm])
            axes.plot(*_columns(_finite(curve.training)), color=colour, lw=0.9, alpha=0.28)
            labels.append(_line(axes, names[arm], _finite(curve.evaluations), colour))
        last = max(max(curve.evaluations) for _, curve in arms) or 1
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda place, _: size(place))
        _label_ends(axes, labels)
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("loss (nats per token)")
        return figure

    ends = "; ".join(f"{names[arm]}: {_finite(curve.evaluations)[-1][1]:.3f}" for arm, curve in arms)
    title = "Loss while training: strong on calibration text, faint on training text"
    return Picture("training", title, f"Loss while training. At the end, {ends}.", draw)


def _drawable(curve: Curve | None) -> bool:
    return curve is not None and bool(_finite(curve.evaluations))


def _finite(losses: Mapping[int, float]) -> list[Point]:
    return [(at, loss) for at, loss in sorted(losses.items()) if math.isfinite(loss)]


# -- parameters --------------------------------------------------------------------------------------------------------


def parameters(story: Story) -> Picture | None:
    """Parameters by part: what the base had, what growth added."""
    if not story.grew:
        return None
    before = {part.name: part.parameters for part in story.base_parts}
    rows = [(part.name, before.get(part.name, 0), part.parameters) for part in story.grown_parts]
    rows = sorted((row for row in rows if row[2] >= story.parameters / 1000), key=lambda row: row[2])

    def draw(theme: Theme) -> Figure:
        figure, axes = _figure(theme, height=0.42 * len(rows) + 0.7)
        for at, (_, old, new) in enumerate(rows):
            axes.barh(at, min(old, new), color=theme.faint, height=0.6)
            axes.barh(at, max(0, new - old), left=min(old, new), color=theme.grown, height=0.6)
            said = f"{size(old)} → {size(new)}" if new != old else f"{size(new)}, unchanged"
            axes.text(new, at, f"  {said}", va="center", color=theme.ink, fontsize=10)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_xlim(0, max(new for _, _, new in rows) * 1.35)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("grey: the base; blue: added", loc="left")
        axes.grid(visible=False)
        return figure

    said = "; ".join(f"{name} {size(old)} to {size(new)}" for name, old, new in reversed(rows))
    return Picture("parameters", "Parameters by part", f"Parameters by part: {said}.", draw)


# -- how all of them look ----------------------------------------------------------------------------------------------


def _figure(theme: Theme, *, height: float) -> tuple[Figure, Axes]:
    figure, panels = _panels(theme, 1, height=height)
    return figure, panels[0]


def _panels(theme: Theme, count: int, *, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """Empty axes on one figure; no pyplot, which would keep every figure in memory and look for a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=theme.page)
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axes in panels:
        _calm(axes, theme)
    return figure, panels


def _calm(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.page)
    axes.grid(axis="y", color=theme.faint, alpha=0.25, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=10)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
        label.set_fontsize(10.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [at for at, _ in points], [loss for _, loss in points]


def _label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each line's last value and its name beside its end; labels that would touch are pushed apart."""
    low, high = axes.get_ylim()
    lowest = -math.inf
    for value, name, colour in sorted(labels):
        lowest = max(value, lowest + (high - low) * 0.085)
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "va": "center", "annotation_clip": False}
        axes.annotate(f"{number(value, 2)}  {name}", (1.02, lowest), color=colour, fontsize=10.5, **place)
