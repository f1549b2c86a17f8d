"""Runs for the tests of reports: the real supervisor over a scripted worker, so every figure is known beforehand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.events import Done, Evaluated, Note, Step
from scaler_wizard.hardware import detect
from scaler_wizard.intervals import paired_gain, wilson
from scaler_wizard.metrics import Bucket, Interval, Measurement, NeedleCell, Probe
from scaler_wizard.models import resolve
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.record import to_json
from scaler_wizard.run import Run, create
from scaler_wizard.story import Story, Training
from scaler_wizard.supervisor import Supervisor

WORKER = (sys.executable, str(Path(__file__).with_name("scripted_worker.py")))
DEPTHS = (0.05, 0.35, 0.65, 0.95)
PROOF = {
    "promised": "exact",
    "checks": [],
    "largest_difference": 2e-5,
    "kl": 1e-9,
    "passed": True,
    "reason": "It holds.",
}
HOSTILE = "<script>alert(1)</script> | [x](javascript:1) & `y`"


def losses(level: float, count: int = 64, *, seed: int = 1) -> tuple[float, ...]:
    """`count` losses around `level` that differ between pieces of text, in the same way for every level."""
    return tuple(level + 0.3 * np.random.default_rng(seed).standard_normal(count))


def measured(
    *, short: float, long: float, truncated: float | None = None, found: int = 8, correct: int | None = None
) -> Measurement:
    """A whole measurement out to 512 tokens; `found` of 8 facts at each depth of the longest text."""
    tail = losses(long)
    cut = () if truncated is None else losses(truncated)
    gain = paired_gain(np.array(cut), np.array(tail), seed=0) if cut and np.isfinite([*tail, *cut]).all() else None
    return Measurement(
        corpus="kjv",
        native_length=128,
        target_length=512,
        short_nll=short,
        short_nll_by_window=losses(short),
        buckets=tuple(
            Bucket(
                start=start,
                end=start + 64,
                nll=short + (long - short) * start / 448,
                truncated_nll=truncated if start == 448 else None,
                tokens=4096,
            )
            for start in range(0, 512, 64)
        ),
        tail_blocks=tail,
        truncated_blocks=cut,
        truncation_by="self" if cut else None,
        context_gain=gain,
        needles=tuple(
            NeedleCell(length=length, depth=depth, found=found if length == 512 else 8, asked=8, nll=0.1)
            for length in (128, 512)
            for depth in DEPTHS
        ),
        probe=None
        if correct is None
        else Probe(name="capitals", correct=correct, asked=120, chance=0.25, accuracy=wilson(correct, 120)),
        seconds=1.0,
    )


BASE = measured(short=3.0, long=3.5, truncated=3.02, found=0, correct=84)
GROWN = measured(short=2.9, long=2.88, truncated=2.95, found=8, correct=85)


def training(gain: tuple[float, float, float] | None) -> dict[str, Any]:
    """Evidence of a training; `gain` over the control with its ends, None where no control was trained."""
    value = None if gain is None else gain[0]
    return {
        "tokens": 65536,
        "train": "all",
        "learning_rate": 2e-3,
        "held_out_window": 512,
        "before": 3.1,
        "grown": {"parameters": 2, "nll": 2.9, "nll_by_window": [2.9], "seconds": 1.0},
        "control": None
        if value is None
        else {"parameters": 1, "nll": 2.9 + value, "nll_by_window": [2.9], "seconds": 1.0},
        "gain_over_control": None if gain is None else dict(zip(("value", "low", "high"), gain, strict=True)),
    }


def told(gain: tuple[float, float, float] | None) -> Training:
    """The same as a story tells it."""
    found = training(gain)
    return Training(
        tokens=found["tokens"],
        learns="all",
        window=512,
        before=3.1,
        after=2.9,
        control=None if gain is None else 2.9 + gain[0],
        gain=None if gain is None else Interval(value=gain[0], low=gain[1], high=gain[2]),
    )


def lines_of(arm: str, steps: Sequence[tuple[int, float]]) -> list[str]:
    """A training's events."""
    lines = []
    for number, loss in steps:
        lines.append(to_json(Step(step=number, steps=8, loss=loss, learning_rate=1e-3, tokens=number * 8192, arm=arm)))  # type: ignore[arg-type]
        lines.append(to_json(Evaluated(step=number, nll=loss, perplexity=1.0, arm=arm)))  # type: ignore[arg-type]
    return lines


def script() -> dict[str, list[str]]:
    """What the workers of a run say, by phase name."""

    def done(measurement: Measurement | None, **evidence: Any) -> str:
        return to_json(Done(measurement=measurement, evidence=evidence))

    rung = GROWN.model_copy(update={"target_length": 256, "probe": None})
    return {
        "baseline": [done(BASE)],
        "grow": [
            to_json(Note(text=HOSTILE)),
            done(BASE.model_copy(update={"buckets": (), "needles": (), "probe": None}), proof=PROOF),
        ],
        "extend-256": [done(rung)],
        "extend-512": [done(GROWN, window={"method": "searched", "options": {"beta_fast": 14.5}, "search": {}})],
        "heal": [
            *lines_of("grown", [(1, 3.1), (4, 3.0), (8, 2.9)]),
            *lines_of("control", [(1, 3.2), (8, float("nan"))]),
            done(GROWN, training=training((0.05, 0.03, 0.07))),
        ],
    }


def make_run(runs: Path, says: Mapping[str, list[str]], **recipe: Any) -> Run:
    """Carry a run of the embedded model out, every gate approved."""
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "script.json").write_text(json.dumps(says), encoding="utf-8")
    source = resolve("embedded")
    wish = Recipe(**({"model": "embedded", "parameters": "2x", "context": "4x"} | recipe))
    plan = make_plan(wish, source, read_architecture(source.folder), detect(runs))
    now = datetime.now(UTC)
    run = create(
        runs, to_yaml(plan), sign(Contract(), "Ada", now=now), name=plan.name, identity=plan.identity(), now=now
    )
    Supervisor(
        run, plan, approver=lambda gate: ("approve", "Ada", "by hand"), tell=lambda kind, event: None, command=WORKER
    ).conduct()
    return run


def with_final(story: Story, measurement: Measurement | None) -> Story:
    """The story with another last measurement."""
    last = max(at for at, one in enumerate(story.phases) if one.measurement is not None)
    phases = list(story.phases)
    phases[last] = replace(phases[last], measurement=measurement)
    return replace(story, phases=tuple(phases))


def with_training(story: Story, found: Training | None) -> Story:
    """The story with another training."""
    return replace(
        story, phases=tuple(replace(one, training=found if one.training is not None else None) for one in story.phases)
    )
