"""What a container may use of its machine: memory and processor limits of Linux control groups, versions 1 and 2.

A limit may stand on this process's group or on any group above it; the lowest counts. Files that a container does not
show are passed over. Formats: kernel documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMORY_FILES = ("memory.max", "memory.limit_in_bytes")
USED_FILES = ("memory.current", "memory.usage_in_bytes")


@dataclass(frozen=True)
class Limit:
    """A number and the file that sets it."""

    value: int
    basis: str
    folder: Path


def memory_limit(root: Path = Path("/")) -> Limit | None:
    """Lowest memory limit in bytes; None where no file sets one. Version 1 writes "no limit" as nearly 2**63."""
    found = []
    for folder in _groups(root, "memory"):
        for name in MEMORY_FILES:
            text = _text(folder / name)
            if text is not None and text.isdigit() and int(text) < 2**62:
                found.append(Limit(int(text), f"the container's limit (/{(folder / name).relative_to(root)})", folder))
    return min(found, key=lambda limit: limit.value, default=None)


def memory_used(limit: Limit) -> int | None:
    """Bytes that count against a limit and cannot simply be dropped: what is used, less file pages not in use."""
    used = next((text for name in USED_FILES if (text := _text(limit.folder / name)) is not None), None)
    if used is None or not used.isdigit():
        return None
    rows = (line.split() for line in (_text(limit.folder / "memory.stat") or "").splitlines())
    stat = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    return max(0, int(used) - stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def processor_quota(root: Path = Path("/")) -> Limit | None:
    """Whole processors' worth of time that a quota leaves, at least 1; None where there is no quota."""
    found = []
    for folder in _groups(root, "cpu"):
        for name, quota in _quotas(folder):
            whole = max(1, math.floor(quota))
            found.append(Limit(whole, f"a quota of {quota:g} (/{(folder / name).relative_to(root)})", folder))
    return min(found, key=lambda limit: limit.value, default=None)


def _quotas(folder: Path) -> Iterator[tuple[str, float]]:
    both = (_text(folder / "cpu.max") or "").split()
    if len(both) == 2 and all(part.isdigit() for part in both):
        yield "cpu.max", int(both[0]) / int(both[1])
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if quota is not None and quota.isdigit() and period is not None and period.isdigit():
        yield "cpu.cfs_quota_us", int(quota) / int(period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and of the ones above it, in both versions."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = top / path.strip("/")
        while True:
            yield group
            if group == top:
                break
            group = group.parent


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:  # absent, or hidden from this container
        return None
