"""Judge what a phase made: one verdict, one canonical sentence, and the reasons with their figures and limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from scaler_wizard.intervals import share_gain, wilson
from scaler_wizard.metrics import Interval, Measurement, NeedleCell
from scaler_wizard.recipe import GateLimits
from scaler_wizard.record import Record

LONGEST = 120
Kind = Literal["baseline", "grow", "extend", "heal", "merge", "export"]


class Verdict(Record):
    """What a gate says."""

    action: Literal["pass", "ask", "rollback"]
    """pass: within every limit; ask: a person must decide; rollback: not fit to be kept."""
    sentence: Annotated[str, Field(max_length=LONGEST)]
    """The canonical sentence."""
    reasons: tuple[str, ...] = ()
    """What is outside a limit, each with its figure."""


@dataclass(frozen=True)
class Change:
    """What a phase did, as its gate needs to know it."""

    kind: Kind
    title: str
    """In a few words: "window 8K -> 16K"."""
    exact: bool
    """Whether the phase promised to keep the function."""
    next: str | None
    """Title of the phase that follows; None at the end."""
    healed_later: bool = False
    """Whether a later phase trains the model; a rung that is not the last word is judged by the limits for rungs."""


def stopped(sentence: str, *, step: int, steps: int, kept: int) -> Verdict:
    """What is asked when the breaker has stopped a training at `step`: keep the model of the last good step?"""
    words = f"Training was stopped at step {step} of {steps}; approve keeps step {kept}, abort undoes the phase."
    return Verdict(action="ask", sentence=fit([words], "; "), reasons=(sentence,))


def judge(
    change: Change,
    *,
    baseline: Measurement | None,
    before: Measurement | None,
    after: Measurement | None,
    evidence: Mapping[str, Any],
    limits: GateLimits,
) -> Verdict:
    """May the phase's model be kept? `baseline` is the base's measurement, `before` that of the checkpoint before."""
    fatal = list(_fatal(change, after, evidence))
    if fatal:
        return Verdict(action="rollback", sentence=fit([f"{change.title} is not kept", fatal[0]], ": "), reasons=fatal)
    fusion = evidence.get("merge")
    reasons = [*_losing(fusion), *outside(change, baseline, after, evidence, limits)]
    sentence = canonical(change, baseline, before, after, asks=bool(reasons), fusion=fusion)
    return Verdict(action="ask" if reasons else "pass", sentence=sentence, reasons=tuple(reasons))


# -- limits ----------------------------------------------------------------------------------------------------------


def _fatal(change: Change, after: Measurement | None, evidence: Mapping[str, Any]) -> Iterator[str]:
    proof = evidence.get("proof")
    if change.exact and (proof is None or not proof.get("passed")):
        yield "the proof that the function is kept " + ("failed" if proof else "is missing")
    if after is not None and any(not math.isfinite(value) for value in _losses(after)):
        yield "a loss is not a finite number"


def _losses(measured: Measurement) -> list[float]:
    losses = [bucket.nll for bucket in measured.buckets]
    return losses if measured.short_nll is None else [measured.short_nll, *losses]


def outside(
    change: Change,
    baseline: Measurement | None,
    after: Measurement | None,
    evidence: Mapping[str, Any],
    limits: GateLimits,
) -> Iterator[str]:
    """What is outside a limit, each with its figure."""
    if change.kind == "export":
        return
    yield from _native(change, evidence)
    if after is None:
        yield "nothing was measured, so nothing is known"
        return
    if baseline is None:
        return
    limits = _for_rung(limits) if change.kind == "extend" and change.healed_later else limits
    yield from _short(baseline, after, limits)
    yield from _knowledge(baseline, after, limits)
    if change.kind in ("extend", "heal", "merge"):
        yield from _long(baseline, after, limits)


def _losing(fusion: Mapping[str, Any] | None) -> Iterator[str]:
    """Where a merge is worse than the best of its parents, beyond chance."""
    for domain in fusion["judgement"]["domains"] if fusion else ():
        worse = [one for one in domain["measures"] if one["gain"]["high"] < 0] if domain["counts"] else []
        for one in worse:
            lost = f"{-one['gain']['value']:.3f} nats per token" if one["what"] == "loss" else ""
            lost = lost or f"{-100 * one['gain']['value']:.1f} points of accuracy"
            yield f"the merge loses {lost} on {domain['name']} against {one['best']}, its best parent there"


def _native(change: Change, evidence: Mapping[str, Any]) -> Iterator[str]:
    """A base that reads less than the plan starts from: the ladder's first rung would be more than it says."""
    found = evidence.get("native")
    if change.kind == "baseline" and found is not None and found["measured"] < found["claimed"]:
        yield (
            f"the model reads {tokens(found['measured'])} well, not the {tokens(found['claimed'])} that the ladder "
            "starts from; make the plan again: it will start there"
        )


def _for_rung(limits: GateLimits) -> GateLimits:
    """What a rung may lose before it is healed; never stricter than what counts in the end."""
    return limits.model_copy(
        update={
            "short_regression": max(limits.rung_regression, limits.short_regression),
            "truncation_loss": max(limits.rung_truncation_loss, limits.truncation_loss),
        }
    )


def _short(baseline: Measurement, after: Measurement, limits: GateLimits) -> Iterator[str]:
    rise = short_rise(baseline, after)
    if rise is not None and rise > limits.short_regression:
        yield f"loss on short text rose by {rise:.3f} nats per token; the limit is {limits.short_regression:g}"


def _knowledge(baseline: Measurement, after: Measurement, limits: GateLimits) -> Iterator[str]:
    if baseline.probe is None or after.probe is None:
        return
    fall = baseline.probe.accuracy.value - after.probe.accuracy.value
    if fall > limits.accuracy_drop and after.probe.accuracy.value < baseline.probe.accuracy.low:
        yield f"accuracy fell by {fall:.1%} in {after.probe.asked} questions; the limit is {limits.accuracy_drop:.0%}"


def _long(baseline: Measurement, after: Measurement, limits: GateLimits) -> Iterator[str]:
    if after.context_gain is not None and -after.context_gain.value > limits.truncation_loss:
        yield (
            f"the long window is {-after.context_gain.value:.3f} nats per token worse than truncation; "
            f"the limit is {limits.truncation_loss:g}"
        )
    before = _found(baseline, baseline.native_length)
    for length in sorted({baseline.native_length, after.target_length}):
        now = _found(after, length)
        if before is None or now is None or share_gain(before, now).high >= 0:
            continue  # not asked, or few questions: 0 of 16 and 2 of 16 are the same
        if now.value < limits.needle_share * before.value:
            here = f"{now.value:.0%} of the needles are found at {tokens(length)}"
            yield f"{here}; the base finds {before.value:.0%} in its window"


def _found(measured: Measurement, length: int) -> Interval | None:
    """Share of facts found at `length`, with its interval; None where none was asked for."""
    cells = needle_cells(measured, length)
    asked = sum(cell.asked for cell in cells)
    return wilson(sum(cell.found for cell in cells), asked) if asked else None


# -- figures that others show as well --------------------------------------------------------------------------------


def short_rise(baseline: Measurement, after: Measurement) -> float | None:
    """Rise of the loss on the same short windows, nats per token."""
    if not baseline.short_nll_by_window or not after.short_nll_by_window:
        return None
    pairs = list(zip(baseline.short_nll_by_window, after.short_nll_by_window, strict=False))
    return sum(late - early for early, late in pairs) / len(pairs)


def needle_cells(measured: Measurement, length: int) -> list[NeedleCell]:
    """Cells at the longest needle length that is not above `length`."""
    lengths = sorted({cell.length for cell in measured.needles if cell.length <= length})
    return [cell for cell in measured.needles if lengths and cell.length == lengths[-1]]


def needle_share(measured: Measurement, length: int) -> float | None:
    """Share of facts found at `length` (or the nearest length below it); None where none was asked for."""
    cells = needle_cells(measured, length)
    asked = sum(cell.asked for cell in cells)
    return sum(cell.found for cell in cells) / asked if asked else None


def context_retention(measured: Measurement) -> float | None:
    """Share of facts found at the longest window."""
    return needle_share(measured, measured.target_length)


def vibe(baseline: Measurement, after: Measurement) -> float | None:
    """How much of the base's skill is kept, 0..1: the mean over measured domains of min(1, after / base).

    Domains: perplexity on short text (base / after), needles inside the native window, accuracy of the probe.
    """
    kept = []
    rise = short_rise(baseline, after)
    if rise is not None and math.isfinite(rise):
        kept.append(math.exp(-max(0.0, rise)))
    near = needle_share(baseline, baseline.native_length), needle_share(after, baseline.native_length)
    if near[0] and near[1] is not None:
        kept.append(min(1.0, near[1] / near[0]))
    if baseline.probe and after.probe and baseline.probe.accuracy.value:
        kept.append(min(1.0, after.probe.accuracy.value / baseline.probe.accuracy.value))
    return sum(kept) / len(kept) if kept else None


def fused_vibe(evidence: Mapping[str, Any] | None) -> float | None:
    """What a merge is worth against its parents (docs/explanation/merging.md); None where nothing was merged."""
    fusion = (evidence or {}).get("merge")
    return None if fusion is None else float(fusion["judgement"]["vibe"]["value"])


# -- the sentence ----------------------------------------------------------------------------------------------------


def canonical(
    change: Change,
    baseline: Measurement | None,
    before: Measurement | None,
    after: Measurement | None,
    *,
    asks: bool,
    fusion: Mapping[str, Any] | None = None,
) -> str:
    """What was done, what was measured, what comes next: at most 120 characters."""
    figures = [*_fused(fusion), *_figures(change, baseline, before, after)]
    ending = f"; {change.next} next" if change.next else "; the run is complete"
    ending += "; approve?" if asks or change.next else "."
    while figures and len(f"{change.title} done: {', '.join(figures)}{ending}") > LONGEST:
        figures.pop()
    if figures:
        return f"{change.title} done: {', '.join(figures)}{ending}"
    return fit([f"{change.title} done", *ending.strip("; .").split("; ")], "; ")


def _fused(fusion: Mapping[str, Any] | None) -> Iterator[str]:
    """What a merge is worth against its parents."""
    if fusion is None:
        return
    domains = fusion["judgement"]["domains"]
    losing = [one for one in domains if one["counts"] and any(m["gain"]["high"] < 0 for m in one["measures"])]
    yield f"loses to its best parent in {len(losing)} of {len(domains)} domains" if losing else "loses to no parent"
    yield f"vibe {fusion['judgement']['vibe']['value']:.2f}"


def _figures(
    change: Change, baseline: Measurement | None, before: Measurement | None, after: Measurement | None
) -> Iterator[str]:
    """The most telling first, since the last ones are dropped when the sentence is too long."""
    if after is None:
        return
    if change.kind == "baseline" and after.short_nll is not None:
        yield f"perplexity {math.exp(min(after.short_nll, 700)):.3g}"
    elif baseline is not None and (rise := short_rise(baseline, after)) is not None:
        yield f"short loss {rise:+.3f}"
    cells = needle_cells(after, after.target_length)
    if cells:
        found, asked = sum(cell.found for cell in cells), sum(cell.asked for cell in cells)
        yield f"needles {found}/{asked} at {tokens(cells[0].length)}"
    if after.context_gain is not None:
        yield f"{after.context_gain.value:+.3f} vs truncation"
    if after.probe is not None:
        yield f"accuracy {after.probe.accuracy.value:.0%}"
    if before is not None and baseline is not None and before != baseline:
        late = short_rise(before, after)
        if late is not None:
            yield f"{late:+.3f} vs before"


def tokens(count: int) -> str:
    """A number of tokens as people say it: 8K, 512."""
    return f"{count // 1024}K" if count >= 1024 and count % 1024 == 0 else str(count)


def fit(clauses: Sequence[str], joint: str) -> str:
    """As many clauses as fit into 120 characters; whole words, even where the first is too long."""
    kept = list(clauses)
    while len(kept) > 1 and len(joint.join(kept)) > LONGEST:
        kept.pop()
    sentence = joint.join(kept)
    return sentence if len(sentence) <= LONGEST else sentence[: LONGEST - 1].rsplit(" ", 1)[0] + "…"
