"""95 % confidence intervals: of a share, of the difference of two shares, of what two readings of a text differ by."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from scaler_wizard.metrics import Interval

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
Z = 1.96


def paired_gain(worse: Floats, better: Floats, *, seed: int) -> Interval:
    """Mean of worse - better over paired blocks, with its 95 % bootstrap interval: both (blocks,)."""
    difference = worse - better
    difference = difference[~np.isnan(difference)]
    picks = np.random.default_rng(seed).integers(0, len(difference), size=(RESAMPLES, len(difference)))
    low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
    return Interval(value=float(difference.mean()), low=float(low), high=float(high))


def wilson(right: int, asked: int, *, z: float = Z) -> Interval:
    """Wilson's 95 % score interval of a share."""
    share, extra = right / asked, z * z / asked
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / asked + extra / (4 * asked)) / (1 + extra)
    return Interval(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


def share_gain(before: Interval, after: Interval) -> Interval:
    """after - before for two shares with Wilson intervals (Newcombe 1998, method 10).

    The two count as independent samples; where both were asked the same questions, that is on the safe side.
    """
    value = after.value - before.value
    below = math.hypot(after.value - after.low, before.high - before.value)
    above = math.hypot(after.high - after.value, before.value - before.low)
    return Interval(value=value, low=value - below, high=value + above)
