"""The circuit breaker, on real curves and on single numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.breaker import CircuitBreaker, accuracy_floor, fall_shown, questions_needed, relative_slope
from scaler_wizard.events import Telegram
from scaler_wizard.intervals import wilson
from scaler_wizard.recipe import Breaker
from scaler_wizard.record import from_json, to_json

CURVES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "curves.json").read_text(encoding="utf-8"))


def played(curve: dict[str, Any], **settings: Any) -> tuple[int, Telegram] | None:
    """The recorded evaluations, one by one: at which the breaker spoke."""
    breaker = CircuitBreaker(Breaker(**settings))
    for at, nll in enumerate(curve["nll"]):
        if telegram := breaker.observe_evaluation(at * curve["evaluate_every"], nll):
            return at, telegram
    return None


@pytest.mark.parametrize("curve", [c for c in CURVES if c["kind"] in ("healthy", "spiking")], ids=lambda c: c["name"])
def test_a_training_that_is_well_or_recovers_is_not_stopped(curve: dict[str, Any]) -> None:
    assert played(curve) is None


@pytest.mark.parametrize("curve", [c for c in CURVES if c["kind"] == "diverging"], ids=lambda c: c["name"])
def test_a_diverging_training_is_stopped_within_four_evaluations(curve: dict[str, Any]) -> None:
    found = played(curve)
    assert found is not None
    assert 0 < found[0] - curve["onset"] <= 4


def test_a_rotting_training_is_stopped_unless_it_loses_two_per_cent_at_a_time() -> None:
    rotting = [c for c in CURVES if c["kind"] == "rotting"]
    missed = [c["name"] for c in rotting if played(c) is None]
    assert missed == ["random tokens at 3e-5"] * 2


def test_one_spike_moves_the_difference_of_ends_and_not_the_median_of_slopes() -> None:
    spiked = [10.0] * 9 + [40.0]
    assert (spiked[-1] - spiked[0]) / 9 / spiked[0] > 0.15
    assert relative_slope(spiked) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_stops_in_that_step_even_where_only_warnings_are_wanted(value: float) -> None:
    breaker = CircuitBreaker(Breaker(action="warn"))
    assert breaker.observe(1, 2.0) is None
    telegram = breaker.observe(2, value)
    assert telegram is not None
    assert (telegram.cause, telegram.step, telegram.hard) == ("nonfinite", 2, True)
    assert from_json(to_json(telegram))["value"] == pytest.approx(value, nan_ok=True)
    evaluation = CircuitBreaker(Breaker()).observe_evaluation(3, value)
    assert evaluation is not None
    assert evaluation.hard


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_no_sequence_of_numbers_breaks_the_breaker_or_its_telegram(values: list[float]) -> None:
    breaker = CircuitBreaker(Breaker(), base_accuracy=0.7)
    for at, value in enumerate(values):
        for telegram in (breaker.observe(at, value), breaker.observe_evaluation(at, value)):
            assert telegram is not None or math.isfinite(value)
            if telegram is not None:
                json.loads(to_json(telegram))
                assert len(telegram.sentence) <= 120
    again = CircuitBreaker(Breaker(), base_accuracy=0.7)
    again.restore(from_json(to_json(breaker.state())))
    assert to_json(again.state()) == to_json(breaker.state())


def test_warnings_do_not_stop() -> None:
    curve = next(c for c in CURVES if c["kind"] == "diverging")
    found = played(curve, action="warn")
    assert found is not None
    assert not found[1].hard


def test_the_training_loss_stops_what_blows_up_within_five_steps() -> None:
    breaker = CircuitBreaker(Breaker())
    breaker.observe_evaluation(0, 2.0)
    telegrams = [breaker.observe(step, 2.0 if step < 10 else 5.0) for step in range(1, 16)]
    first = next(step for step, telegram in enumerate(telegrams, 1) if telegram)
    assert first - 10 < 5


def test_ten_questions_decide_nothing_and_enough_do() -> None:
    breaker = CircuitBreaker(Breaker(), base_accuracy=0.8)
    assert breaker.observe_evaluation(1, 2.0, 0.5, asked=10) is None
    needed = questions_needed(0.8, 0.05)
    assert wilson(round(0.7 * needed), needed).high < 0.75 <= wilson(round(0.7 * (needed // 2)), needed // 2).high
    telegram = breaker.observe_evaluation(2, 2.0, 0.7, asked=needed)
    assert telegram is not None
    assert telegram.cause == "accuracy"


PROVOKED: dict[str, tuple[Callable[[], list[Telegram | None]], str, Any]] = {
    "nonfinite": (lambda: _steps([2.0, math.nan]), "math.isfinite", lambda _: True),
    "divergence": (lambda: _steps([2.0] * 9 + [5.0] * 5), "STEPS_AVERAGED", 99),
    "slope": (lambda: _evaluations([2.0 + 0.3 * n for n in range(6)]), "relative_slope", lambda _: None),
    "accuracy": (lambda: _evaluations([2.0], accuracy=0.3, asked=100), "accuracy_floor", lambda *_: None),
}
"""By cause: what must stop, then a guard and what it is replaced with."""


def _steps(losses: list[float]) -> list[Telegram | None]:
    breaker = CircuitBreaker(Breaker())
    breaker.observe_evaluation(0, 2.0)
    return [breaker.observe(step, loss) for step, loss in enumerate(losses, 1)]


def _evaluations(losses: list[float], **answers: Any) -> list[Telegram | None]:
    breaker = CircuitBreaker(Breaker(), base_accuracy=0.8)
    return [breaker.observe_evaluation(step, nll, **answers) for step, nll in enumerate(losses)]


@pytest.mark.parametrize("cause", PROVOKED)
def test_each_limit_stops_and_without_its_guard_it_does_not(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provoke, guard, nothing = PROVOKED[cause]
    assert next(one.cause for one in provoke() if one is not None) == cause
    with monkeypatch.context() as mutant:
        mutant.setattr(f"scaler_wizard.breaker.{guard}", nothing)
        assert all(one is None or one.cause != cause for one in provoke())


def test_few_questions_say_which_fall_they_can_show() -> None:
    shown = fall_shown(Breaker(), 0.8, 40)
    assert shown is not None
    assert wilson(round((0.8 - shown) * 40), 40).high < 0.75 <= wilson(round((0.8 - shown) * 40) + 1, 40).high
    assert fall_shown(Breaker(accuracy_floor=0.0, accuracy_margin=0.9), 0.8, 10) is None


def test_the_stricter_floor_counts_and_a_weak_base_is_held_to_itself() -> None:
    settings = Breaker()
    assert accuracy_floor(settings, 0.9) == pytest.approx(0.85)
    assert accuracy_floor(settings, 0.52) == pytest.approx(0.50)
    assert accuracy_floor(settings, 0.30) == pytest.approx(0.25)
    assert accuracy_floor(settings, None) is None
