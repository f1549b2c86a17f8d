"""Lengths and angles of whole tensors, in one pass: sums of products in fp32 over short rows, then in fp64."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from scaler_wizard.weights.evaluate import Array

ROW = 8192  # numbers that are added up in fp32, in many lanes
Gram = npt.NDArray[np.float64]
"""Products of all pairs of tensors: (tensors, tensors)."""


def gram(found: Iterable[Gram]) -> Gram:
    """Inner products of all pairs of whole tensors, from those of their chunks."""
    total: Gram = np.sum(list(found), axis=0)
    return total


def products(values: list[Array]) -> Gram:
    """Inner products of all pairs of chunks."""
    whole: Gram = np.empty((len(values), len(values)))
    for i, a in enumerate(values):
        for j, b in enumerate(values[: i + 1]):
            whole[i, j] = whole[j, i] = product(a, b)
    return whole


def product(a: Array, b: Array) -> float:
    """Inner product of two chunks."""
    a, b = a.reshape(-1), b.reshape(-1)
    even = a.size // ROW * ROW
    rows = np.matmul(a[:even].reshape(-1, 1, ROW), b[:even].reshape(-1, ROW, 1))
    return float(rows.sum(dtype=np.float64)) + float(np.dot(a[even:].astype(np.float64), b[even:].astype(np.float64)))


def slerp_weights(t: float, cosine: float, *, straight_from: float) -> tuple[float, float]:
    """Factors of two tensors on the way from the first (t = 0) to the second (t = 1) along a great circle.

    Where |cosine| is above `straight_from` the way is nearly straight, and the factors are those of a line.
    """
    if abs(cosine) > straight_from:
        return 1 - t, t
    angle = float(np.arccos(cosine))
    return float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def cosine(products: Gram, first: int, second: int) -> float:
    """Cosine of the angle between two tensors; 0 where one of them is zero."""
    lengths = float(np.sqrt(products[first, first] * products[second, second]))
    return float(np.clip(products[first, second] / lengths, -1, 1)) if lengths > 0 else 0.0
