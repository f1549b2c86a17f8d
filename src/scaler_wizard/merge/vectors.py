"""Task vectors: what each model adds to the base. Trimmed, weighed, agreed on by sign, and added to the base again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from scaler_wizard.weights import Dice, Look
from scaler_wizard.weights.evaluate import Array

Found = TypeVar("Found")
SMALLEST_DIVISOR = 1e-8
SIGN_BIT = np.uint32(0x80000000)


class Vectors:
    """A look at task vectors instead of models: the base is the first part, and is taken off."""

    def __init__(self, look: Look) -> None:
        self.shape = look.shape
        self._look = look

    def each(self, find: Callable[[list[Array]], Found]) -> Iterator[Found]:
        """What `find` says of each chunk of the task vectors."""
        return self._look.each(lambda values: find(vectors(values)[1]))

    def sample(self) -> list[Array]:
        """About 64K evenly spread numbers of each."""
        return vectors(self._look.sample())[1]


def vectors(values: list[Array]) -> tuple[Array, list[Array]]:
    """The base, and each model less the base."""
    base, *models = values
    for model in models:
        model -= base
    return base, models


class Trim(Protocol):
    """How a task vector is thinned out, in place."""

    def survey(self, look: Vectors) -> Any:
        """What has to be known of the whole task vectors."""

    def trim(self, vector: Array, model: int, facts: Any, dice: Dice) -> None:
        """Thin out one chunk of one model's task vector."""


@dataclass(frozen=True)
class Weigh:
    """base + scale * (weighted sum of trimmed task vectors), or the weighted mean of those that agree in sign."""

    weights: tuple[float, ...]
    trim: Trim | None = None
    elect: bool = False
    """Keep only numbers with the sign that the weighted sum has (TIES)."""
    normalize: bool = False
    """Divide by the weights of what was added up."""
    scale: float = 1.0
    whole: bool = False

    def survey(self, look: Look) -> Any:
        """What the trimming needs."""
        return self.trim.survey(Vectors(look)) if self.trim else None

    def blend(self, values: list[Array], facts: Any, dice: Dice) -> Array:
        """One chunk."""
        base, models = vectors(values)
        even = self.elect and self.normalize and set(self.weights) == {self.weights[0]} != {0.0}
        for number, (vector, weight) in enumerate(zip(models, self.weights, strict=True)):
            if self.trim:
                self.trim.trim(vector, number, facts, dice)
            if weight != 1.0 and not even:
                vector *= np.float32(weight)
        weights = (1.0,) * len(models) if even else self.weights
        total = agreed(models, weights, normalize=self.normalize) if self.elect else self._sum(models)
        if self.scale != 1.0:
            total *= np.float32(self.scale)
        total += base
        return total

    def _sum(self, models: list[Array]) -> Array:
        total = _sum(models, into=models[0])
        weight = sum(self.weights)
        if self.normalize and abs(weight) >= SMALLEST_DIVISOR:
            total *= np.float32(1 / weight)
        return total


def keep(vector: Array, mask: Any) -> None:
    """Zero what the mask (booleans) leaves out, in place; a product is many times quicker than a selection."""
    vector *= mask.view(np.uint8).astype(np.float32)


def agreed(models: list[Array], weights: tuple[float, ...], *, normalize: bool) -> Array:
    """Sum of the numbers whose sign is that of the sum of all (+ where it is zero); divided by their weights.

    The models are overwritten. Signs are flipped as bits, so that a number agrees where it is above zero; against an
    array of zeros, since numpy's maximum with a number is three times slower.
    """
    sign = _sum(models).view(np.uint32)
    sign &= SIGN_BIT
    zeros = np.zeros_like(models[0])
    counted = set(weights) == {1.0}
    divisor = np.zeros(zeros.shape, np.uint8 if counted else np.float32)
    for vector, weight in zip(models, weights, strict=True):
        bits = vector.view(np.uint32)
        bits ^= sign
        np.maximum(vector, zeros, out=vector)
        if normalize:
            agrees = (vector > 0).view(np.uint8)
            divisor += agrees if counted else agrees.astype(np.float32) * np.float32(weight)
    total = _sum(models, into=models[0])
    if normalize:
        nothing = divisor == 0 if counted else np.abs(divisor) < SMALLEST_DIVISOR
        divisor += nothing.view(np.uint8)
        total /= divisor.astype(np.float32, copy=False)
    bits = total.view(np.uint32)
    bits ^= sign
    return total


def _sum(models: list[Array], into: Array | None = None) -> Array:
    """Of all, in order; into the first one where that may be overwritten."""
    total: Array = np.add(models[0], models[1], out=into) if len(models) > 1 else models[0].copy()
    for vector in models[2:]:
        total += vector
    return total
