"""Everything that a phase measures, on one model: short text, long text by position, truncation, needles, knowledge."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scaler_wizard.data import Tokens, windows
from scaler_wizard.evals.needle import Planted, ask, needle_grid, plant
from scaler_wizard.evals.perplexity import CHUNK, Floats, block_means, buckets, token_nll, truncated_nll
from scaler_wizard.evals.probe import probe
from scaler_wizard.intervals import paired_gain
from scaler_wizard.metrics import Bucket, Measurement, MeasureSpec, NeedleCell

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class _Long:
    """What one set of long windows says."""

    buckets: tuple[Bucket, ...] = ()
    needles: tuple[NeedleCell, ...] = ()
    tail: tuple[float, ...] = ()
    truncated: tuple[float, ...] = ()


def measure(
    model: Any,
    tokenizer: Any,
    *,
    held_out: list[Tokens],
    corpus: str,
    native: int,
    spec: MeasureSpec,
    progress: Progress,
    baseline: Measurement | None = None,
) -> Measurement:
    """Measure `model` on held-out documents as `spec` says.

    `native` is the base's window: what truncation keeps. The gain is against this model's own reading of truncated
    text where `spec.truncated` asks for that, else against the base's, from `baseline`. `progress` is told the share
    that is done and what is being done, after every piece of work.
    """
    begun = time.monotonic()
    progress(0.0, "loss on short text")
    short = token_nll(model, windows(held_out, spec.short_length, limit=spec.short_windows)).mean(axis=1)
    long = _long(model, tokenizer, held_out, native, spec, progress)
    answers = None
    if spec.probe is not None:
        progress(0.92, f"the {spec.probe} probe")
        answers = probe(model, tokenizer, spec.probe, items=spec.probe_items, seed=spec.seed)
    by: Literal["self", "base"] = "self" if long.truncated else "base"
    truncated = long.truncated or (() if baseline is None else baseline.truncated_blocks)
    comparable = len(truncated) == len(long.tail) > 0
    progress(1.0, "measured")
    return Measurement(
        corpus=corpus,
        native_length=native,
        target_length=spec.length,
        short_nll=float(short.mean()),
        short_nll_by_window=tuple(float(value) for value in short),
        buckets=long.buckets,
        tail_blocks=long.tail,
        truncated_blocks=long.truncated,
        truncation_by=by if comparable else None,
        context_gain=paired_gain(np.array(truncated), np.array(long.tail), seed=spec.seed) if comparable else None,
        needles=long.needles,
        probe=answers,
        seconds=time.monotonic() - begun,
    )


def _long(
    model: Any, tokenizer: Any, held_out: list[Tokens], native: int, spec: MeasureSpec, progress: Progress
) -> _Long:
    if spec.windows == 0:
        return _Long()
    text, keep, planted = _texts(tokenizer, held_out, spec)
    beyond = spec.length > native
    share = 0.7 if spec.truncated and beyond else 0.9
    needles: list[NeedleCell] = []
    nll = _read(model, tokenizer, text, planted, needles, spec, lambda part: progress(share * part, "long text"))
    truncated = None
    if spec.truncated and beyond:
        progress(share, "the same text, truncated")
        truncated = truncated_nll(model, text, native)
    if not spec.along:
        progress(0.85, "needles")
        needles += needle_grid(model, tokenizer, held_out, spec)
    tail = native // 2
    return _Long(
        buckets=buckets(nll, spec.bucket, keep=keep, truncated=truncated),
        needles=merged(needles),
        tail=_floats(block_means(nll[:, -tail:], keep[:, -tail:])) if beyond else (),
        truncated=() if truncated is None else _floats(block_means(truncated, keep[:, -tail:])),
    )


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _texts(
    tokenizer: Any, held_out: list[Tokens], spec: MeasureSpec
) -> tuple[Tokens, np.ndarray[Any, np.dtype[np.bool_]], list[Planted]]:
    """Long windows, which of their scored tokens are text, and the facts planted in them."""
    text = windows(held_out, spec.length, limit=spec.windows)
    if not spec.along:
        return text, np.ones((len(text), spec.length - 1), bool), []
    planted = [
        plant(tokenizer, row, length=spec.length, count=spec.needles, digits=spec.digits, seed=spec.seed + number)
        for number, row in enumerate(text)
    ]
    return np.stack([one.ids for one in planted]), np.stack([one.text[1:] for one in planted]), planted


def _read(
    model: Any,
    tokenizer: Any,
    long: Tokens,
    planted: list[Planted],
    needles: list[NeedleCell],
    spec: MeasureSpec,
    progress: Callable[[float], None],
) -> Floats:
    if not planted and spec.length <= CHUNK:
        whole: Floats = token_nll(model, long)
        return whole
    rows = []
    for number, row in enumerate(long):

        def visit(read: int, cache: Any, number: int = number) -> None:
            # later pieces look back further: their cost grows with what was read
            progress((number + (read / spec.length) ** 1.6) / len(long))
            if planted and read in spec.needle_lengths:
                needles.extend(ask(model, tokenizer, planted[number], read, cache))

        rows.append(token_nll(model, row[None], visit=visit, stops=spec.needle_lengths)[0])
    return np.stack(rows)


def merged(cells: list[NeedleCell]) -> tuple[NeedleCell, ...]:
    """Cells of the same length and depth, from several texts, as one."""
    groups: dict[tuple[int, float], list[NeedleCell]] = {}
    for cell in cells:
        groups.setdefault((cell.length, cell.depth), []).append(cell)
    return tuple(
        NeedleCell(
            length=length,
            depth=depth,
            found=sum(cell.found for cell in group),
            asked=sum(cell.asked for cell in group),
            nll=float(np.average([cell.nll for cell in group], weights=[cell.asked for cell in group])),
        )
        for (length, depth), group in sorted(groups.items())
    )
