"""The learning rate over the steps of a training, and a search for its peak."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scaler_wizard.phases import RATES_TRIED, Train

DECAY_SHARE = 0.2
"""Part of a warm-up, stable, decay schedule that decays."""
TRIED_SPAN = 30.0
"""A search goes from the expected peak over this to the peak times this."""
SMOOTHED = 5
"""Neighbouring steps whose gains are averaged."""


def learning_rate(settings: Train, step: int) -> float:
    """Linear warm-up, then the schedule; `step` counts from 0. Adapters that begin anew warm up again."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    since = step - max((at for at in restarts(settings) if at <= step), default=0)
    return _scheduled(settings, step) * min(1.0, (since + 1) / max(1, settings.warmup_steps))


def restarts(settings: Train) -> tuple[int, ...]:
    """Steps before which adapters are merged and begun anew: at even intervals."""
    parts = settings.lora_restarts + 1
    return tuple(sorted({settings.steps * number // parts for number in range(1, parts)} - {0}))


def _scheduled(settings: Train, step: int) -> float:
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * SCHEDULES[settings.schedule](done)


def cosine(done: float) -> float:
    """Down to a tenth (arXiv:2203.15556)."""
    return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2


def stable(done: float) -> float:
    """Warm-up, stable, decay: constant, then down to 0 as 1 - sqrt in the last fifth (arXiv:2405.18392).

    A training can be continued from its stable part, and its length need not be known before.
    """
    return 1 - math.sqrt(max(0.0, done - (1 - DECAY_SHARE)) / DECAY_SHARE)


SCHEDULES = {"cosine": cosine, "wsd": stable}


# -- a search for the peak --------------------------------------------------------------------------------------------


def tried_rates(expected: float) -> list[float]:
    """Rates around an expected one, each a constant times the last (the range test of arXiv:1506.01186)."""
    return [float(expected * TRIED_SPAN ** (2 * number / (RATES_TRIED - 1) - 1)) for number in range(RATES_TRIED)]


def chosen_rate(rates: Sequence[float], gains: Sequence[float]) -> float:
    """The rate of the steepest rise of the gain before its peak.

    `gains` are nats that each step's own batch is better by than at the beginning, so that easy and hard batches weigh
    the same; neighbours are averaged. A peak at once means that every rate is too high: the lowest.
    """
    half = SMOOTHED // 2
    smooth = [sum(part) / len(part) for part in (gains[max(0, at - half) : at + half + 1] for at in range(len(gains)))]
    peak = max(range(len(smooth)), key=smooth.__getitem__)
    rises = [smooth[at + 1] - smooth[at] for at in range(peak)]
    return rates[max(range(peak), key=rises.__getitem__) + 1] if rises else rates[0]
