"""Learning from runs: made-up runs with a known law for the maths, the shipped real ones for the claims."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scaler_wizard import learn
from scaler_wizard.errors import ScalerError
from scaler_wizard.experience import Experience, PhaseNeeds
from scaler_wizard.learn import (
    LEAST,
    Memory,
    as_yaml,
    calibrate,
    read_rules,
    remember,
    rules,
    run_features,
    wish_features,
)


def made_up(number: int, rng: np.random.Generator) -> Experience:
    """A run of a world where a high learning rate hurts, adapters do not, and memory is 1.4 times what was expected."""
    rate, train = float(rng.choice([2e-3, 2e-4])), str(rng.choice(["all", "lora"]))
    growth, stretch = float(rng.choice([1.0, 1.3, 2.0])), float(rng.choice([1.0, 2.0, 4.0]))
    hurt = 0.3 if rate > 1e-3 and train == "all" else 0.0
    phases = []
    for kind in ("baseline", "heal"):
        flops = float(rng.uniform(1e10, 1e12))
        expected = int(rng.uniform(4e8, 2e9))
        phases.append(
            PhaseNeeds.model_validate(
                {
                    "kind": kind,
                    "parameters": int(1e6 * growth),
                    "layers": 4,
                    "hidden": 128,
                    "ffn": 320,
                    "kv_width": 64,
                    "vocabulary": 1024,
                    "window": int(128 * stretch),
                    "micro_tokens": 8192 if kind == "heal" else 0,
                    "train": train if kind == "heal" else "none",
                    "flops": flops,
                    "estimated_bytes": expected,
                    "estimated_seconds": None,
                    "cpu_seconds": (5 + flops / 3e10) * float(rng.lognormal(0, 0.05)),
                    "peak_bytes": int(1.4 * expected * float(rng.lognormal(0, 0.05))),
                }
            )
        )
    return Experience.model_validate(
        {
            "run": f"run-{number:03d}",
            "base": "made-up",
            "parameters": 10**6,
            "growth": growth,
            "stretch": stretch,
            "operators": [],
            "train": train,
            "tokens": 65536,
            "learning_rate": rate,
            "threads": 1,
            "phases": phases,
            "short_change": hurt + 0.01 * math.log2(stretch) + float(rng.normal(0, 0.01)),
            "context_gain": None,
            "control_gain": None,
            "outside_limits": 0,
            "stopped": False,
        }
    )


@pytest.fixture(scope="module")
def world() -> list[Experience]:
    rng = np.random.default_rng(3)
    return [made_up(number, rng) for number in range(60)]


@pytest.fixture(scope="module")
def known(world: list[Experience]) -> Memory:
    found = remember(world)
    assert found is not None
    return found


def test_with_few_runs_it_does_not_know(world: list[Experience]) -> None:
    assert remember(world[: LEAST - 1]) is None
    assert rules(world[: LEAST - 1]).rules == ()


def test_the_law_of_a_made_up_world_is_found(world: list[Experience], known: Memory) -> None:
    bad = known.short_change(wish_features(1.3, 2.0, "all", 65536, 2e-3), 10**6)
    good = known.short_change(wish_features(1.3, 2.0, "lora", 65536, 2e-4), 10**6)
    assert bad is not None and good is not None
    assert bad.middle == pytest.approx(0.31, abs=0.05) and good.middle == pytest.approx(0.01, abs=0.05)
    assert good.high < bad.low
    phase = world[0].phases[1]
    bands = known.needs(phase)
    assert bands is not None
    assert bands[1].middle == pytest.approx(1.4 * (phase.estimated_bytes or 0), rel=0.15)
    assert bands[0].middle == pytest.approx(5 + phase.flops / 3e10, rel=0.25)


def test_a_plan_unlike_every_run_is_not_known(world: list[Experience], known: Memory) -> None:
    assert known.short_change(run_features(world[0]), 7 * 10**9) is None
    assert known.needs(world[0].phases[0].model_copy(update={"parameters": 7 * 10**9})) is None


def test_bands_hold_on_runs_that_were_left_out(world: list[Experience]) -> None:
    found = calibrate(world[:40])
    assert min(found.loss_inside, found.seconds_inside, found.bytes_inside) >= 0.7


def test_rules_are_sentences_with_their_support_and_others_rules_are_marked(
    world: list[Experience], tmp_path: Path
) -> None:
    found = rules(world)
    assert sum(rule.support for rule in found.rules) == len(world)
    worst = max(found.rules, key=lambda rule: rule.short_change.middle)
    assert any("learning_rate" in condition for condition in worst.when)
    file = tmp_path / "rules.yaml"
    file.write_text(as_yaml(found))
    theirs = read_rules(file)
    assert theirs.runs == len(world) and all(rule.foreign for rule in theirs.rules)
    file.write_text(as_yaml(found).replace("foreign: false", "foreign: false\n  limits: {memory_share: 0.99}"))
    with pytest.raises(ScalerError, match="limits"):
        read_rules(file)


def test_only_what_is_asked_for_is_fitted_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    runs = [made_up(number, rng) for number in range(LEAST)]
    fitted = []
    fit = learn._fit
    monkeypatch.setattr(learn, "_fit", lambda rows, seed: (fitted.append(rows), fit(rows, seed))[1])
    known = remember(runs)
    assert known is not None and fitted == []
    for _ in range(2):
        assert known.short_change(run_features(runs[0]), runs[0].parameters) is not None
    assert fitted == [known.outcomes]
