"""The `scaler` command as a test runs it, and the recipe of the smallest real run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from scaler_wizard.__main__ import main

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


def called(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the command does, in this process: for what it says and writes, not for how a process starts and ends."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    words = ["scaler", *map(str, arguments)]
    with (
        patch.object(sys, "argv", words),
        patch.object(sys, "stdin", io.StringIO()),
        patch.dict(os.environ, {"NO_COLOR": "1"} | environment),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
