"""The `scaler` command as a test runs it, and the recipe of the smallest real run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RECIPE = """\
model: embedded
parameters: 1.2x
context: 2x
extend: {search: false}
heal: {tokens: 8192, window: 128, learning_rate: 1e-4}
measure: {windows: 4, needles: 8}
limits: {threads: 1}
"""


def scaler(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The `scaler` command in a process of its own, with nobody at the terminal."""
    return subprocess.run(
        [sys.executable, "-m", "scaler_wizard", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"NO_COLOR": "1"} | environment,
    )
