from typing import Any

import pytest

from scaler_wizard.phases import Train
from scaler_wizard.schedule import chosen_rate, learning_rate, tried_rates


def rates(**changes: Any) -> list[float]:
    chosen = Train(
        train="all",
        steps=100,
        windows_per_step=1,
        micro_batch=1,
        window=8,
        learning_rate=2.0,
        warmup_steps=10,
        evaluate_every=1,
        **changes,
    )
    return [learning_rate(chosen, step) for step in range(101)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_it_warms_up_in_even_steps_to_its_peak(schedule: str) -> None:
    found = rates(schedule=schedule)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert max(found) == found[10] == 2.0


def test_a_cosine_falls_without_a_stop_to_a_tenth_of_its_peak() -> None:
    found = rates()
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[55] == pytest.approx(2.0 * 0.55)
    assert found[100] == pytest.approx(0.2)


def test_warm_up_stable_decay_holds_its_peak_and_falls_to_nothing_in_the_last_fifth() -> None:
    found = rates(schedule="wsd")
    assert set(found[10:82]) == {2.0}
    assert found[83] < 2.0
    assert found[82:] == sorted(found[82:], reverse=True)
    assert found[100] == pytest.approx(0.0, abs=1e-12)


def test_adapters_that_begin_anew_warm_up_again_and_then_follow_the_cosine() -> None:
    plain, anew = rates(), rates(lora_restarts=3)
    for start in (25, 50, 75):
        assert anew[start : start + 10] == pytest.approx([plain[start + step] * (step + 1) / 10 for step in range(10)])
        assert anew[start + 10 : start + 25] == plain[start + 10 : start + 25]


def test_the_rate_of_the_steepest_gain_is_chosen_and_not_one_past_the_peak() -> None:
    rates = tried_rates(1e-3)
    assert rates[0] == pytest.approx(1e-3 / 30) and rates[-1] == pytest.approx(3e-2)
    gains = [0.02 * number if number < 12 else 0.24 + 0.1 * (number - 12) for number in range(20)]
    gains += [gains[-1] - 0.3 * number for number in range(1, 6)]
    found = chosen_rate(rates, gains)
    assert rates[12] <= found <= rates[18]
    assert chosen_rate(rates, [0.0, -1.0, -2.0]) == rates[0]
    assert chosen_rate(rates, [0.0]) == rates[0]
