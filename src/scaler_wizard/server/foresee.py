"""What past runs say of a wish: fitted when it is first asked for, and again when there are new ones."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.experience import Experience
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
        self._past: tuple[Experience, ...] | None = None
        self._known: Memory | None = None

    def of(self, plan: Plan) -> Expected:
        """The band that four of five runs like this plan lay in; nulls and the reason where it is not known."""
        try:
            with self._lock:
                return self._told(plan)
        except ScalerError as error:
            return _unknown(f"not known: {error.wrong}; {error.cure}")

    def _told(self, plan: Plan) -> Expected:
        known, count = self._remembered()
        if known is None:
            return _unknown(f"not known: {count} runs so far, from {LEAST} on")
        band = expected(plan, known)
        if band is None:
            return _unknown("not known: unlike every run so far")
        return Expected(low=band.low, middle=band.middle, high=band.high, basis=f"four of five of {count} runs")

    def _remembered(self) -> tuple[Memory | None, int]:
        if time.monotonic() > self._until:
            if (past := gathered(self._runs)) != self._past:
                self._known, self._past = remember(past), past
            self._until = time.monotonic() + FRESH_SECONDS
        return self._known, len(self._past or ())


def _unknown(why: str) -> Expected:
    return Expected(low=None, middle=None, high=None, basis=why)
