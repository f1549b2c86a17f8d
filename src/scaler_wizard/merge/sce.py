"""Select numbers that vary between the models, weigh models by their change, erase minority signs (SCE, FuseChat 3).

arXiv:2408.07990. Weights are found for each tensor, so no model needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.settings import Share
from scaler_wizard.merge.spheres import product
from scaler_wizard.merge.threshold import kth_largest
from scaler_wizard.merge.vectors import Found, Vectors, keep, vectors
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

NO_CHANGE = 1e-6  # mean square below which all models weigh the same


class Sce(Method):
    """Select, calculate, erase."""

    title: ClassVar[str] = "selected by variance, weighed by change"
    paper: ClassVar[str] = "SCE (FuseChat 3), arXiv:2408.07990"
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"

    method: Literal["sce"] = "sce"
    """Which method."""
    models: Annotated[tuple[MergedModel, ...], Field(min_length=1)]
    """The models."""
    select_topk: Share = 1.0
    """Share of the numbers that differ between the models at all, by variance, that is merged."""

    def merged(self, tensors: Tensors) -> Expression:
        """Weights follow from each tensor's squared changes."""
        return Blend(tensors.bases, SelectWeighErase(tensors.value(self.select_topk)), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Selected:
    """What is known of a tensor: the smallest variance that is merged, and each model's weight."""

    from_variance: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class SelectWeighErase:
    """base + weighted mean of the selected changes that agree in sign; unweighted changes elect the sign."""

    topk: float
    whole: bool = False

    def survey(self, look: Look) -> Selected:
        """One pass for the threshold where there is one, one for the weights."""
        changes = Vectors(look)
        start = self._threshold(changes)
        squares = np.sum(list(changes.each(lambda models: _squares(models, start))), axis=0)
        means = squares / math.prod(look.shape)
        even = float(means.sum()) < NO_CHANGE
        weights = np.full(len(means), 1 / len(means)) if even else means / means.sum()
        return Selected(start, tuple(float(weight) for weight in weights))

    def _threshold(self, changes: Vectors) -> float:
        if self.topk >= 1:
            return 0.0
        differing = sum(changes.each(lambda models: int(np.count_nonzero(variance(models)))))
        rank = int(differing * self.topk)
        if rank == 0:
            return math.inf
        sample = [variance(changes.sample())]

        def each(find: Callable[[list[Array]], Found]) -> Iterator[Found]:
            return changes.each(lambda models: find([variance(models)]))

        return kth_largest(each, sample, [(0, rank)], math.prod(changes.shape))[0]

    def blend(self, values: list[Array], facts: Selected, dice: Dice) -> Array:
        """One chunk."""
        base, models = vectors(values)
        select(models, facts.from_variance)
        total = weighed(models, facts.weights)
        total += base
        return total


def _squares(models: list[Array], start: float) -> npt.NDArray[np.float64]:
    select(models, start)
    return np.array([product(vector, vector) for vector in models])


def variance(models: list[Array]) -> Array:
    """Mean square distance from the mean, number by number."""
    mean = models[0].copy()
    for vector in models[1:]:
        mean += vector
    mean /= np.float32(len(models))
    total = np.zeros_like(mean)
    for vector in models:
        away = vector - mean
        away *= away
        total += away
    total /= np.float32(len(models))
    return total


def select(models: list[Array], start: float) -> None:
    """Zero what varies less than `start`, in place."""
    if start > 0:
        varies = variance(models) >= np.float32(start)
        for vector in models:
            keep(vector, varies)


def weighed(models: list[Array], weights: tuple[float, ...]) -> Array:
    """Weighted mean of those whose sign is that of the plain sum (+ where it is zero)."""
    total = models[0].copy()
    for vector in models[1:]:
        total += vector
    negative = total < 0
    above, below = np.zeros_like(total), np.zeros_like(total)
    for vector, weight in zip(models, weights, strict=True):
        agrees = ((vector < 0) == negative) & (vector != 0)
        share = agrees.view(np.uint8) * np.float32(weight)
        below += share
        vector *= share
        above += vector
    above /= np.maximum(below, np.float32(1e-6))
    return above
