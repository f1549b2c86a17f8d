"""What a run taught: its shapes, settings, needs and outcome as one record, read from the run folder. No torch.

Times are processor seconds of the worker, which a busy machine does not change; memory is the largest of looks taken
about once a second, so a short peak between two looks is missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scaler_wizard.architecture import Blueprint
from scaler_wizard.errors import ScalerError
from scaler_wizard.estimate import phase_flops
from scaler_wizard.grow import grown
from scaler_wizard.metrics import Measurement
from scaler_wizard.phases import Grow, Phase, Plan, Train
from scaler_wizard.record import Record
from scaler_wizard.run import Run
from scaler_wizard.safe_yaml import load_yaml

SHIPPED = Path(__file__).parent / "experience.jsonl"
"""Runs that scripts/collect_runs.py made."""


class PhaseNeeds(Record):
    """One phase: what it was, and what it took."""

    kind: Literal["baseline", "grow", "extend", "heal", "merge", "export"]
    """What was done."""
    parameters: int
    """Of the model that was measured."""
    layers: int
    """Its transformer blocks."""
    hidden: int
    """Width of its residual stream."""
    ffn: int
    """Neurons of a feed-forward block, or of one expert."""
    kv_width: int
    """Key/value heads times their width."""
    vocabulary: int
    """Rows of its embedding."""
    window: int
    """Longest window that was read, in tokens."""
    micro_tokens: int
    """Tokens in memory at once while training; 0 where nothing is trained."""
    train: Literal["none", "new", "lora", "norms", "all"]
    """What learned."""
    flops: float
    """Counted operations of measurement and training."""
    estimated_bytes: int | None
    """Memory that the plan expected."""
    estimated_seconds: float | None
    """Time that the plan expected."""
    cpu_seconds: float | None
    """Processor time; null where the journal holds none."""
    peak_bytes: int | None
    """Largest memory that was seen; null where the journal holds none."""


class Experience(Record):
    """One run that ended."""

    run: str
    """Which run: the beginning of its folder's name, without date."""
    base: str
    """Name of the base."""
    parameters: int
    """Of the base."""
    growth: float
    """Parameters at the end over those of the base."""
    stretch: float
    """Window at the end over the base's."""
    operators: tuple[str, ...]
    """What it grew by."""
    train: Literal["none", "new", "lora", "norms", "all"]
    """What learned."""
    tokens: int
    """Tokens of training."""
    learning_rate: float | None
    """Peak learning rate; null where nothing was trained."""
    threads: int | None
    """Processor threads; null where the machine chose."""
    phases: tuple[PhaseNeeds, ...]
    """What each phase took, in order."""
    short_change: float | None
    """Loss on short text after the last measurement less the base's, nats per token; below 0 is better."""
    context_gain: float | None
    """Loss that the long window saved against truncation; null where no window grew."""
    control_gain: float | None
    """Loss that the grown model is ahead of the trained base; null where no control was trained."""
    outside_limits: int
    """Gates that found something outside its limits."""
    stopped: bool
    """Whether it ended before its last phase."""


def experience(run: Run) -> Experience | None:
    """What this run taught; None where it is not over or its base is gone."""
    if run.status not in ("completed", "stopped", "failed"):
        return None
    plan = Plan.read(load_yaml(run.folder / "plan.yaml"), "plan.yaml")
    base = _base(plan)
    if base is None:
        return None
    needs = tuple(_needs(run, plan, base))
    train = next((phase.change for phase in plan.phases if isinstance(phase.change, Train)), None)
    measured = [one for phase in plan.phases if (one := _measured(run, phase)) is not None]
    gates = [row.data["verdict"] for row in run.journal.events(kinds=("gate",))]
    operators = [
        operator for phase in plan.phases if isinstance(phase.change, Grow) for operator in phase.change.operators
    ]
    return Experience(
        run=run.id.rsplit("-", 3)[0],
        base=plan.base.name,
        parameters=plan.base.parameters,
        growth=plan.parameters / plan.base.parameters,
        stretch=plan.context / plan.base.native_context,
        operators=tuple(operator.op for operator in operators),
        train=train.train if train is not None else "none",
        tokens=train.steps * train.windows_per_step * train.window if train is not None else 0,
        learning_rate=train.learning_rate if train is not None else None,
        threads=plan.limits.threads,
        phases=needs,
        short_change=_change(measured),
        context_gain=measured[-1].context_gain.value if measured and measured[-1].context_gain else None,
        control_gain=_control_gain(run),
        outside_limits=sum(verdict["action"] != "pass" for verdict in gates),
        stopped=len(needs) < len(plan.phases),
    )


def _base(plan: Plan) -> Blueprint | None:
    file = plan.base.folder / "config.json"
    try:
        return Blueprint(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # moved away, or no longer readable
        return None


def planned(plan: Plan) -> list[tuple[Phase, PhaseNeeds]]:
    """The phases of a plan as they are compared with past ones; nothing where the base's configuration is gone."""
    base = _base(plan)
    return [] if base is None else list(_planned(plan, base))


def _planned(plan: Plan, base: Blueprint) -> Iterator[tuple[Phase, PhaseNeeds]]:
    view = base
    for phase in plan.phases:
        if isinstance(phase.change, Grow):
            view = grown(view, phase.change.operators)
        flops = phase_flops(phase, view, base, native=plan.base.native_context)
        yield (
            phase,
            PhaseNeeds(
                **_shape(phase, view),
                flops=flops,
                estimated_bytes=phase.estimate.memory_bytes,
                estimated_seconds=phase.estimate.seconds,
                cpu_seconds=None,
                peak_bytes=None,
            ),
        )


def _needs(run: Run, plan: Plan, base: Blueprint) -> Iterator[PhaseNeeds]:
    for phase, needs in _planned(plan, base):
        begun, gate = run.last("phase_started", phase=phase.slug), run.last("gate", phase=phase.slug)
        if begun is None or gate is None or gate.seq < begun.seq:
            return
        looks = [row.data for row in run.journal.events(begun.seq, kinds=("usage",), phase=phase.slug)]
        spent = [look["cpu_seconds"] for look in looks if look.get("cpu_seconds") is not None]
        peak = max((look["ram_bytes"] for look in looks), default=None)
        yield needs.model_copy(update={"cpu_seconds": max(spent, default=None), "peak_bytes": peak})


def _shape(phase: Phase, view: Blueprint) -> dict[str, Any]:
    train = phase.change if isinstance(phase.change, Train) else None
    return {
        "kind": phase.change.kind,
        "parameters": view.parameters,
        "layers": view.layers,
        "hidden": view.hidden,
        "ffn": view.ffn,
        "kv_width": view.kv_heads * view.head_dim,
        "vocabulary": view.vocabulary,
        "window": max(phase.measure.length if phase.measure else 0, train.window if train else 0),
        "micro_tokens": train.micro_batch * train.window if train else 0,
        "train": train.train if train else "none",
    }


def _measured(run: Run, phase: Phase) -> Measurement | None:
    gate = run.last("gate", phase=phase.slug)
    measured = None if gate is None else gate.data["evidence"].get("measurement")
    return None if measured is None else Measurement.read(measured, phase.slug)


def _change(measured: list[Measurement]) -> float | None:
    losses = [one.short_nll for one in measured if one.short_nll is not None]
    return losses[-1] - losses[0] if len(losses) > 1 else None


def _control_gain(run: Run) -> float | None:
    for gate in run.journal.events(kinds=("gate",)):
        gain = (gate.data["evidence"].get("training") or {}).get("gain_over_control")
        if gain:
            return float(gain["value"])
    return None


def load(file: Path) -> tuple[Experience, ...]:
    """Experiences from a file of JSON lines; raises ScalerError where a line is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError):
        raise ScalerError(f"{file.name}: cannot be read as JSON lines", "check the path, or export it again") from None
    return tuple(Experience.read(row, f"{file.name}: line {number}") for number, row in enumerate(rows, 1))


# -- how far off estimates were ----------------------------------------------------------------------------------------

SPREAD = (0.1, 0.9)
"""Four of five lie between these shares of all."""
REACH = 4.0
"""How many times larger than every run a plan may be before nothing is known of it."""


def error_note(plan: Plan) -> str:
    """How far off such estimates were on the shipped runs, as a sentence; says so where no run was as large."""
    runs = load(SHIPPED) if SHIPPED.is_file() else ()
    largest = max((phase.parameters for one in runs for phase in one.phases), default=0)
    if plan.parameters > REACH * largest:
        return "how far off these estimates are is not known: no run of this size was compared with its own"
    time, memory = (spread(runs, measured, expected) for measured, expected in (TIME, MEMORY))
    return (
        f"four of five of {len(runs)} small runs needed {time[0]:.2g} to {time[1]:.2g} times the estimated processor "
        f"time, and {memory[0]:.2g} to {memory[1]:.2g} times the memory; by phase: scaler learn plan.yaml"
    )


TIME = ("cpu_seconds", "estimated_seconds")
MEMORY = ("peak_bytes", "estimated_bytes")


def spread(runs: Sequence[Experience], measured: str, expected: str) -> tuple[float, float]:
    """Between which multiples of the estimate four of five runs lay: time adds up, memory is the largest phase's."""
    over = sum if measured == "cpu_seconds" else max
    ratios = [
        over(getattr(phase, measured) or 0 for phase in one.phases)
        / over(getattr(phase, expected) or 0 for phase in one.phases)
        for one in runs
    ]
    low, high = np.quantile(ratios, SPREAD)
    return float(low), float(high)
