"""What a run did and found, read from its folder: the base, every phase that passed, its gates, curves and costs.

Only the phases that the current checkpoint stands on count; what was tried and not kept is in the timeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import SignedContract, read_signed
from scaler_wizard.errors import ScalerError
from scaler_wizard.inspection import Part, parts
from scaler_wizard.journal import Row
from scaler_wizard.metrics import Interval, Measurement
from scaler_wizard.phases import Extend, Grow, Phase, Plan, Train
from scaler_wizard.run import Run
from scaler_wizard.safe_yaml import load_yaml


@dataclass(frozen=True)
class Proof:
    """Whether growth kept the function."""

    passed: bool
    reason: str
    """The same in one sentence."""
    promised: str | None
    """bitwise, exact or no."""
    largest_difference: float | None
    """Of a logit, in fp32."""
    kl: float | None
    """Nats per position."""


@dataclass(frozen=True)
class Training:
    """What a training did to the held-out loss; losses are nats per token."""

    tokens: int | None
    learns: str | None
    """new, lora or all."""
    window: int | None
    """Tokens of a held-out window."""
    before: float | None
    after: float | None
    control: float | None
    """The base, trained on the same tokens; None where no control was trained."""
    gain: Interval | None
    """Control's loss less the grown model's, on the same windows: above 0, growth paid."""


@dataclass(frozen=True)
class Stretch:
    """The rotary settings that a rung was written with."""

    method: str
    options: Mapping[str, Any]
    searched: bool
    """Found by search rather than taken from the plan."""


@dataclass(frozen=True)
class Fusion:
    """What the model was merged with, and what that is worth."""

    method: str
    parents: tuple[str, ...]
    weights: Mapping[str, float]
    """Those that can be one number, by name."""
    tries: int
    """Merges that were measured to choose the weights; 0 where they were taken as they are."""
    vibe: Interval
    sentence: str
    """Where it loses to its best parent, in words."""


@dataclass(frozen=True)
class Passed:
    """One phase that passed its gate and that the current checkpoint stands on."""

    phase: Phase
    sentence: str
    measurement: Measurement | None
    proof: Proof | None
    training: Training | None
    stretch: Stretch | None
    """None where the window did not grow."""
    fusion: Fusion | None = None
    """None where nothing was merged."""


@dataclass(frozen=True)
class Moment:
    """One thing that was decided in a run, kept or not."""

    time: datetime
    phase: str
    """Slug of the phase."""
    sentence: str
    """The gate's canonical sentence, or what happened."""
    verdict: str
    """What the gate said: pass, ask or rollback; empty where this was no gate."""
    reasons: tuple[str, ...] = ()
    """What was outside a limit."""
    answer: str = ""
    """What was decided, by whom and how; empty while nobody has answered."""


@dataclass
class Curve:
    """The losses of one arm by tokens trained on; nats per token."""

    training: dict[int, float] = field(default_factory=dict)
    evaluations: dict[int, float] = field(default_factory=dict)
    """On calibration text."""


@dataclass(frozen=True)
class Costs:
    """What the run took."""

    seconds: float
    """Time that workers ran, without waiting at gates."""
    peak_memory_bytes: int | None
    """Most memory that a worker was seen to use, looked at about once a second; None where nobody looked."""


@dataclass(frozen=True)
class Story:
    """A run, as its report tells it."""

    run_id: str
    told: datetime
    """Time of the last event that is in it."""
    plan: Plan
    signed: SignedContract
    phases: tuple[Passed, ...]
    timeline: tuple[Moment, ...]
    curves: Mapping[str, Curve]
    """By arm: grown, control."""
    notes: tuple[str, ...]
    costs: Costs
    base_parts: tuple[Part, ...]
    grown_parts: tuple[Part, ...]
    rope: Mapping[str, Any]
    """Rotary settings of the grown model."""
    window: int
    """Window of the grown model, in tokens."""
    ladder_ended: str | None = None
    """Why the ladder ended before its last rung; None where it did not."""

    @property
    def baseline(self) -> Measurement | None:
        """What was measured on the base."""
        return self.phases[0].measurement

    @property
    def final(self) -> Measurement | None:
        """The last measurement after the baseline; None where nothing was changed or measured."""
        found = [one.measurement for one in self.phases[1:] if one.measurement is not None]
        return found[-1] if found else None

    @property
    def corpus(self) -> str:
        """Name of the text that everything was measured on."""
        return named_only(self.plan.data)

    @property
    def parameters(self) -> int:
        """Size of the grown model."""
        return sum(part.parameters for part in self.grown_parts)

    @property
    def grew(self) -> bool:
        """Whether parameters were added."""
        return any(isinstance(one.phase.change, Grow) for one in self.phases)

    @property
    def extended(self) -> bool:
        """Whether the window grew."""
        return any(isinstance(one.phase.change, Extend) for one in self.phases)

    @property
    def fusion(self) -> Fusion | None:
        """The last merge."""
        return next((one.fusion for one in reversed(self.phases) if one.fusion is not None), None)

    @property
    def training(self) -> Training | None:
        """The last training."""
        return next((one.training for one in reversed(self.phases) if one.training is not None), None)

    @property
    def proof(self) -> Proof | None:
        """The last proof that growth kept the function."""
        return next((one.proof for one in reversed(self.phases) if one.proof is not None), None)


def tell(run_folder: Path) -> Story:
    """Read a run folder; writes nothing. Raises ScalerError where nothing has passed a gate yet."""
    run = Run(run_folder)
    plan = Plan.read(load_yaml(run_folder / "plan.yaml"), "plan.yaml")
    lineage, events = run.lineage(), run.journal.events()
    if not lineage or run.current is None:
        raise ScalerError(f"{run.id}: no phase has passed its gate, so there is nothing to tell", "run it first")
    base, grown = read_architecture(plan.base.folder), read_architecture(run.checkpoints / run.current)
    phases = {phase.slug: phase for phase in plan.phases}
    return Story(
        run_id=run.id,
        told=_moment(events[-1]),
        plan=plan,
        signed=read_signed(load_yaml(run_folder / "contract.yaml")),
        phases=tuple(_passed(phases[row.data["slug"]], row) for row in lineage),
        timeline=tuple(_timeline(events)),
        curves=_curves(phases, {row.data["slug"] for row in lineage}, events),
        notes=(*plan.notes, *dict.fromkeys(row.data["text"] for row in events if row.kind == "note")),
        costs=_costs(events),
        base_parts=parts(base),
        grown_parts=parts(grown),
        rope=grown.rope,
        window=grown.native_context,
        ladder_ended=_ladder_ended(events, {row.data["slug"] for row in lineage}),
    )


def _ladder_ended(events: Iterable[Row], kept: set[str]) -> str | None:
    said = [row.data["why"] for row in events if row.kind == "ladder_ended" and row.data["on"] in kept]
    return said[-1] if said else None


def named_only(source: str) -> str:
    """A name without the folders that lead to it: where files lie is nobody else's business."""
    path = Path(source)
    return path.name if path.is_absolute() or path.expanduser().exists() else source


def _moment(row: Row) -> datetime:
    return datetime.fromtimestamp(row.time, UTC)


# -- what passed -------------------------------------------------------------------------------------------------------


def _passed(phase: Phase, row: Row) -> Passed:
    evidence = row.data.get("evidence") or {}
    measured = row.data.get("measurement")
    if isinstance(phase.change, Grow):
        phase = phase.model_copy(update={"change": phase.change.carried_out(evidence)})
    return Passed(
        phase=phase,
        sentence=row.data.get("sentence", ""),
        measurement=Measurement.read(measured, phase.slug) if measured else None,
        proof=_proof(evidence.get("proof")),
        training=_training(evidence.get("training")),
        stretch=_stretch(phase, evidence.get("window")),
        fusion=_fusion(evidence.get("merge")),
    )


def _proof(found: Mapping[str, Any] | None) -> Proof | None:
    if found is None:
        return None
    return Proof(
        passed=bool(found.get("passed")),
        reason=str(found.get("reason", "")).rstrip("."),
        promised=found.get("promised"),
        largest_difference=found.get("largest_difference"),
        kl=found.get("kl"),
    )


def _stretch(phase: Phase, found: Mapping[str, Any] | None) -> Stretch | None:
    change = phase.change
    if not isinstance(change, Extend):
        return None
    if found is None:
        return Stretch(change.method, change.options, searched=False)
    return Stretch(str(found["method"]), found.get("options") or {}, searched=found.get("search") is not None)


def _fusion(found: Mapping[str, Any] | None) -> Fusion | None:
    if found is None:
        return None
    return Fusion(
        method=str(found["method"]),
        parents=tuple(named_only(name) for name in found["parents"]),
        weights={named_only(name): float(value) for name, value in found["weights"].items()},
        tries=len(found["tries"]),
        vibe=Interval.read(found["judgement"]["vibe"], "vibe"),
        sentence=str(found["judgement"]["sentence"]),
    )


def _training(found: Mapping[str, Any] | None) -> Training | None:
    if found is None:
        return None
    gain = found.get("gain_over_control")
    return Training(
        tokens=found.get("tokens"),
        learns=found.get("train"),
        window=found.get("held_out_window"),
        before=found.get("before"),
        after=(found.get("grown") or {}).get("nll"),
        control=(found.get("control") or {}).get("nll"),
        gain=None if gain is None else Interval.read(gain, "gain_over_control"),
    )


# -- what happened -----------------------------------------------------------------------------------------------------


def _timeline(events: list[Row]) -> Iterator[Moment]:
    answers = {row.data["gate"]: row for row in events if row.kind == "decision"}
    for row in events:
        if row.kind == "gate":
            yield _gate(row, answers.get(row.data["gate"]))
        elif row.kind == "telegram":
            yield Moment(_moment(row), row.phase or "", row.data["sentence"], "", answer="circuit breaker")
        elif row.kind == "moved":
            verb = "Rolled back to" if row.data["how"] == "rolled_back" else "Rollback undone: at"
            sentence = f"{verb} {row.data['after']} again." if verb.endswith("at") else f"{verb} {row.data['after']}."
            yield Moment(_moment(row), str(row.data["after"]), sentence, "", answer=f"by {row.data['who']}")


def _gate(row: Row, answer: Row | None) -> Moment:
    verdict = row.data["verdict"]
    return Moment(
        time=_moment(row),
        phase=row.data["phase"],
        sentence=row.data["sentence"],
        verdict=verdict["action"],
        reasons=tuple(verdict.get("reasons", ())),
        answer="" if answer is None else f"{answer.data['action']}, {answer.data['who']} ({answer.data['how']})",
    )


def _curves(phases: Mapping[str, Phase], kept: set[str], events: Iterable[Row]) -> dict[str, Curve]:
    """Losses by tokens; a step that was done again after an interruption counts as it was last done."""
    curves: dict[str, Curve] = {}
    for row in events:
        change = phases[row.phase].change if row.phase in kept else None
        if not isinstance(change, Train) or row.kind not in ("step", "evaluated"):
            continue
        curve = curves.setdefault(row.data["arm"], Curve())
        at = row.data["step"] * change.windows_per_step * change.window
        if row.kind == "step":
            curve.training[at] = row.data["loss"]
        else:
            curve.evaluations[at] = row.data["nll"]
    return curves


def _costs(events: list[Row]) -> Costs:
    seen = [int(row.data["ram_bytes"]) for row in events if row.kind == "usage"]
    return Costs(seconds=_working(events), peak_memory_bytes=max(seen, default=None))


def _working(events: Iterable[Row]) -> float:
    """Seconds from the start of each phase to its gate, or to its last event where it did not get there."""
    spans: list[list[float]] = []
    running: str | None = None
    for row in events:
        if row.kind == "phase_started":
            running = row.phase
            spans.append([row.time, row.time])
        elif running is not None and row.phase == running:
            spans[-1][1] = row.time
            running = None if row.kind == "gate" else running
    return sum(end - begin for begin, end in spans)
