"""Plans of runs, read once for each change of their file: pages that watch ask every few seconds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from scaler_wizard.phases import Plan
from scaler_wizard.plan import on_its_base
from scaler_wizard.safe_yaml import load_yaml

KEPT = 256


def plan_of(run: Path) -> Plan:
    """The plan in a run folder. Raises ScalerError where it cannot be read, or its base is gone or another one."""
    file = run / "plan.yaml"
    return on_its_base(_read(file, file.stat().st_mtime_ns if file.is_file() else 0), file.name)


@lru_cache(maxsize=KEPT)
def _read(file: Path, changed_ns: int) -> Plan:
    return Plan.read(load_yaml(file), file.name)
