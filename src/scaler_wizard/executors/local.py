"""Run a worker as a child of this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scaler_wizard.tied import die_with_parent

WORKER = (sys.executable, "-m", "scaler_wizard.worker")
MEMORY = {
    # glibc gives large tensors back to the system at every free, and faults their pages in again at every step; only
    # the few of 64 MiB and more are mapped by themselves: among the others they would leave holes of their size
    "MALLOC_MMAP_THRESHOLD_": str(2**26),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    # oneDNN and torch's layer over it keep half a MiB for each of the last 1,024 shapes that they multiplied; this is
    # enough for a layer's own products, and pieces of text have ever new lengths
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
}
"""How a worker's process keeps memory."""


def start(task: Path, log: Path, *, threads: int, command: Sequence[str] = WORKER) -> subprocess.Popen[str]:
    """Start a worker on `task`; its events come on stdout, its talk goes to `log`."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads made steps several times slower on a busy machine
        **MEMORY,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("a", encoding="utf-8") as talk:
        return subprocess.Popen(
            [*command, str(task)],
            stdout=subprocess.PIPE,
            stderr=talk,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
            preexec_fn=_tie_to_parent if sys.platform == "linux" else None,
        )


def _tie_to_parent() -> None:
    """In the child: end when the parent dies, be the first to go when memory runs out."""
    die_with_parent()
    Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
