from pathlib import Path
from typing import Any

import pytest

from commands import scaler
from machines import machine
from scaler_wizard import trial
from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.estimate import Tried, read_beside, short
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.phases import Plan, Train
from scaler_wizard.plan import Setting, make_plan
from scaler_wizard.recipe import Heal, Recipe
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.trial import LONG_SECONDS, is_long, try_out

SOURCE = Source(EMBEDDED, "embedded", None, "")
BASE = read_architecture(EMBEDDED)


def recipe(**changes: Any) -> Recipe:
    return Recipe(model="embedded", parameters="1.2x", context="2x", heal=Heal(tokens=65_536, window=128), **changes)


def trained(plan: Plan) -> Any:
    return next(phase for phase in plan.phases if isinstance(phase.change, Train))


def test_a_trial_is_equal_for_trainings_whose_steps_cost_the_same() -> None:
    train = trained(make_plan(recipe(), SOURCE, BASE, machine(16))).change
    assert short(train) == short(train.model_copy(update={"steps": 999, "warmup_steps": 5, "target": 128}))
    assert short(train) != short(train.model_copy(update={"window": 64}))
    assert short(train) != short(train.model_copy(update={"control": False}))


@pytest.mark.parametrize(("at_once", "steps", "tried"), [(16, 90, 3), (4, 90, 3), (2, 90, 5), (1, 90, 9), (1, 6, 6)])
def test_a_trial_sees_several_windows(at_once: int, steps: int, tried: int) -> None:
    train = trained(make_plan(recipe(), SOURCE, BASE, machine(16))).change
    few = short(train.model_copy(update={"windows_per_step": at_once, "micro_batch": 1, "steps": steps}))
    assert few.steps == few.evaluate_every == tried


def test_a_trial_is_as_sure_as_its_steps_are_alike() -> None:
    few = short(trained(make_plan(recipe(), SOURCE, BASE, machine(16))).change)
    clock = trial._Clock(few, paces={"grown": [1.0, 2.0, 1.0, 2.0], "control": [1.0, 1.0, 1.0, 1.0]})
    assert clock.step_seconds == 2.5
    assert clock.band == pytest.approx(2 * 0.577 / 2 / 1.5, abs=1e-3)
    assert trial._Clock(few, paces={"grown": [1.0]}).band == trial.LEAST_BAND
    assert trial._Clock(few, paces={"grown": [1.0, 1.0]}).band == trial.LEAST_BAND
    assert trial._Clock(few, paces={"grown": [1.0, 1.5]}).band == pytest.approx(0.5 / 1.25)


def test_times_are_the_trials_own_and_what_is_left_of_the_training() -> None:
    train = trained(make_plan(recipe(), SOURCE, BASE, machine(16))).change
    tried = Tried(short(train), seconds=20.0, step_seconds=2.0, token_seconds=1e-4, memory_bytes=10**9, band=0.12)
    found = trained(make_plan(recipe(), SOURCE, BASE, machine(16), tried=(tried,))).estimate
    own = 20.0 + (train.steps - 3) * 2.0 + (read_beside(train) - read_beside(short(train))) * 1e-4
    assert own < found.seconds < own + 60
    assert (found.band, found.memory_bytes) == (0.12, 10**9)
    assert found.basis.startswith("a trial of 3 steps")
    counted = trained(make_plan(recipe(), SOURCE, BASE, machine(16))).estimate
    assert counted.band is None and counted.basis.startswith("counted operations")


def test_what_is_read_beside_counts_both_arms_and_every_evaluation() -> None:
    train = trained(make_plan(recipe(), SOURCE, BASE, machine(16))).change
    plain = train.model_copy(
        update={"steps": 10, "evaluate_every": 4, "evaluate_tokens": 1024, "held_out_tokens": 4096}
    )
    assert read_beside(plain) == 3 * 4096 + 2 * 4 * 1024
    assert read_beside(plain.model_copy(update={"control": False})) == 2 * 4096 + 4 * 1024
    assert read_beside(plain.model_copy(update={"evaluate_tokens": 1})) == 3 * 4096 + 2 * 4 * 4 * plain.window


def test_the_worker_really_tries_the_training_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small = recipe(limits={"threads": 1}).model_copy(update={"heal": Heal(tokens=4096, window=64, control=False)})
    setting = Setting(small, BASE, machine(16))
    (tried,) = try_out(
        make_plan(setting.recipe, SOURCE, BASE, setting.hardware), threads=1, memory_limit=2**33, told=lambda _: None
    )
    assert 0 < tried.step_seconds < tried.seconds
    assert 0 < tried.token_seconds < tried.step_seconds / 100
    assert 2**28 < tried.memory_bytes < 2**32
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_fails_says_why_in_two_lines() -> None:
    broken = make_plan(recipe(), SOURCE, BASE, machine(16)).model_copy(update={"data": "/nowhere"})
    with pytest.raises(ScalerError, match="the trial failed: /nowhere: no such text"):
        try_out(broken, threads=1, memory_limit=2**33, told=lambda _: None)


def test_only_long_trainings_are_worth_a_trial_before_a_run() -> None:
    plan = make_plan(recipe(), SOURCE, BASE, machine(16))
    number = plan.phases.index(trained(plan))

    def lasting(seconds: float | None) -> Plan:
        phase = plan.phases[number]
        phase = phase.model_copy(update={"estimate": phase.estimate.model_copy(update={"seconds": seconds})})
        return plan.model_copy(update={"phases": (*plan.phases[:number], phase, *plan.phases[number + 1 :])})

    assert is_long(lasting(LONG_SECONDS + 1))
    assert not is_long(lasting(LONG_SECONDS - 1)) and not is_long(lasting(None))


@pytest.mark.slow
def test_a_run_shows_what_its_trial_found_before_anyone_signs(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: embedded\ncontext: 2x\nheal: {tokens: 32K, window: 128}\n")
    said = scaler("run", tmp_path / "r.yaml", "--trial", "--runs", tmp_path / "runs", "--set", "limits.threads=1")
    assert said.returncode == 2, said.stderr
    assert "A trial of 3 steps" in said.stderr and "±" in said.stdout and "sign" in said.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_command_puts_the_trial_into_the_plan_with_its_band(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: embedded\ncontext: 2x\nheal: {tokens: 32K, window: 128}\n")
    out = tmp_path / "plan.yaml"
    said = scaler("plan", tmp_path / "r.yaml", "--trial", "-o", out, "--set", "limits.threads=1")
    assert said.returncode == 0, said.stderr
    assert "A trial of 3 steps" in said.stderr and "±" in said.stdout
    assert "training by a trial of 3 steps on 1 threads just now" in " ".join(said.stdout.split())
    plan = Plan.read(load_yaml(out), "plan")
    assert trained(plan).estimate.band >= 0.1
