"""The rungs from the native window to the wished one, which of them is worth keeping, and a ladder that ends early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scaler_wizard.gate import needle_share, short_rise, tokens
from scaler_wizard.metrics import Measurement, MeasureSpec
from scaler_wizard.phases import Phase, Train
from scaler_wizard.recipe import GateLimits


def ladder(native: int, target: int, *, jump: float = 2.0) -> tuple[int, ...]:
    """Windows on the way from `native` (excluded) to `target` (included), each at most `jump` times the one before."""
    rungs: list[int] = []
    window = native
    while window < target:
        window = min(int(window * jump), target)
        rungs.append(window)
    return tuple(rungs)


def shortened(phase: Phase, window: int) -> Phase:
    """The same phase on a ladder that ended at `window`: as many tokens are trained, none of them farther away."""
    change, spec = phase.change, phase.measure
    if isinstance(change, Train) and change.window > window:
        times = change.window // window
        more = {"windows_per_step": change.windows_per_step * times, "micro_batch": change.micro_batch * times}
        change = change.model_copy(update={"window": window, **more})
    return phase.model_copy(update={"change": change, "measure": None if spec is None else _nearer(spec, window)})


def _nearer(spec: MeasureSpec, window: int) -> MeasureSpec:
    """Against this model's own truncated reading: the base's was taken at the end of longer text."""
    if spec.length <= window:
        return spec
    lengths = tuple(sorted({length for length in spec.needle_lengths if length < window} | {window}))
    bucket = max(16, spec.bucket * window // spec.length)
    changes = {"length": window, "bucket": bucket, "truncated": True, "needle_lengths": lengths}
    return spec.model_copy(update=changes)


@dataclass(frozen=True)
class SweetSpot:
    """Where to stop."""

    window: int
    """Tokens; the native window where no rung is worth keeping."""
    why: str
    """What ends the climb, or that nothing does, in one sentence."""


def sweet_spot(baseline: Measurement, rungs: Sequence[Measurement], limits: GateLimits) -> SweetSpot:
    """The longest rung up to which nothing is outside its limit, and the figure that ends the climb.

    A rung is judged by loss on short text against the base, by its gain over truncation and by needles at its length.
    """
    best = baseline.native_length
    for rung in sorted(rungs, key=lambda measured: measured.target_length):
        wrong = _wrong(baseline, rung, limits)
        if wrong is not None:
            return SweetSpot(best, f"Stop at {tokens(best)}: at {tokens(rung.target_length)} {wrong}.")
        best = rung.target_length
    return SweetSpot(best, f"{tokens(best)} is within every limit; longer windows were not tried.")


def _wrong(baseline: Measurement, rung: Measurement, limits: GateLimits) -> str | None:
    rise = short_rise(baseline, rung)
    if rise is not None and rise > limits.short_regression:
        return f"loss on short text is {rise:.3f} nats per token higher (limit {limits.short_regression:g})"
    gain = rung.context_gain
    if gain is not None and -gain.value > limits.truncation_loss:
        return (
            f"the window is {-gain.value:.3f} nats per token worse than truncation (limit {limits.truncation_loss:g})"
        )
    near, far = needle_share(rung, rung.native_length), needle_share(rung, rung.target_length)
    if near is not None and far is not None and far < limits.needle_share * near:
        return f"{far:.0%} of the needles are found, {near:.0%} in the native window"
    return None
