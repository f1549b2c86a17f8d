"""Named points where a test can make a process fail: killed, out of space, slow. Off unless SCALER_FAILPOINTS is set.

The variable holds `point=action` pairs with commas between them. A point is a name that stands in a call of `reach`,
or `*` for any. Actions: `kill` (SIGKILL), `full` (no space left), `slow:SECONDS`, `trace:FILE` (write the name down).
`@n` behind an action waits for the n-th time: `commit.renamed=kill@2`, `*=kill@37`.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "SCALER_FAILPOINTS"


class _Armed:
    """The actions that wait for their points."""

    def __init__(self, text: str) -> None:
        self._actions = dict(pair.split("=", 1) for pair in text.split(",") if pair)
        self._reached: Counter[str] = Counter()

    def reach(self, point: str) -> None:
        for name in (point, "*"):
            if (action := self._actions.get(name)) is not None:
                self._reached[name] += 1
                what, _, nth = action.partition("@")
                if not nth or self._reached[name] == int(nth):
                    _act(what, point)


def _act(what: str, point: str) -> None:
    what, _, argument = what.partition(":")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "full":
        raise OSError(errno.ENOSPC, f"no space left on device (failpoint {point})")
    elif what == "slow":
        time.sleep(float(argument))
    elif what == "trace":
        with Path(argument).open("a", encoding="utf-8") as trace:
            trace.write(f"{point}\n")
    else:
        raise ValueError(f"{VARIABLE}: {what}: no such action")


def arm(text: str) -> None:
    """Take the actions from `text`; an empty one disarms."""
    global _armed
    _armed = _Armed(text) if text else None


def reach(point: str) -> None:
    """A named point; nothing happens here outside a test of faults."""
    if _armed is not None:
        _armed.reach(point)


_armed: _Armed | None = None
arm(os.environ.get(VARIABLE, ""))
