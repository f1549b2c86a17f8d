"""The quick-glance strip: where a run stands, in at most 80 columns; what is unknown is left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

WIDTH = 80


@dataclass
class Glance:
    """What the strip shows."""

    stage: str = "P0"
    status: str = "ok"
    doing: str = ""
    perplexity_change: float | None = None
    """Against the base, as a share."""
    accuracy: float | None = None
    vibe: float | None = None
    memory: tuple[float, float] | None = None
    """Used and allowed, GiB."""
    memory_name: str = "RAM"
    minutes_left: float | None = None
    gate: datetime | None = None
    """When the open gate turns into a pause."""


def strip(glance: Glance) -> str:
    """One line; the least important parts are left out first where it would be too long."""
    parts = [part for part in _parts(glance) if part]
    head = f"[{glance.stage}] {glance.status}"
    while parts and len("|".join([head, *parts])) > WIDTH:
        parts.pop(0)
    return "|".join([head, *parts])


def _parts(glance: Glance) -> list[str]:
    """Least important first, since these are dropped first; time left and the gate's deadline come last."""
    change, left = glance.perplexity_change, glance.minutes_left
    return [
        glance.doing,
        "" if glance.vibe is None else f"vibe {glance.vibe:.2f}",
        "" if glance.accuracy is None else f"acc {glance.accuracy:.2f}",
        "" if change is None else (f"ppl{change:+.2f}" if math.isfinite(change) else "ppl not finite"),
        "" if glance.memory is None else f"{glance.memory_name} {glance.memory[0]:.1f}/{glance.memory[1]:.0f}G",
        "" if left is None else (f"{left:.0f}m left" if left >= 1 else f"{max(0.0, left) * 60:.0f}s left"),
        "" if glance.gate is None else f"gate {glance.gate:%H:%M}",
    ]
