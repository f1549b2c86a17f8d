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
        for number, (vector, weight) in enumerate(zip(models, self.weights, strict=True)):
            if self.trim:
                self.trim.trim(vector, number, facts, dice)
            if weight != 1.0:
                vector *= np.float32(weight)
        total = agreed(models, self.weights, normalize=self.normalize) if self.elect else self._sum(models)
        if self.scale != 1.0:
            total *= np.float32(self.scale)
        total += base
        return total

    def _sum(self, models: list[Array]) -> Array:
        total, *others = models
        for vector in others:
            total += vector
        weight = sum(self.weights)
        if self.normalize and abs(weight) >= SMALLEST_DIVISOR:
            total *= np.float32(1 / weight)
        return total


def keep(vector: Array, mask: Any) -> None:
    """Zero what the mask (booleans) leaves out, in place; a product is many times quicker than a selection."""
    vector *= mask.view(np.uint8).astype(np.float32)


def agreed(models: list[Array], weights: tuple[float, ...], *, normalize: bool) -> Array:
    """Sum of the numbers whose sign is that of the sum of all (+ where it is zero); divided by their weights."""
    total = models[0].copy()
    for vector in models[1:]:
        total += vector
    negative = total < 0
    total[...] = 0
    even = len(set(weights)) == 1
    divisor = np.zeros(total.shape, np.uint8 if even else np.float32)
    for vector, weight in zip(models, weights, strict=True):
        agrees = _agrees(vector, negative)
        keep(vector, agrees)
        total += vector
        if normalize:
            divisor += agrees.view(np.uint8) if even else agrees.view(np.uint8) * np.float32(weight)
    if normalize:
        total /= _filled(divisor, weights[0]) if even else _filled(divisor, 1.0)
    return total


def _filled(divisor: Any, weight: float) -> Array:
    """Divisors without zeros: where nothing agrees there is nothing to divide."""
    if divisor.dtype == np.uint8:
        return np.maximum(divisor, np.uint8(1)).astype(np.float32) * np.float32(weight)  # type: ignore[no-any-return]
    divisor += (np.abs(divisor) < SMALLEST_DIVISOR).view(np.uint8)
    return divisor  # type: ignore[no-any-return]


def _agrees(vector: Array, negative: Any) -> Any:
    """Not zero, and negative where it should be."""
    agrees = np.less(vector, 0)
    agrees ^= negative
    np.logical_not(agrees, out=agrees)
    agrees &= vector != 0
    return agrees
