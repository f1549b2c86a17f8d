"""Base against grown model, figure by figure, each with the interval that says whether the difference is real."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scaler_wizard.gate import needle_cells, tokens
from scaler_wizard.intervals import paired_gain, share_gain, wilson
from scaler_wizard.metrics import Interval, Measurement, Probe
from scaler_wizard.story import Story
from scaler_wizard.wording import UNKNOWN, interval, number, points_interval, share_interval

READING = {"self": "reading", "base": "the base's, reading", None: "reading"}
"""Whose truncated reading the gain is against."""


@dataclass(frozen=True)
class Compared:
    """One figure of both models."""

    what: str
    """Name of the figure, with its unit."""
    base: str
    grown: str
    change: str
    """Grown less base, with its 95 % interval."""
    gain: Interval
    """The change, turned so that above 0 is better."""
    sentence: str
    """The same in words, without a judgement."""


@dataclass(frozen=True)
class Missing:
    """A comparison that nobody can make, since something was not measured."""

    what: str
    why: str


def compare(story: Story) -> tuple[Compared | Missing, ...]:
    """Every comparison of the last measurement with the baseline, those that are missing too."""
    base, grown = story.baseline, story.final
    if base is None or grown is None:
        return (Missing("any quality", "nothing was measured on the base and on the grown model"),)
    return tuple(_comparisons(base, grown))


def _comparisons(base: Measurement, grown: Measurement) -> Iterator[Compared | Missing]:
    yield _short(base, grown)
    if grown.target_length > base.native_length:
        yield from _long(base, grown)
    yield from _needles(base, grown)
    yield _probe(base.probe, grown.probe)


def _short(base: Measurement, grown: Measurement) -> Compared | Missing:
    what = "loss on short text"
    if not all(math.isfinite(value) for value in (*base.short_nll_by_window, *grown.short_nll_by_window)):
        return Missing(what, "a loss is not a finite number")
    gain = _paired(base.short_nll_by_window, grown.short_nll_by_window)
    if gain is None:
        return Missing(what, "the two models did not read the same windows")
    return _losses(what, base.short_nll, grown.short_nll, gain)


def _long(base: Measurement, grown: Measurement) -> Iterator[Compared | Missing]:
    length, cut = tokens(grown.target_length), tokens(base.native_length)
    same = base.target_length == grown.target_length
    what = f"loss of the last {tokens(base.native_length // 2)} of {length} tokens"
    gain = _paired(base.tail_blocks, grown.tail_blocks) if same else None
    if not all(math.isfinite(bucket.nll) for one in (base, grown) for bucket in one.buckets):
        yield Missing(what, "a loss is not a finite number")
    elif gain is None:
        yield Missing(what, "base and grown model were not measured at the same places")
    else:
        yield _losses(what, _mean(base.tail_blocks), _mean(grown.tail_blocks), gain)
    yield _against_truncation(base, grown, f"gain of {length} tokens over the last {cut} alone")


def _against_truncation(base: Measurement, grown: Measurement, what: str) -> Compared | Missing:
    gain = grown.context_gain
    if gain is None or not _finite(gain):
        return Missing(what, "the same text was not read truncated")
    before = base.context_gain if base.target_length == grown.target_length else None
    cut = f"{READING[grown.truncation_by]} the last {tokens(base.native_length)}"
    return Compared(
        what=f"{what} (nats per token)",
        base=interval(before),
        grown=interval(gain),
        change="above 0 is a gain",
        gain=gain,
        sentence=f"reading {tokens(grown.target_length)} tokens, the grown model's loss is {_lower(gain.value)} than "
        f"{cut} alone (gain {interval(gain)} nats per token)",
    )


def _lower(gain: float) -> str:
    return f"{number(abs(gain))} {'lower' if gain >= 0 else 'higher'}"


def _losses(what: str, base: float | None, grown: float | None, gain: Interval) -> Compared:
    change = Interval(value=-gain.value, low=-gain.high, high=-gain.low)
    return Compared(
        what=f"{what} (nats per token)",
        base=f"{number(base)} (perplexity {_perplexity(base)})",
        grown=f"{number(grown)} (perplexity {_perplexity(grown)})",
        change=interval(change),
        gain=gain,
        sentence=f"{what}: {number(base)} → {number(grown)} nats per token ({interval(change)})",
    )


def _perplexity(loss: float | None) -> str:
    return UNKNOWN if loss is None else f"{math.exp(min(loss, 700.0)):.3g}"


def _needles(base: Measurement, grown: Measurement) -> Iterator[Compared | Missing]:
    lengths = sorted({cell.length for cell in grown.needles} & {cell.length for cell in base.needles})
    if not lengths:
        yield Missing("retrieval", "no needles were hidden and asked for on both models")
    for length in lengths:
        before, after = (_found(one, length) for one in (base, grown))
        gain = share_gain(wilson(*before), wilson(*after))
        what = f"needles found in {tokens(length)} tokens"
        yield Compared(
            what=what,
            base=f"{before[0]} of {before[1]}",
            grown=f"{after[0]} of {after[1]}",
            change=points_interval(gain),
            gain=gain,
            sentence=f"{what}: {before[0]}/{before[1]} → {after[0]}/{after[1]} ({points_interval(gain)})",
        )


def _found(measured: Measurement, length: int) -> tuple[int, int]:
    cells = needle_cells(measured, length)
    return sum(cell.found for cell in cells), sum(cell.asked for cell in cells)


def _probe(base: Probe | None, grown: Probe | None) -> Compared | Missing:
    if base is None or grown is None or base.name != grown.name:
        return Missing("knowledge", "no multiple-choice questions were asked of both models")
    gain = share_gain(base.accuracy, grown.accuracy)
    what = f"accuracy on {base.asked} multiple-choice questions ({base.name})"
    return Compared(
        what=f"{what}; chance {base.chance:.0%}",
        base=share_interval(base.accuracy),
        grown=share_interval(grown.accuracy),
        change=points_interval(gain),
        gain=gain,
        sentence=f"{what}: {base.accuracy.value:.0%} → {grown.accuracy.value:.0%} ({points_interval(gain)})",
    )


def _paired(worse: Sequence[float], better: Sequence[float]) -> Interval | None:
    """Loss saved on the same pieces of text; None where the pieces are not the same."""
    first, second = np.array(worse), np.array(better)
    if not worse or first.shape != second.shape or not np.isfinite(first - second).any():
        return None
    return paired_gain(first, second, seed=0)


def _mean(values: Sequence[float]) -> float:
    return float(np.nanmean(values))


def _finite(found: Interval) -> bool:
    return all(math.isfinite(value) for value in (found.value, found.low, found.high))
