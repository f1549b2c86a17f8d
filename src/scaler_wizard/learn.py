"""What past runs say about a plan: bands for memory, time and loss, and readable rules (`[advise]`, scikit-learn).

How: quantile regression by gradient-boosted trees on the logarithm of (measured / counted), widened until four of five
runs that were left out fall inside (conformalised quantile regression, arXiv:1905.03222). Fewer than 20 runs, or a plan
unlike all of them, and it says that it does not know. It informs before a run; it turns no knob and moves no limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.experience import REACH, SHIPPED, Experience, PhaseNeeds, experience, load, planned
from scaler_wizard.hardware import GIB
from scaler_wizard.phases import Plan, Train
from scaler_wizard.record import Record
from scaler_wizard.run import Run, list_runs
from scaler_wizard.safe_yaml import load_yaml

LEAST = 20
"""Runs below which nothing is known."""
BAND = 0.8
FOLDS = 5
KINDS = ("baseline", "grow", "extend", "heal", "merge", "export")
LEARNERS = ("none", "new", "lora", "all")
RUN_FEATURES = ("growth", "stretch", "tokens", "learning_rate", *(f"trains {name}" for name in LEARNERS))


Rows = Sequence[tuple[str, list[float], float]]
"""Run, features, target."""


class Band(Record):
    """Four of five runs like this one lie between `low` and `high`."""

    low: float
    """Lower end."""
    middle: float
    """The median."""
    high: float
    """Upper end."""


class Rule(Record):
    """What runs had in common, and what came of it; a sentence for a person, never a setting."""

    when: tuple[str, ...]
    """Conditions that all hold."""
    short_change: Band
    """Change of the loss on short text, nats per token."""
    support: Annotated[int, Field(ge=1)]
    """Runs behind it."""
    foreign: bool = False
    """True where it came from somebody else's runs."""


class Rules(Record):
    """A file of rules."""

    format: int = 1
    """Version of this file format."""
    runs: Annotated[int, Field(ge=0)]
    """Runs that they were learnt from."""
    rules: tuple[Rule, ...]
    """The rules, the best supported first."""


@dataclass(frozen=True)
class Quantiles:
    """Three fitted regressions and the margin that makes their band true on runs that were left out."""

    models: tuple[Any, Any, Any]
    margin: float

    def band(self, features: Sequence[float]) -> tuple[float, float, float]:
        """Low, middle, high of the target."""
        low, middle, high = (float(model.predict([features])[0]) for model in self.models)
        return min(low, middle) - self.margin, middle, max(high, middle) + self.margin


# -- what is known -----------------------------------------------------------------------------------------------------


def gathered(runs: Path) -> tuple[Experience, ...]:
    """The shipped runs, where this release has any, and your own that are over."""
    own = [one for path in list_runs(runs) if (one := experience(Run(path))) is not None]
    return (*(load(SHIPPED) if SHIPPED.is_file() else ()), *own)


@dataclass(frozen=True)
class Memory:
    """Runs, and what is fitted to them: each target when it is first asked for, since a fit takes a second."""

    runs: tuple[Experience, ...]
    outcomes: Rows
    timed: Rows
    sized: Rows
    seed: int

    @cached_property
    def loss(self) -> Quantiles:
        """Change of the loss on short text, nats per token."""
        return _fit(self.outcomes, self.seed)

    @cached_property
    def seconds(self) -> Quantiles:
        """Logarithm of processor seconds over those that were counted."""
        return _fit(self.timed, self.seed)

    @cached_property
    def bytes(self) -> Quantiles:
        """Logarithm of memory over what was estimated."""
        return _fit(self.sized, self.seed)

    def short_change(self, features: Sequence[float], parameters: int) -> Band | None:
        """Loss on short text after the run less the base's; None for a plan unlike all runs."""
        known = [one.parameters for one in self.runs if one.short_change is not None]
        if not _near(parameters, known):
            return None
        return _band(self.loss.band(features))

    def needs(self, needs: PhaseNeeds) -> tuple[Band, Band] | None:
        """(processor seconds, bytes) of a phase; None for one unlike all that were seen."""
        seen = [phase.parameters for one in self.runs for phase in one.phases]
        if not _near(needs.parameters, seen):
            return None
        features = phase_features(needs)
        counted, expected = _counted_seconds(needs), float(needs.estimated_bytes or 1)
        seconds, memory = self.seconds.band(features), self.bytes.band(features)
        return (
            _band(tuple(counted * math.exp(value) for value in seconds)),
            _band(tuple(expected * math.exp(value) for value in memory)),
        )


def remember(runs: Sequence[Experience], *, seed: int = 0) -> Memory | None:
    """What can be fitted; None with fewer than LEAST runs. Raises ScalerError where the extra is missing."""
    _regression()
    if len(runs) < LEAST:
        return None
    outcomes = [(one.run, run_features(one), one.short_change) for one in runs if one.short_change is not None]
    phases = [(one.run, phase) for one in runs for phase in one.phases]
    timed = [
        (run, phase_features(p), math.log(p.cpu_seconds / _counted_seconds(p))) for run, p in phases if p.cpu_seconds
    ]
    sized = [
        (run, phase_features(p), math.log(p.peak_bytes / p.estimated_bytes))
        for run, p in phases
        if p.peak_bytes and p.estimated_bytes
    ]
    if min(len(outcomes), len(timed), len(sized)) < LEAST:
        return None
    return Memory(tuple(runs), outcomes, timed, sized, seed)


def run_features(one: Experience) -> list[float]:
    """Numbers that a run's quality may depend on, in the order of RUN_FEATURES."""
    return wish_features(one.growth, one.stretch, one.train, one.tokens, one.learning_rate)


def wish_features(growth: float, stretch: float, train: str, tokens: int, learning_rate: float | None) -> list[float]:
    """The same for a run that is only planned."""
    learns = [float(train == name) for name in LEARNERS]
    return [math.log2(growth), math.log2(stretch), math.log10(tokens + 1), math.log10(learning_rate or 1e-6), *learns]


def phase_features(needs: PhaseNeeds) -> list[float]:
    """Numbers that a phase's time and memory may depend on."""
    sizes = (needs.parameters, needs.flops + 1, needs.window + 1, needs.micro_tokens + 1, needs.hidden, needs.layers)
    kinds = [float(needs.kind == kind) for kind in KINDS]
    return [*(math.log10(size) for size in sizes), *kinds, *(float(needs.train == name) for name in LEARNERS)]


def _counted_seconds(needs: PhaseNeeds) -> float:
    """A round figure to compare with: starting a worker, then operations at 20 GFLOP/s."""
    return 6.0 + needs.flops / 20e9


def _near(size: float, known: Sequence[float]) -> bool:
    return bool(known) and min(known) / REACH <= size <= max(known) * REACH


def _band(values: Sequence[float]) -> Band:
    low, middle, high = values
    return Band(low=low, middle=middle, high=high)


def expected(plan: Plan, known: Memory) -> Band | None:
    """Change of the loss on short text that runs like this plan had, nats per token; None where no run is like it."""
    train = next((phase.change for phase in plan.phases if isinstance(phase.change, Train)), None)
    features = wish_features(
        plan.parameters / plan.base.parameters,
        plan.context / plan.base.native_context,
        train.train if train else "none",
        train.steps * train.windows_per_step * train.window if train else 0,
        train.learning_rate if train else None,
    )
    return known.short_change(features, plan.base.parameters)


def told(plan: Plan, known: Memory) -> list[tuple[str, str]]:
    """What past runs say about a plan, as rows; "not known" where they are unlike it."""
    rows: list[tuple[str, str]] = []
    for phase, needs in planned(plan):
        bands = known.needs(needs)
        rows.append((phase.slug, "not known: unlike every run" if bands is None else _needed(*bands)))
    loss = expected(plan, known)
    if loss is None:
        return [*rows, ("short loss", "not known: unlike every run")]
    likely = f"{loss.middle:+.3f} nats per token, four of five between {loss.low:+.3f} and {loss.high:+.3f}"
    return [*rows, ("short loss", likely)]


def _needed(seconds: Band, memory: Band) -> str:
    time = f"{seconds.middle:.0f} processor seconds ({seconds.low:.0f} to {seconds.high:.0f})"
    return f"{time}, {memory.middle / GIB:.2f} GiB ({memory.low / GIB:.2f} to {memory.high / GIB:.2f})"


# -- fitting -----------------------------------------------------------------------------------------------------------


def _regression() -> Any:
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ImportError:
        raise ScalerError("scikit-learn is not installed", 'pip install "scaler-wizard[advise]"') from None
    return GradientBoostingRegressor


def _quantile(rows: Rows, level: float, seed: int) -> Any:
    model = _regression()(
        loss="quantile", alpha=level, n_estimators=40, max_depth=2, min_samples_leaf=3, random_state=seed
    )
    return model.fit(np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))


def _fit(rows: Rows, seed: int) -> Quantiles:
    """Fit on all, with the margin that BAND of the runs left out in turn needed."""
    ends = ((1 - BAND) / 2, (1 + BAND) / 2)
    misses: list[float] = []
    for kept, left in folds(rows):
        low, high = (_quantile(kept, level, seed) for level in ends)
        inputs, targets = np.array([row[1] for row in left]), np.array([row[2] for row in left])
        misses += np.maximum(low.predict(inputs) - targets, targets - high.predict(inputs)).tolist()
    margin = float(np.quantile(misses, min(1.0, BAND * (1 + 1 / len(misses)))))
    models = [_quantile(rows, level, seed) for level in (ends[0], 0.5, ends[1])]
    return Quantiles((models[0], models[1], models[2]), margin)


def folds(rows: Rows, number: int = FOLDS) -> list[tuple[Rows, Rows]]:
    """Split by run: no run is on both sides."""
    names = sorted({row[0] for row in rows})
    parts = [set(names[start::number]) for start in range(number)]
    return [([r for r in rows if r[0] not in part], [r for r in rows if r[0] in part]) for part in parts if part]


# -- rules -------------------------------------------------------------------------------------------------------------


def rules(runs: Sequence[Experience], *, depth: int = 2, least: int = 4) -> Rules:
    """The leaves of a small decision tree over the runs, as sentences with their support."""
    _regression()
    from sklearn.tree import DecisionTreeRegressor

    rows = [(run_features(one), one.short_change) for one in runs if one.short_change is not None]
    if len(rows) < LEAST:
        return Rules(runs=len(rows), rules=())
    inputs, targets = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    tree = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=least, random_state=0).fit(inputs, targets)
    leaves = tree.apply(inputs)
    found = [
        Rule(
            when=_path(tree.tree_, int(leaf)),
            short_change=_spread(targets[leaves == leaf]),
            support=int((leaves == leaf).sum()),
        )
        for leaf in sorted(set(leaves))
    ]
    return Rules(runs=len(rows), rules=tuple(sorted(found, key=lambda rule: -rule.support)))


def _spread(values: Any) -> Band:
    low, middle, high = np.quantile(values, [(1 - BAND) / 2, 0.5, (1 + BAND) / 2])
    return Band(low=round(float(low), 4), middle=round(float(middle), 4), high=round(float(high), 4))


def _path(tree: Any, leaf: int) -> tuple[str, ...]:
    """Conditions from the root to a leaf."""
    parents = {
        int(child): (node, side)
        for side, children in (("<=", tree.children_left), (">", tree.children_right))
        for node, child in enumerate(children)
        if child >= 0
    }
    conditions: list[str] = []
    while leaf in parents:
        leaf, side = parents[leaf]
        conditions.append(_condition(RUN_FEATURES[tree.feature[leaf]], side, float(tree.threshold[leaf])))
    return tuple(reversed(conditions))


def _condition(name: str, side: str, threshold: float) -> str:
    if name.startswith("trains "):
        return f"{name}: {'yes' if side == '>' else 'no'}"
    base = 2 if name in ("growth", "stretch") else 10
    return f"{name} {side} {base**threshold:.3g}"


def as_yaml(found: Rules) -> str:
    """A file that a person can read and pass on."""
    head = "# What runs had in common and what came of it. Sentences, not settings: nothing here moves a limit.\n"
    return head + yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False, width=110)


def read_rules(file: Path) -> Rules:
    """Somebody else's rules: every one is marked as foreign, whatever the file says."""
    found = Rules.read(load_yaml(file), file.name)
    return found.model_copy(update={"rules": tuple(rule.model_copy(update={"foreign": True}) for rule in found.rules)})


# -- how good it is ----------------------------------------------------------------------------------------------------


class Calibration(Record):
    """How the bands did on runs that no part of the fit had seen."""

    runs: int
    """Runs."""
    loss_inside: float
    """Share of the losses inside their band."""
    seconds_inside: float
    """Share of the phases whose time was inside its band."""
    bytes_inside: float
    """Share of the phases whose memory was inside its band."""


def calibrate(runs: Sequence[Experience], *, seed: int = 0) -> Calibration:
    """Leave a fifth of the runs out in turn, fit on the rest, and see how many fall inside."""
    loss: list[bool] = []
    seconds: list[bool] = []
    memory: list[bool] = []
    for kept, left in folds([(one.run, [float(place)], 0.0) for place, one in enumerate(runs)]):
        known = remember([runs[int(row[1][0])] for row in kept], seed=seed)
        if known is None:
            raise ScalerError(
                f"{len(runs)} runs are too few to calibrate on", f"at least {LEAST * 5 // 4 + 1} are needed"
            )
        for one in (runs[int(row[1][0])] for row in left):
            band = known.short_change(run_features(one), one.parameters)
            if band is not None and one.short_change is not None:
                loss.append(band.low <= one.short_change <= band.high)
            for phase in one.phases:
                bands = known.needs(phase)
                if bands is not None and phase.cpu_seconds and phase.peak_bytes:
                    seconds.append(bands[0].low <= phase.cpu_seconds <= bands[0].high)
                    memory.append(bands[1].low <= phase.peak_bytes <= bands[1].high)
    shares = [float(np.mean(each)) for each in (loss, seconds, memory)]
    return Calibration(runs=len(runs), loss_inside=shares[0], seconds_inside=shares[1], bytes_inside=shares[2])
