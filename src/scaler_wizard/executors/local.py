"""Run a worker as a child of this process."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
WORKER = (sys.executable, "-m", "scaler_wizard.worker")
_PR_SET_PDEATHSIG = 1


def start(task: Path, log: Path, *, threads: int, command: Sequence[str] = WORKER) -> subprocess.Popen[str]:
    """Start a worker on `task`; its events come on stdout, its talk goes to `log`."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads made steps several times slower on a busy machine
        **allocation(),
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


def allocation() -> dict[str, str]:
    """How glibc allocates large tensors in a worker (docs/log.md).

    As it comes, it gives them back at every free and faults their small pages in again at every step. Kept, they leave
    holes, and recomputed activations take three times their size. Where huge pages can be had (glibc 2.35 for the wish,
    Linux for the pages) each comes and goes by itself, at little cost.
    """
    if _has_huge_pages():
        settings = {"hugetlb": 1, "mmap_threshold": 2**20, "trim_threshold": 2**32}
        return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in settings.items())}
    return {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def _has_huge_pages() -> bool:
    library, version = platform.libc_ver()
    modern = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    return modern and HUGE_PAGES.exists() and "[never]" not in HUGE_PAGES.read_text(encoding="ascii")


def _tie_to_parent() -> None:
    """In the child: end when the parent dies, be the first to go when memory runs out."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
