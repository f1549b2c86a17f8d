"""What a process and its children use now: memory, processors, GPU memory."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

KEPT = Path("/proc/thread-self/children")
"""There where the kernel lists the children of every thread."""


@dataclass(frozen=True)
class Used:
    """One look."""

    ram_bytes: int
    cpu_percent: float | None
    """Of all processors, since the look before; None at the first."""
    vram_bytes: int | None
    """None without a GPU."""
    cpu_seconds: float
    """Processor time since the process began, its children's included."""


def high_water(pid: int) -> int | None:
    """The most memory that was resident in a process since its program began (Linux); None elsewhere or afterwards.

    What `wait4` tells includes the time before exec, when a child still was as large as its parent.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


class Meter:
    """Looks at one process tree, again and again."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before: tuple[float, float] | None = None

    def look(self) -> Used:
        """Everything that can be found out now; a process that has ended uses nothing."""
        family = _family(self._pid)
        spent = sum(map(_spent, family))
        return Used(_ram(family), self._cpu(family), vram_of({process.pid for process in family}), spent)

    def ram(self) -> int:
        """Resident memory alone: cheap enough to look at ten times a second."""
        return _ram(_family(self._pid))

    def _cpu(self, family: list[psutil.Process]) -> float | None:
        now, busy = time.monotonic(), sum(map(_busy, family))
        before, self._before = self._before, (now, busy)
        if before is None or now <= before[0]:
            return None
        share = (busy - before[1]) / (now - before[0]) / (psutil.cpu_count() or 1)
        return min(100.0, max(0.0, 100 * share))


def idle_processors(cpus: int, *, seconds: float = 0.25) -> int:
    """How many of `cpus` have nothing to do, at least one.

    Two threads on processors that are busy wait for each other at every step, and are several times slower than one.
    """
    return max(1, min(cpus, round(cpus * (1 - psutil.cpu_percent(seconds) / 100))))


def _family(pid: int) -> list[psutil.Process]:
    family = []
    for one in (pid, *_descendants(pid)):
        with suppress(psutil.NoSuchProcess):
            family.append(psutil.Process(one))
    return family


def _descendants(pid: int) -> list[int]:
    """By the kernel's own lists where it keeps them; psutil would look at every process of the machine."""
    if not KEPT.exists():
        with suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return []
    found: list[int] = []
    for parent in chain([pid], found):  # grows while it is read
        with suppress(OSError):  # it has ended
            for file in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, file.read_text(encoding="ascii").split())
    return found


def _ram(family: list[psutil.Process]) -> int:
    total = 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended between the two looks
    return total


def _busy(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _spent(process: psutil.Process) -> float:
    """Also by children that have ended already."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)  # Linux alone knows
    return float(times.user + times.system + ended)


def vram_of(pids: set[int]) -> int | None:
    """GPU memory of these processes on all GPUs; None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        running = [one for handle in handles for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return sum(one.usedGpuMemory or 0 for one in running if one.pid in pids)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
