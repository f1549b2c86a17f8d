"""The learning rate over the steps of a training, and a search for its peak."""

from __future__ import annotations

import math

from scaler_wizard.phases import Train

DECAY_SHARE = 0.2
"""Part of a warm-up, stable, decay schedule that decays."""


def learning_rate(settings: Train, step: int) -> float:
    """Linear warm-up, then the schedule; `step` counts from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
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
