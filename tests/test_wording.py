from __future__ import annotations

import pytest

from scaler_wizard.metrics import Interval
from scaler_wizard.wording import duration, gibibytes, interval, number, points_interval, share, signed, size


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (size(820_352), "820K"),
        (size(1_644_160), "1.64M"),
        (size(12), "12"),
        (number(None), "not measured"),
        (number(float("nan")), "not a number"),
        (number(float("-inf")), "minus infinite"),
        (signed(-0.0001), "0.000"),
        (signed(-0.014), "−0.014"),
        (share(0.5), "50 %"),
        (interval(None), "not measured"),
        (interval(Interval(value=0.1, low=-0.1, high=0.3)), "+0.100 [−0.100, +0.300]"),
        (points_interval(Interval(value=0.1, low=-0.1, high=0.3)), "+10 points [−10, +30]"),
        (duration(59.6), "1 min 0 s"),
        (duration(7500), "2 h 5 min"),
        (gibibytes(3 * 2**29), "1.5 GiB"),
    ],
)
def test_figures_are_said_as_people_read_them(said: str, words: str) -> None:
    assert said == words
