"""A smooth surface through noisy scores: a Gaussian process, which says what it expects and how sure it is.

Notation as in Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapter 2: X points, y values,
K covariance of the points, k_* covariance with new ones. Squared exponential covariance of unit variance; lengths and
noise are those of a small grid under which the values are likeliest (their equation 2.30).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

STRETCHES = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Times the given length scales."""
NOISES = (1e-3, 1e-2, 0.1)
"""Variance of the noise, as a share of the surface's."""


@dataclass(frozen=True)
class Surface:
    """What scores say about points that were not tried."""

    points: Floats
    """(n, k): X, in units of the length scales."""
    lengths: Floats
    """(k,)"""
    factor: Floats
    """(n, n): Cholesky factor of K + noise."""
    weights: Floats
    """(n,): (K + noise)^-1 y."""
    centre: float
    scale: float
    """Mean and standard deviation of the values."""
    likelihood: float
    """Log marginal likelihood of the values, up to a constant."""

    def __call__(self, points: Floats) -> tuple[Floats, Floats]:
        """Expected values and standard deviations at points (m, k): (m,) each."""
        across = _covariance(self.points, points / self.lengths)
        spread = np.linalg.solve(self.factor, across)
        deviation = np.sqrt(np.maximum(1 - (spread**2).sum(axis=0), 0))
        return self.centre + self.scale * (across.T @ self.weights), self.scale * deviation


def surface(points: Floats, values: Floats, *, lengths: Floats) -> Surface:
    """The likeliest surface through values (n,) at points (n, k); `lengths` (k,) is how far apart points are alike."""
    fits = (_fit(points, values, lengths * stretch, noise) for stretch, noise in product(STRETCHES, NOISES))
    return max(fits, key=lambda fit: fit.likelihood)


def _fit(points: Floats, values: Floats, lengths: Floats, noise: float) -> Surface:
    centre, scale = float(values.mean()), float(values.std()) or 1.0
    x, y = points / lengths, (values - centre) / scale
    factor = np.asarray(np.linalg.cholesky(_covariance(x, x) + noise * np.eye(len(x))), np.float64)
    weights = np.asarray(np.linalg.solve(factor.T, np.linalg.solve(factor, y)), np.float64)
    likelihood = -0.5 * float(y @ weights) - float(np.log(np.diag(factor)).sum())
    return Surface(x, lengths, factor, weights, centre, scale, likelihood)


def _covariance(one: Floats, other: Floats) -> Floats:
    distance = ((one[:, None, :] - other[None, :, :]) ** 2).sum(axis=-1)
    covariance: Floats = np.exp(-0.5 * distance)
    return covariance
