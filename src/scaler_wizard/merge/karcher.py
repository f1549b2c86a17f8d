"""Average the models' directions on the sphere until nothing pulls any more (Karcher mean; Karcher 1977).

Every step is a combination of the tensors, so their inner products (one pass) give every factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.spheres import Gram, gram, products
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

TINY = 1e-30


class Karcher(Method):
    """The mean on the sphere in the middle of all models, at their mean length."""

    title: ClassVar[str] = "middle of several models on the sphere"
    paper: ClassVar[str] = "Karcher mean, 1977"
    fewest: ClassVar[int] = 2

    method: Literal["karcher"] = "karcher"
    """Which method."""
    models: Annotated[tuple[MergedModel, ...], Field(min_length=2)]
    """The models; all count alike."""
    max_iter: Annotated[int, Field(ge=1, le=1000)] = 10
    """Steps at most."""
    tol: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Length of a step, in radians, below which it ends."""

    def merged(self, tensors: Tensors) -> Expression:
        """Factors follow from the angles between the whole tensors."""
        return Blend(tensors.models, Middle(len(tensors.models), self.max_iter, self.tol), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Middle:
    """The direction m with sum of log_m(u_i) = 0, for u_i = x_i / |x_i|, times the mean of the lengths."""

    count: int
    max_iter: int
    tol: float
    whole: bool = False

    def survey(self, look: Look) -> list[float]:
        """One factor for each tensor."""
        return self.factors(gram(look.each(products)))

    def factors(self, inner: Gram) -> list[float]:
        """m in terms of the u_i, found by steps of its tangent."""
        lengths = np.sqrt(np.diag(inner))
        there = lengths > self.tol
        units = inner / np.maximum(np.outer(lengths, lengths), TINY)
        shares = np.where(there, 1.0, 0.0) / max(int(there.sum()), 1)
        mean = _unit(shares, units, self.tol)
        for _ in range(self.max_iter):
            dots = np.clip(units @ mean, -1.0, 1.0)
            angles = np.arccos(dots)
            pulls = np.where(angles > self.tol, shares * angles / np.maximum(np.sin(angles), TINY), 0.0)
            tangent = pulls - float(pulls @ dots) * mean
            step = _length(tangent, units)
            if step < self.tol:
                break
            mean = _unit(np.cos(step) * mean + np.sin(step) / step * tangent, units, self.tol)
        scale = float(lengths.mean())
        return [float(share) for share in scale * mean / np.maximum(lengths, TINY) * there]

    def blend(self, values: list[Array], facts: list[float], dice: Dice) -> Array:
        """One chunk."""
        total, *others = values
        total *= np.float32(facts[0])
        for value, factor in zip(others, facts[1:], strict=True):
            value *= np.float32(factor)
            total += value
        return total


def _length(combination: Gram, units: Gram) -> float:
    return float(np.sqrt(max(float(combination @ units @ combination), 0.0)))


def _unit(combination: Gram, units: Gram, tol: float) -> Gram:
    """The combination at length 1; the first direction where all cancel."""
    length = _length(combination, units)
    if length < tol:
        first = np.zeros_like(combination)
        first[int(np.argmax(np.diag(units) > 0))] = 1.0
        return first
    found: Gram = combination / length
    return found
