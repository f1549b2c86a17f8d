"""Peak memory of a command and the processes it forks: resident in the first, plus private to the others."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PAUSE = 0.005  # seconds between two looks


def peak_bytes(command: Sequence[str]) -> int:
    """Run the command and look at its memory all the time; a look between two pauses may miss a short peak."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _field(process.pid, "Rss:") + sum(map(_private, _children(process.pid))))
        time.sleep(PAUSE)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def _private(process: int) -> int:
    return _field(process, "Private_Clean:") + _field(process, "Private_Dirty:")


def _children(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def _field(process: int, name: str) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.split(name)[1].split()[0]) * 1024 if name in text else 0
