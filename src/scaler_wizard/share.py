"""A run as its owner may give it away: recipe, machine and outcome in closed words and coarse numbers, nothing else.

Nothing is sent by this program: it writes a file that the person reads and passes on. What stands in the file is listed
here, field by field; no field holds free text, so that names, paths, texts and ids cannot travel with it. Numbers are
rounded to buckets: a power of two, or two decimals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field

from scaler_wizard.architecture import FAMILIES, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.experience import Experience, PhaseNeeds, experience
from scaler_wizard.grow import OPERATORS
from scaler_wizard.merge import METHODS
from scaler_wizard.merging import MERGE, Lineage
from scaler_wizard.phases import Plan
from scaler_wizard.record import Record
from scaler_wizard.run import Run
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.searching import JUDGEMENT, Found

Learner = Literal["none", "new", "lora", "norms", "all"]
Kind = Literal["baseline", "grow", "extend", "heal", "merge", "export"]
Cause = Literal["nonfinite", "slope", "accuracy", "memory", "divergence", "stall"]
Answer = Literal["approve", "pause", "abort", "rollback"]
Happened = Literal["phase_started", "gate", "decision", "committed", "telegram", "failed", "status"]
VIBE = {"vibe": "value", "vibe_low": "low", "vibe_high": "high"}
Bucket = Annotated[int, Field(ge=0, le=2**50)]
"""A power of two, or 0."""
Hundredths = Annotated[float, Field(ge=-100, le=100)]
"""Rounded to two decimals."""


class SharedRecipe(Record):
    """What was asked for: only what makes a recipe, and nothing that could widen a limit."""

    growth: Annotated[float, Field(ge=1, le=64)]
    """Parameters afterwards over before, one decimal."""
    stretch: Annotated[float, Field(ge=1, le=1024)]
    """Window afterwards over before, one decimal."""
    operators: tuple[str, ...]
    """Growth operators, by their public names."""
    train: Learner
    """What learned."""
    tokens: Bucket
    """Tokens of training."""
    learning_rate_log2: int | None
    """Base-two logarithm of the learning rate, rounded; null where nothing was trained."""


class SharedMerge(Record):
    """How a run ended in a merge, and what that was worth against its parents; no parent is named."""

    method: str
    """Merge method, by its public name."""
    parents: Annotated[int, Field(ge=1, le=64)]
    """Models that were brought together, the base among them where there is one."""
    weights: Annotated[tuple[Hundredths, ...], Field(max_length=66)]
    """Weights and settings that were searched, two decimals, in the order of the recipe."""
    tries: Bucket
    """Merges that were measured to choose them."""
    vibe: Hundredths
    """Score against the best parent of each domain, 0 to 1."""
    vibe_low: Hundredths
    """Lower end of its 95 % interval."""
    vibe_high: Hundredths
    """Upper end."""
    domains: Annotated[int, Field(ge=1, le=99)]
    """Kinds of text and sets of questions that it was judged on."""
    losing: Annotated[int, Field(ge=0, le=99)]
    """Of these, where it is significantly worse than its best parent."""


class SharedPhase(Record):
    """What one phase took."""

    kind: Kind
    """What was done."""
    cpu_seconds: Bucket | None
    """Processor time."""
    peak_bytes: Bucket | None
    """Memory."""


class SharedEvent(Record):
    """Something that happened, without its words."""

    kind: Happened
    """What."""
    phase: Kind | None
    """In which phase."""
    minute: Bucket
    """Minutes after the start."""
    cause: Cause | None = None
    """Why the circuit breaker spoke."""
    action: Answer | None = None
    """How a gate was answered."""


class Pattern(Record):
    """A recipe with its measured outcome, as people share it."""

    format: Literal[1] = 1
    """Version of this file format."""
    family: str
    """Architecture of the base, by its public name."""
    parameters: Bucket
    """Parameters of the base."""
    recipe: SharedRecipe
    """What was asked for."""
    phases: tuple[SharedPhase, ...]
    """What it took."""
    short_change: Hundredths | None
    """Change of the loss on short text, nats per token."""
    context_gain: Hundredths | None
    """Loss saved by the long window against truncation."""
    control_gain: Hundredths | None
    """Loss ahead of the trained base."""
    merge: SharedMerge | None = None
    """The merge at its end; null where nothing was merged."""
    outside_limits: Annotated[int, Field(ge=0, le=99)]
    """Gates that found something outside its limits."""
    stopped: bool
    """Whether it ended early."""
    events: tuple[SharedEvent, ...] = ()
    """What happened, in order."""


class MergePattern(Record):
    """A merge without a run, with its measured outcome."""

    format: Literal[1] = 1
    """Version of this file format."""
    kind: Literal["merge"] = "merge"
    """Says that this is no run."""
    family: str
    """Architecture of the models, by its public name."""
    parameters: Bucket
    """Parameters of the merged model."""
    merge: SharedMerge
    """How it was made, and what it is worth."""


def pattern(run: Run) -> Pattern:
    """What may be given away of a run. Raises ScalerError where the run is not over."""
    found = experience(run)
    if found is None:
        raise ScalerError(f"{run.id}: not over yet, or its base is gone", "share a run that has ended: scaler runs")
    plan = Plan.read(load_yaml(run.folder / "plan.yaml"), "plan.yaml")
    return Pattern(
        family=_known(plan.base.family, FAMILIES),
        parameters=bucket(found.parameters),
        recipe=_recipe(found),
        phases=tuple(_phase(phase) for phase in found.phases),
        short_change=hundredths(found.short_change),
        context_gain=hundredths(found.context_gain),
        control_gain=hundredths(found.control_gain),
        merge=_merge(run),
        outside_limits=min(99, found.outside_limits),
        stopped=found.stopped,
        events=tuple(events((row.kind, row.time, row.phase, row.data) for row in run.journal.events())),
    )


def _recipe(found: Experience) -> SharedRecipe:
    rate = found.learning_rate
    return SharedRecipe(
        growth=round(found.growth, 1),
        stretch=round(found.stretch, 1),
        operators=tuple(_known(name, OPERATORS) for name in found.operators),
        train=found.train,
        tokens=bucket(found.tokens),
        learning_rate_log2=None if rate is None else round(math.log2(rate)),
    )


def merge_pattern(folder: Path) -> MergePattern:
    """What may be given away of a merged model that `scaler merge` searched and judged."""
    if not (folder / JUDGEMENT).is_file():
        raise ScalerError(
            f"{folder.name}: holds no judgement", "merge with a `search:` block, which measures the result"
        )
    lineage, found = Lineage.load(folder / MERGE), Found.load(folder / JUDGEMENT)
    told = {
        "method": lineage.recipe["method"],
        "parents": [one.name for one in lineage.models],
        "weights": found.tries[found.best].weights,
        "tries": found.tries,
        "judgement": found.judgement.model_dump(mode="python"),
    }
    view = read_architecture(folder)
    return MergePattern(
        family=_known(view.family, FAMILIES), parameters=bucket(view.parameters), merge=_shared_merge(told)
    )


def _merge(run: Run) -> SharedMerge | None:
    """Of the checkpoint that the run ended at."""
    found = [row.data["evidence"]["merge"] for row in run.lineage() if "merge" in row.data.get("evidence", {})]
    return _shared_merge(found[-1]) if found else None


def _shared_merge(told: Mapping[str, Any]) -> SharedMerge:
    judgement = told["judgement"]
    losing = [one for one in judgement["domains"] if one["counts"] and any(_worse(each) for each in one["measures"])]
    vibe = {name: hundredths(judgement["vibe"][key]) for name, key in VIBE.items()}
    return SharedMerge.model_validate(
        {
            "method": _known(told["method"], METHODS),
            "parents": len(told["parents"]),
            "weights": tuple(hundredths(value) for value in told["weights"].values()),
            "tries": bucket(len(told["tries"])),
            "domains": len(judgement["domains"]),
            "losing": len(losing),
            **vibe,
        }
    )


def _worse(measure: Mapping[str, Any]) -> bool:
    return bool(measure["gain"]["high"] < 0)


def _phase(needs: PhaseNeeds) -> SharedPhase:
    return SharedPhase(
        kind=needs.kind,
        cpu_seconds=None if needs.cpu_seconds is None else bucket(needs.cpu_seconds),
        peak_bytes=None if needs.peak_bytes is None else bucket(needs.peak_bytes),
    )


# -- events ------------------------------------------------------------------------------------------------------------

Event = tuple[str, float, str | None, Mapping[str, Any]]
"""Kind, seconds, slug of the phase, data: as the journal holds it."""


def events(rows: Iterable[Event]) -> Iterator[SharedEvent]:
    """The allowed ones, without their words; any other kind, and any other field, stays at home."""
    start: float | None = None
    for kind, time, slug, data in rows:
        start = time if start is None else start
        if kind in get_args(Happened):
            yield SharedEvent.model_validate(
                {
                    "kind": kind,
                    "phase": _one_of((slug or "")[4:].split("-")[0], Kind),
                    "minute": bucket((time - start) / 60),
                    "cause": _one_of(data.get("cause"), Cause) if kind == "telegram" else None,
                    "action": _one_of(data.get("action"), Answer) if kind == "decision" else None,
                }
            )


def _one_of(value: Any, allowed: Any) -> Any:
    return value if value in get_args(allowed) else None


def _known(name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise ScalerError("a name in this run is not a public one", "it cannot be shared")
    return name


def bucket(value: float) -> int:
    """The nearest power of two; 0 for less than a half, and for what is no number."""
    return 2 ** min(50, max(0, round(math.log2(value)))) if math.isfinite(value) and value >= 0.5 else 0


def hundredths(value: float | None) -> float | None:
    """Two decimals within the bounds; None where it is no number."""
    return round(min(100.0, max(-100.0, value)), 2) if value is not None and math.isfinite(value) else None


# -- files -------------------------------------------------------------------------------------------------------------


def as_yaml(shared: Pattern | MergePattern) -> str:
    """The file that a person may pass on."""
    head = "# A shared run of Scaler Wizard: read it before you pass it on. Nothing was sent anywhere.\n"
    return head + yaml.safe_dump(shared.model_dump(mode="json"), sort_keys=False, width=110)


def read_patterns(folder: Path) -> tuple[dict[str, Pattern | MergePattern], dict[str, str]]:
    """Patterns of a folder by file name, and why others were refused; they are others' words and never settings."""
    if not folder.is_dir():
        raise ScalerError(f"{folder}: no such folder", "give a folder of pattern files (*.yaml)")
    good: dict[str, Pattern | MergePattern] = {}
    bad: dict[str, str] = {}
    for file in sorted(folder.glob("*.yaml")):
        try:
            data = load_yaml(file)
            kind: type[Pattern] | type[MergePattern] = MergePattern if data.get("kind") == "merge" else Pattern
            shared = kind.read(data, file.name)
            _known(shared.family, FAMILIES)
            for name in shared.recipe.operators if isinstance(shared, Pattern) else ():
                _known(name, OPERATORS)
            if shared.merge is not None:
                _known(shared.merge.method, METHODS)
        except ScalerError as error:
            bad[file.name] = error.wrong
        else:
            good[file.name] = shared
    return good, bad
