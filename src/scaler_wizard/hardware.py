"""What this machine has: processors, memory, disk, GPU; what cannot be found out is None."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psutil

from scaler_wizard.record import Record

GIB = 2**30


class Hardware(Record):
    """A machine as a plan sees it."""

    cpus: int
    """Processors that this process may use."""
    ram_bytes: int
    """Memory this process may use: the machine's, or its container's limit where that is lower."""
    ram_basis: str
    """Where that number comes from."""
    free_bytes: int
    """Memory that is free now."""
    gpu: str | None
    """Name of the largest GPU; None where none answers."""
    vram_bytes: int | None
    """Its memory; None where no GPU answers."""
    disk_free_bytes: int
    """Free space where runs are written."""


def detect(where: Path) -> Hardware:
    """Look at the machine; `where` is the folder that runs are written to (or its nearest existing parent)."""
    ram, basis = _ram()
    gpu, vram = _gpu()
    return Hardware(
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        ram_bytes=ram,
        ram_basis=basis,
        free_bytes=min(psutil.virtual_memory().available, ram),
        gpu=gpu,
        vram_bytes=vram,
        disk_free_bytes=shutil.disk_usage(_existing(where)).free,
    )


def _ram() -> tuple[int, str]:
    total = psutil.virtual_memory().total
    for limit_file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit_file.exists() and (text := limit_file.read_text().strip()).isdigit() and int(text) < total:
            return int(text), f"the container's limit ({limit_file})"
    return total, "the machine's memory"


def _gpu() -> tuple[str | None, int | None]:
    query = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=5).stdout
    except (FileNotFoundError, subprocess.SubprocessError):
        return None, None
    rows = [line.split(",", 1) for line in answer.splitlines() if "," in line]
    if not rows:
        return None, None
    mib, name = max(rows, key=lambda row: int(row[0]))
    return name.strip(), int(mib) * 2**20


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
