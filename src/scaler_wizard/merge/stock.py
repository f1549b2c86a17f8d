"""Find how far from the base the mean of few fine-tunes stands best, by angles (Model Stock, arXiv:2403.19522)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.spheres import gram, products
from scaler_wizard.merge.vectors import Vectors, vectors
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

SINGULAR = 1e-6
Floats = npt.NDArray[np.float64]


class ModelStock(Method):
    """Between the base and the mean of the models, as far as the angle between their task vectors says."""

    title: ClassVar[str] = "mean drawn to the base by angle"
    paper: ClassVar[str] = "Model Stock, arXiv:2403.19522"
    fewest: ClassVar[int] = 2
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"

    method: Literal["model_stock"] = "model_stock"
    """Which method."""
    models: Annotated[tuple[MergedModel, ...], Field(min_length=2)]
    """The models."""
    filter_wise: bool = False
    """An angle for each row of a matrix (each output) instead of one for the whole tensor."""

    def merged(self, tensors: Tensors) -> Expression:
        """base + t * mean of the task vectors."""
        return Blend(tensors.bases, Stock(self.filter_wise), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Stock:
    """t = N cos / (1 + (N - 1) cos), with the mean cosine between N task vectors."""

    filter_wise: bool
    whole: bool = False

    def survey(self, look: Look) -> float | None:
        """t of the whole tensor; rows find their own later."""
        if self.filter_wise and len(look.shape) > 1:
            return None
        return float(ratios(gram(Vectors(look).each(products))[None])[0])

    def blend(self, values: list[Array], facts: float | None, dice: Dice) -> Array:
        """One chunk."""
        base, models = vectors(values)
        share: Array | np.float32
        if facts is None:
            inner = np.stack([[np.einsum("ij,ij->i", a, b, dtype=np.float64) for b in models] for a in models])
            share = (ratios(inner.transpose(2, 0, 1)) / len(models)).astype(np.float32)[:, None]
        else:
            share = np.float32(facts / len(models))
        total, *others = models
        for vector in others:
            total += vector
        total *= share
        total += base
        return total


def ratios(inner: Floats) -> Floats:
    """t for each matrix of inner products (rows, N, N); 0 where there is no finite answer."""
    count = inner.shape[1]
    lengths = np.sqrt(np.diagonal(inner, axis1=1, axis2=2))
    pairs = [(first, second) for first in range(count) for second in range(first + 1, count)]
    cosines = [np.clip(inner[:, i, j] / np.maximum(lengths[:, i] * lengths[:, j], SINGULAR), -1, 1) for i, j in pairs]
    cosine = np.mean(cosines, axis=0)
    below = 1 + (count - 1) * cosine
    singular = np.abs(below) < SINGULAR
    found: Floats = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, below))
    return found
