"""The circuit breaker: stops a training that goes wrong, by pure arithmetic on what it is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

from scaler_wizard.events import Telegram
from scaler_wizard.intervals import wilson
from scaler_wizard.recipe import Breaker

LEAST_POINTS = 5
"""Fewer and the first rise of a healthy training counts as a slope: see docs/explanation/breaker.md."""
STEPS_AVERAGED = 5


class CircuitBreaker:
    """Remembers a rolling window of evaluations and a few steps; answers with a telegram when a limit is broken."""

    def __init__(self, settings: Breaker, *, base_accuracy: float | None = None) -> None:
        self._settings = settings
        self._floor = accuracy_floor(settings, base_accuracy)
        self._perplexities: list[float] = []
        self._first_nll: float | None = None
        self._losses: list[float] = []

    def observe(self, step: int, loss: float) -> Telegram | None:
        """After every optimiser step."""
        if not math.isfinite(loss):
            return _telegram("nonfinite", step, loss, None, f"The loss is {loss} at step {step}; training was stopped.")
        self._losses = [*self._losses, loss][-STEPS_AVERAGED:]
        if self._first_nll is None or len(self._losses) < STEPS_AVERAGED:
            return None
        mean, limit = sum(self._losses) / STEPS_AVERAGED, self._first_nll + self._settings.divergence
        if mean <= limit:
            return None
        return self._limit("divergence", step, mean, limit, f"The loss rose to {mean:.4g}; the limit is {limit:.4g}.")

    def observe_evaluation(
        self, step: int, nll: float, accuracy: float | None = None, asked: int | None = None
    ) -> Telegram | None:
        """After every evaluation: loss on calibration text in nats, accuracy of the probe where it ran.

        `asked` is the number of questions. The floor is broken where the upper end of the accuracy's 95 % interval is
        below it: ten questions decide nothing (`questions_needed`).
        """
        if not math.isfinite(nll):
            return _telegram("nonfinite", step, nll, None, f"The evaluation is {nll} at step {step}; it was stopped.")
        self._first_nll = nll if self._first_nll is None else self._first_nll
        self._perplexities = [*self._perplexities, math.exp(min(nll, 700.0))][-self._settings.window :]
        slope = relative_slope(self._perplexities)
        if slope is not None and slope > self._settings.slope:
            rise = f"{slope:.0%}" if slope < 100 else "more than 10,000%"  # a thousand digits say no more
            words = f"Perplexity rises {rise} per evaluation; the limit is {self._settings.slope:.0%}."
            return self._limit("slope", step, slope, self._settings.slope, words)
        if accuracy is not None and self._floor is not None and _at_most(accuracy, asked) < self._floor:
            words = f"Accuracy fell to {accuracy:.0%}; the floor is {self._floor:.0%}."
            return self._limit("accuracy", step, accuracy, self._floor, words)
        return None

    def _limit(self, cause: Any, step: int, value: float, limit: float, words: str) -> Telegram:
        return _telegram(cause, step, value, limit, words, hard=self._settings.action == "stop")

    def state(self) -> dict[str, Any]:
        """What it remembers, for a snapshot."""
        return {"perplexities": self._perplexities, "first_nll": self._first_nll, "losses": self._losses}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""
        self._perplexities = list(state["perplexities"])
        self._first_nll, self._losses = state["first_nll"], list(state["losses"])


def accuracy_floor(settings: Breaker, base: float | None) -> float | None:
    """The stricter of the fixed floor and the base less its margin; a base below the floor is held to itself only."""
    if base is None:
        return None
    own = base - settings.accuracy_margin
    return max(own, settings.accuracy_floor) if base >= settings.accuracy_floor else own


def _at_most(accuracy: float, asked: int | None) -> float:
    """The most that the accuracy may be, by its interval; itself where nothing says how many were asked."""
    return accuracy if not asked else wilson(round(accuracy * asked), asked).high


def questions_needed(base: float, margin: float) -> int:
    """Questions that show a fall of twice the margin: as many as put the upper end of its interval below the floor.

    `base` and `margin` are shares. At a base of 80 % and a margin of 5 points these are several hundred.
    """
    fallen = max(0.0, base - 2 * margin)
    for asked in range(10, 100_000, 10):
        if wilson(round(fallen * asked), asked).high < base - margin:
            return asked
    raise ValueError(f"a margin of {margin} is too small to be shown")


def fall_shown(settings: Breaker, base: float, asked: int) -> float | None:
    """The smallest fall of the accuracy, as a share, that so many questions show; None where they show none."""
    floor = accuracy_floor(settings, base)
    assert floor is not None
    shown = [right for right in range(asked + 1) if wilson(right, asked).high < floor]
    return base - max(shown) / asked if shown else None


def relative_slope(values: Sequence[float]) -> float | None:
    """Rise per evaluation as a share of the first value, by the median of all pairwise slopes (Theil and Sen).

    One spike moves a difference of ends, and a least-squares line; it does not move the median. None below five
    points.
    """
    if len(values) < LEAST_POINTS or values[0] <= 0:
        return None
    slopes = [(later - earlier) / (b - a) for (a, earlier), (b, later) in combinations(enumerate(values), 2)]
    return median(slopes) / values[0]


def _telegram(cause: Any, step: int, value: float, limit: float | None, words: str, *, hard: bool = True) -> Telegram:
    return Telegram(cause=cause, step=step, value=value, limit=limit, sentence=words, hard=hard)
