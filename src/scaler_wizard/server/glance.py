"""A run as the cockpit shows it: a row of the list, everything of one run, what changed between two checkpoints."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.journal import Row
from scaler_wizard.payload import cockpit, measurement_of, signed_contract
from scaler_wizard.phases import Merge, Plan
from scaler_wizard.planned_merge import preview
from scaler_wizard.run import Run
from scaler_wizard.server.begin import plan_view
from scaler_wizard.server.planned import plan_of
from scaler_wizard.server.steer import alive, standing_gate, undo_target
from scaler_wizard.server.wire import (
    CheckpointView,
    Difference,
    Figure,
    FusionCell,
    FusionView,
    GateView,
    LimitsView,
    RankView,
    RunDetail,
    RunRow,
    Shift,
)
from scaler_wizard.story import named_only
from scaler_wizard.supervisor import memory_limit
from scaler_wizard.view import changelog, evidence_rows


def row(folder: Path) -> RunRow:
    """One run in the list; also one that cannot be opened, since its model is gone, is listed."""
    run = Run(folder)
    try:
        plan, trouble = _plan(folder)
        gate = run.last("gate")
        created, newest = run.journal.events(kinds=("created",))[0], run.journal.newest()
        return RunRow(
            id=run.id,
            status=run.status,
            at=run.current,
            sentence=gate.data["sentence"] if gate else "",
            waits=plan is not None and standing_gate(run, plan) is not None,
            model=plan.base.name if plan else None,
            parameters=plan.parameters if plan else None,
            context=plan.context if plan else None,
            trouble=trouble,
            created=datetime.fromtimestamp(created.time, UTC),
            changed=datetime.fromtimestamp(newest.time, UTC),
        )
    finally:
        run.journal.close()


def _plan(folder: Path) -> tuple[Plan | None, str | None]:
    try:
        return plan_of(folder), None
    except ScalerError as error:
        return None, error.wrong


def detail(run: Run, plan: Plan) -> RunDetail:
    """Everything of one run that is not in its event stream."""
    sequence = run.journal.newest().seq
    signed = signed_contract(run.folder / "contract.yaml")
    return RunDetail(
        id=run.id,
        cockpit=cockpit(run),
        plan=plan_view(plan, plan.recipe, run.folder),
        limits=LimitsView(
            short_regression=plan.gate.short_regression,
            accuracy_drop=plan.gate.accuracy_drop,
            needle_share=plan.gate.needle_share,
            slope=plan.breaker.slope,
            memory_bytes=memory_limit(run, plan),
        ),
        checkpoints=tuple(_checkpoint(found) for found in run.committed()),
        current=run.current,
        ranks=_ranks(run),
        gate=_gate(standing_gate(run, plan)),
        undo=undo_target(run),
        alive=alive(run),
        signed_by=signed.signature.name,
        has_report=run.report.is_dir() and any(run.report.iterdir()),
        sequence=sequence,
    )


def _checkpoint(found: Row) -> CheckpointView:
    return CheckpointView(
        slug=found.data["slug"],
        stage=found.data.get("stage", ""),
        sentence=found.data.get("sentence", ""),
        measurement=measurement_of(found.data.get("measurement")),
    )


def _ranks(run: Run) -> tuple[RankView, ...]:
    """Of the newest gate that a training opened."""
    trained = [row.data["evidence"].get("training") for row in run.journal.events(kinds=("gate",))]
    newest: dict[str, Any] = next((one for one in reversed(trained) if one), {})
    return tuple(_rank(name, rank) for name, rank in newest.get("ranks", {}).items())


def _rank(name: str, rank: int) -> RankView:
    """`model.layers.3.self_attn.q_proj` is q_proj of block 3."""
    layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
    return RankView(layer=layer, matrix=name.rpartition(".")[2], rank=rank)


def _gate(found: Row | None) -> GateView | None:
    if found is None:
        return None
    verdict = found.data["verdict"]
    return GateView(
        id=found.data["gate"],
        phase=found.data["phase"],
        sentence=found.data["sentence"],
        action=verdict["action"],
        reasons=tuple(verdict["reasons"]),
        evidence=tuple(Figure(name=name, value=value) for name, value in evidence_rows(found.data["evidence"])),
        evidence_hash=found.data["evidence_hash"],
        measurement=measurement_of(found.data["evidence"].get("measurement")),
        stopped="stopped" in found.data["evidence"],
    )


def fusion(run: Run, plan: Plan) -> FusionView:
    """How the models that the run will merge get on with each other, as they are now; as they were, once it is done."""
    merge = next((phase for phase in plan.phases if isinstance(phase.change, Merge)), None)
    before = [row.data["slug"] for row in run.lineage() if merge is None or row.data["slug"] < merge.slug]
    if not before:
        raise ScalerError(f"{run.id}: there is no checkpoint yet", "wait for the first phase")
    found = preview(run.folder / "plan.yaml", run.checkpoints / before[-1], plan.grown_by(before[-1], run.evidence()))
    assert merge is not None and isinstance(merge.change, Merge)  # a plan without one was refused above
    return FusionView(
        method=merge.change.method.method,
        models=tuple(named_only(name) for name in found.models),
        cells=tuple(FusionCell(**one.model_dump(exclude={"kept"})) for one in found.parts),
    )


def difference(run: Run, first: str | None, second: str | None) -> Difference:
    """What changed between two checkpoints."""
    sentence, figures = changelog(run, first, second)
    shifts = {name: Shift(before=str(before), after=str(after)) for name, (before, after) in figures.items()}
    return Difference(sentence=sentence, figures=shifts)
