"""Factors by gradient: off unless asked for, monotone, stopped early, and judged like every other candidate."""

import json
from typing import Any

import numpy as np
import pytest

from scaler_wizard import refine as module
from scaler_wizard.calibrate import Calibration
from scaler_wizard.context.rope import extended_config
from scaler_wizard.context.search import Candidate, Score, grid, search
from scaler_wizard.data import encode, load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer
from scaler_wizard.phases import Search
from scaler_wizard.refine import Turned, refine
from test_extend import plan, stretches

BASE = json.loads((EMBEDDED / "config.json").read_text())
SPEC = Search(
    minutes=5,
    window=256,
    windows=4,
    digits=4,
    short_length=128,
    short_windows=4,
    finalists=1,
    final_windows=4,
    gradient_steps=5,
)
NONE = Candidate(name="none", method="ntk", options={"alpha": 1.0})


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    tokenizer = load_tokenizer(EMBEDDED)
    encoded = encode(load_corpus("kjv").calibration[:4], tokenizer)
    return Calibration(load_model(EMBEDDED, dtype="float32"), tokenizer, encoded, base=BASE, length=256, spec=SPEC)


def test_the_gradient_finds_factors_for_a_longer_window_and_keeps_them_monotone(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEARNING_RATE", 0.1)
    found = refine(calibration, NONE, steps=5)
    factors = np.array(found.options["long_factor"])
    assert len(factors) == 16 and (np.diff(factors) >= 0).all() and factors[0] >= 1 and factors[-1] <= 4
    assert calibration.decide(found).total < calibration.decide(NONE).total - 0.1
    assert extended_config(BASE, 256, found.method, **found.options)["max_position_embeddings"] == 256  # type: ignore[arg-type]


def test_it_learns_the_rotary_settings_of_the_candidate_that_it_begins_at(calibration: Calibration) -> None:
    turned, _ = module._turned(calibration, grid()[0])
    begun = turned.candidate()
    assert calibration.score(begun).total == pytest.approx(calibration.score(grid()[0]).total, abs=2e-3)


def test_it_ends_when_windows_that_did_not_teach_say_so_and_gives_back_where_it_began(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEARNING_RATE", 30.0)
    monkeypatch.setattr(module, "LOOK_EVERY", 1)
    steps: list[int] = []
    descend = module._descend
    monkeypatch.setattr(module, "_descend", lambda *given: (steps.append(1), descend(*given)))
    assert refine(calibration, grid()[0], steps=1000) == grid()[0]
    assert len(steps) == module.PATIENCE


def test_projection_leaves_no_factor_below_one_or_below_the_one_before() -> None:
    import torch

    turned = Turned(torch.ones(4), torch.tensor([0.5, 3.0, 2.0, 9.0]), 1.0)
    turned.project(4.0)
    assert turned.candidate().options["long_factor"] == pytest.approx((1, 3, 3, 4))


def test_what_the_gradient_found_is_one_more_finalist_and_wins_only_by_its_score() -> None:
    def score(candidate: Candidate) -> Score:
        return Score(far=1 if candidate.name == "gradient" else 2 - better, long=0, short=0, found=1)

    def found() -> str:
        return search(
            score,
            score,
            factor=4,
            evaluations=3,
            finalists=1,
            seconds=9,
            clock=lambda: 0.0,
            rng=np.random.default_rng(0),
            refine=lambda best: Candidate(name="gradient", method="longrope"),
        ).best.candidate.name

    better = 0.0
    assert found() == "gradient"
    better = 1.5
    assert found() == "yarn"


def test_a_scaled_base_is_refused(calibration: Calibration) -> None:
    scaled: dict[str, Any] = extended_config(BASE, 256, "yarn")
    monkey = Calibration.__new__(Calibration)
    monkey.model, monkey.base, monkey.length = calibration.model, scaled, 512
    with pytest.raises(ScalerError, match="scaled already"):
        refine(monkey, grid()[0], steps=1)


def test_the_gradient_is_off_unless_a_recipe_asks_for_it() -> None:
    (off,) = stretches(plan(context="2x", extend={"search": True}))
    (on,) = stretches(plan(context="2x", extend={"search": True, "gradient": True}))
    assert off.search is not None and off.search.gradient_steps == 0
    assert on.search is not None and on.search.gradient_steps == 40
