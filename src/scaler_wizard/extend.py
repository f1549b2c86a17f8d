"""P2: one rung of the ladder: choose rotary settings, by search where the plan asks for it, and write them.

The weights stay the very same files. What the search tried is kept in the gate's evidence, all of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scaler_wizard.architecture import Blueprint
from scaler_wizard.context.rope import cautions, extended_config, positions
from scaler_wizard.context.search import Candidate, Found, Trial, grid, search
from scaler_wizard.phases import Extend
from scaler_wizard.task import Task

GRADIENT_SHARE = 0.75
"""Part of a search's time after which the gradient gives way to the second look."""

Tell = Callable[[float, str], None]


def extend(task: Task, tell: Tell) -> tuple[dict[str, Any], dict[str, Any]]:
    """(configuration of the rung, evidence for the gate); writes nothing."""
    change = task.phase.change
    assert isinstance(change, Extend)
    config, base = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (task.current, task.base.folder)
    )
    base["max_position_embeddings"] = task.base.native_context  # less than the claim where less was measured
    method, found = change.method, None
    options: dict[str, Any] = dict(change.options)
    if change.search is not None:
        found = _search(task, change, base, tell)
        method, options = found.best.candidate.method, dict(found.best.candidate.options)
    extended = extended_config(config, change.length, method, base=base, **options)
    evidence = {
        "window": {
            "length": change.length,
            "method": method,
            "options": options,
            "cautions": list(cautions(Blueprint(base), change.length, method)),
            "search": None if found is None else found.model_dump(mode="json"),
        }
    }
    return extended, evidence


def _search(task: Task, change: Extend, base: Mapping[str, Any], tell: Tell) -> Found:
    from scaler_wizard.calibrate import Calibration
    from scaler_wizard.data import encode, load_corpus
    from scaler_wizard.models import load_model, load_tokenizer

    spec = change.search
    assert spec is not None
    tokenizer = load_tokenizer(task.current)
    text = encode(load_corpus(task.data).calibration, tokenizer)
    model = load_model(task.current)
    scorer = Calibration(model, tokenizer, text, base=base, length=change.length, spec=spec)
    wanted = spec.evaluations + spec.finalists

    def heard(trials: list[Trial]) -> None:
        best = min(trials, key=lambda trial: trial.score.total)
        tell(min(1.0, len(trials) / wanted), f"search {len(trials)}/{wanted}, best so far {best.candidate.name}")

    begun = time.monotonic()

    def by_gradient(candidate: Candidate) -> Candidate:
        from scaler_wizard.refine import refine

        late = begun + GRADIENT_SHARE * spec.minutes * 60
        return refine(scorer, candidate, steps=spec.gradient_steps, over=lambda: time.monotonic() > late)

    return search(
        scorer.score,
        scorer.decide,
        factor=change.length / int(base["max_position_embeddings"]),
        evaluations=spec.evaluations,
        finalists=spec.finalists,
        seconds=spec.minutes * 60,
        clock=time.monotonic,
        rng=np.random.default_rng(spec.seed),
        heard=heard,
        refine=by_gradient if spec.gradient_steps else None,
        known=grid(scaled=positions(base).rope["rope_type"] != "default"),
    )
