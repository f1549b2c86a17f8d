"""The rungs from the native window to the wished one."""

from __future__ import annotations


def ladder(native: int, target: int, *, jump: float = 2.0) -> tuple[int, ...]:
    """Windows on the way from `native` (excluded) to `target` (included), each at most `jump` times the one before."""
    rungs: list[int] = []
    window = native
    while window < target:
        window = min(int(window * jump), target)
        rungs.append(window)
    return tuple(rungs)
