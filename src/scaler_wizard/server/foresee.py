"""What past runs say of a wish: fitted when it is first asked for, and again a while after; never in a plan's way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.learn import LEAST, Memory, expected, gathered, remember
from scaler_wizard.phases import Plan
from scaler_wizard.server.wire import Expected

FRESH_SECONDS = 120.0


class Foresight:
    """The runs of one folder, as a memory of their outcomes."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._until = 0.0
        self._known: Memory | None = None
        self._count = 0

    def of(self, plan: Plan) -> Expected:
        """The band that four of five runs like this plan lay in; nulls and the reason where it is not known."""
        try:
            known, count = self._remembered()
        except ScalerError as error:
            return _unknown(f"not known: {error.wrong}; {error.cure}")
        if known is None:
            return _unknown(f"not known: {count} runs so far, from {LEAST} on")
        band = expected(plan, known)
        if band is None:
            return _unknown("not known: unlike every run so far")
        return Expected(low=band.low, middle=band.middle, high=band.high, basis=f"four of five of {count} runs")

    def _remembered(self) -> tuple[Memory | None, int]:
        with self._lock:
            if time.monotonic() > self._until:
                past = gathered(self._runs)
                self._known, self._count = remember(past), len(past)
                self._until = time.monotonic() + FRESH_SECONDS
            return self._known, self._count


def _unknown(why: str) -> Expected:
    return Expected(low=None, middle=None, high=None, basis=why)
