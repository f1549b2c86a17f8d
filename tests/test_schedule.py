from typing import Any

import pytest

from scaler_wizard.phases import Train
from scaler_wizard.schedule import learning_rate


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
