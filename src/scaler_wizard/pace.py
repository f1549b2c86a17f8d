"""Time left of a run: the running phase by its own pace, the phases to come by the plan, corrected by those done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scaler_wizard.events import Progress
from scaler_wizard.phases import Phase


class Pace:
    """Told when a phase starts, moves and ends; answers with the seconds left, or None while they are unknown."""

    def __init__(self, phases: Sequence[Phase], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._phases, self._clock = phases, clock
        self._running: Phase | None = None
        self._left: float | None = None
        self._begun = self._heard = clock()
        self._took: list[tuple[float, float]] = []
        """(measured, estimated) seconds of the phases that are done."""

    def start(self, phase: Phase) -> None:
        """A phase begins."""
        self._running, self._left = phase, phase.estimate.seconds
        self._begun = self._heard = self._clock()

    def progress(self, event: Progress) -> None:
        """The worker says how far it is."""
        if event.seconds_left is not None:
            self._left, self._heard = event.seconds_left, self._clock()

    def done(self) -> None:
        """The running phase has ended."""
        if self._running is not None and self._running.estimate.seconds:
            self._took.append((self._clock() - self._begun, self._running.estimate.seconds))

    def seconds_left(self) -> float | None:
        """Of the whole run."""
        if self._running is None or self._left is None:
            return None
        to_come = [phase.estimate.seconds for phase in self._phases if phase.number > self._running.number]
        if any(seconds is None for seconds in to_come):
            return None
        here = max(0.0, self._left - (self._clock() - self._heard))
        return here + self._correction() * sum(seconds or 0.0 for seconds in to_come)

    def _correction(self) -> float:
        """How much longer than planned the phases so far took."""
        estimated = sum(estimate for _, estimate in self._took)
        return sum(measured for measured, _ in self._took) / estimated if estimated else 1.0
