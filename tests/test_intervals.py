from __future__ import annotations

import numpy as np
import pytest

from scaler_wizard.intervals import paired_gain, share_gain, wilson


def test_wilson_agrees_with_the_textbook() -> None:
    found = wilson(81, 263)  # Newcombe 1998, table I
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


def test_the_difference_of_shares_agrees_with_the_textbook() -> None:
    found = share_gain(wilson(48, 80), wilson(56, 70))  # Newcombe 1998, part 2, table II (a), method 10
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_equal_shares_differ_by_nothing_but_chance() -> None:
    found = share_gain(wilson(32, 32), wilson(32, 32))
    assert found.low < found.value == 0 < found.high


def test_pairing_finds_a_small_difference_in_noisy_text() -> None:
    noise = np.random.default_rng(0).standard_normal(200)
    found = paired_gain(3 + noise, 2.98 + noise + 0.02 * np.random.default_rng(1).standard_normal(200), seed=0)
    assert 0 < found.low < found.value < found.high < 0.03
