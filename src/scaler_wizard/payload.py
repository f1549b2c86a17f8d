"""The cockpit's payload, read from a run folder and checked against its JSON Schema at every emission."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

from scaler_wizard.breaker import relative_slope
from scaler_wizard.contract import SignedContract, read_signed
from scaler_wizard.events import Action, Cockpit, ContractState, Nonfinite, QualityMetrics, ResourceUsage, Stage, Status
from scaler_wizard.gate import context_retention, fused_vibe, vibe
from scaler_wizard.journal import Row
from scaler_wizard.metrics import Measurement
from scaler_wizard.run import Run
from scaler_wizard.safe_yaml import load_yaml

GIB = 2**30
WINDOW = 10
"""Evaluations that the slope is taken over."""


def cockpit(run: Run) -> Cockpit:
    """Where the run stands now; unknown is null."""
    begun, gate = run.last("phase_started"), run.open_gate()
    signed = signed_contract(run.folder / "contract.yaml")
    found = Cockpit(
        run_id=UUID(run.journal.get("uuid")),
        timestamp=datetime.now(UTC),
        phase="P0" if begun is None else begun.data.get("stage") or _stage(run, str(begun.data["slug"])),
        step=_step(run, begun),
        status=_status(run, begun),
        quality_metrics=_quality(run, begun, gate),
        resource_usage=_resources(run),
        human_contract=_contract(run, signed, gate),
        actions=tuple(_actions(run, gate)),
        trace_id=run.journal.get("uuid") or "",
        audit=_audit(run),
        user_feedback=run.journal.get("feedback"),
    )
    check(json.loads(found.model_dump_json(by_alias=True)))
    return found


def check(payload: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError where a payload does not fit its schema."""
    _validator().validate(payload)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, FormatChecker

    formats = FormatChecker(("uuid",))
    formats.checks("date-time", raises=ValueError)(_is_moment)
    return Draft202012Validator(Cockpit.model_json_schema(by_alias=True), format_checker=formats)


def _is_moment(value: object) -> bool:
    """jsonschema looks at no moment unless another package is there; ajv and pydantic do, and want a time zone."""
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def measurement_of(data: dict[str, Any] | None) -> Measurement | None:
    """The measurement in a commit's or a gate's data."""
    return Measurement.read(data, "measurement") if data else None


def measurements(run: Run) -> tuple[Measurement | None, Measurement | None]:
    """Of the baseline, and of the newest thing that was measured on the way to the current checkpoint."""
    found = [one for row in run.lineage() if (one := measurement_of(row.data.get("measurement"))) is not None]
    return (found[0], found[-1]) if found else (None, None)


def _stage(run: Run, slug: str) -> Stage:
    """From the plan: journals of earlier releases do not say it."""
    phases = load_yaml(run.folder / "plan.yaml").get("phases", [])
    return next((phase["stage"] for phase in phases if slug == f"{phase['number']:03d}-{phase['name']}"), "P0")


def _since(row: Row | None, begun: Row | None) -> bool:
    return row is not None and begun is not None and row.seq > begun.seq


def _step(run: Run, begun: Row | None) -> int:
    row = run.last("step")
    return int(row.data["step"]) if row is not None and _since(row, begun) else 0


def _status(run: Run, begun: Row | None) -> Status:
    warned = _since(run.last("telegram"), begun)
    return Status.WARNING if run.status == "running" and warned else Status(run.status)


def _quality(run: Run, begun: Row | None, gate: Row | None) -> QualityMetrics:
    baseline, now = measurements(run)
    sentence = "" if (said := run.last("gate")) is None else said.data["sentence"]
    if gate is not None:
        now = measurement_of(gate.data["evidence"].get("measurement")) or now
    if now is None:
        return QualityMetrics(perplexity_slope=_number(_slope(run, begun)), canonical_sentence=sentence)
    return QualityMetrics(
        perplexity=_number(None if now.short_nll is None else math.exp(min(now.short_nll, 700.0))),
        perplexity_slope=_number(_slope(run, begun)),
        accuracy=now.probe.accuracy.value if now.probe else None,
        emergent_vibe_score=_number(fused if (fused := _fused(run, gate)) is not None else vibe(baseline or now, now)),
        context_retention=_number(context_retention(now)),
        canonical_sentence=sentence,
    )


def _fused(run: Run, gate: Row | None) -> float | None:
    """The score of a merge, where the newest thing that was measured is one."""
    rows = [row.data["evidence"] for row in run.lineage() if row.data.get("measurement")]
    shown = gate.data["evidence"] if gate is not None and gate.data["evidence"].get("measurement") else None
    return fused_vibe(shown or (rows[-1] if rows else None))


def _number(value: float | None) -> float | Nonfinite | None:
    if value is None or math.isfinite(value):
        return value
    return Nonfinite(nonfinite="nan" if math.isnan(value) else "inf" if value > 0 else "-inf")


def _slope(run: Run, begun: Row | None) -> float | None:
    """Relative rise of the perplexity per evaluation in the running training."""
    if begun is None:
        return None
    rows = run.journal.events(begun.seq, kinds=("evaluated",))
    return relative_slope([row.data["perplexity"] for row in rows if row.data["arm"] == "grown"][-WINDOW:])


def _resources(run: Run) -> ResourceUsage:
    row = run.last("usage")
    if row is None or run.status != "running":
        return ResourceUsage()
    used, left = row.data, row.data.get("seconds_left")
    return ResourceUsage(
        vram_used_gb=None if used.get("vram_bytes") is None else used["vram_bytes"] / GIB,
        vram_total_gb=None if used.get("vram_bytes") is None else _vram_total(run),
        ram_used_gb=used["ram_bytes"] / GIB,
        cpu_utilization=used.get("cpu_percent"),
        estimated_time_left_min=None if left is None else left / 60,
    )


def _vram_total(run: Run) -> float | None:
    from scaler_wizard.hardware import detect

    total = detect(run.folder).vram_bytes
    return None if total is None else total / GIB


def signed_contract(file: Path) -> SignedContract:
    """The contract of a run as it was signed."""
    return _read_contract(file, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=64)
def _read_contract(file: Path, changed_ns: int) -> SignedContract:
    """Once for each change: a page that is watched asks every second."""
    return read_signed(load_yaml(file))


def _contract(run: Run, signed: SignedContract, gate: Row | None) -> ContractState:
    broken = [row for row in run.journal.events(kinds=("telegram",)) if row.data.get("cause") == "memory"]
    window = signed.contract.response_window_sec
    deadline = None
    if gate is not None and run.status == "running":
        deadline = _deadline(run, gate, window)
    return ContractState(
        version=signed.contract.version,
        guarantees_met=not broken,
        response_window_sec=window,
        next_decision_point=deadline,
    )


def _deadline(run: Run, gate: Row, window: int) -> datetime:
    """A gate that was open when an earlier process ended has a whole window from the resumption on."""
    resumed = run.last("resumed")
    begun = gate.time if resumed is None else max(gate.time, resumed.time)
    windows = 1 + len(run.extensions(gate.data["gate"]))
    return datetime.fromtimestamp(begun, UTC) + timedelta(seconds=window * windows)


def _actions(run: Run, gate: Row | None) -> Iterator[Action]:
    if gate is not None:
        yield "Approve"
    if gate is not None or run.status == "running":
        yield "Abort"
    if len(run.lineage()) > 1:
        yield "Rollback"
    if run.status == "running":
        yield "Pause"
    elif run.status != "completed":
        yield "Resume"


def _audit(run: Run) -> dict[str, Any]:
    """The last decision and the last move: who, what, on which evidence."""
    kept = {"decision": ("gate", "action", "who", "how", "evidence_hash"), "moved": ("how", "before", "after", "who")}
    rows = {kind: run.last(kind) for kind in kept}
    return {kind: {key: row.data.get(key) for key in kept[kind]} for kind, row in rows.items() if row is not None}
