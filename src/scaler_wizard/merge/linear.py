"""Average the models' weights (model soups, arXiv:2203.05482)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.method import Method, Tensors, WeightedModel, positive_sum
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

SUM_TOLERANCE = 1e-3


class Linear(Method):
    """The weighted mean of the models."""

    title: ClassVar[str] = "weighted mean"
    paper: ClassVar[str] = "model soups, arXiv:2203.05482"

    method: Literal["linear"] = "linear"
    """Which method."""
    models: Annotated[tuple[WeightedModel, ...], Field(min_length=1)]
    """The models, each with its `weight`."""
    normalize: bool = True
    """Divide the weights by their sum; where false, they have to add up to 1 themselves."""

    def merged(self, tensors: Tensors) -> Expression:
        """sum of w_i * x_i."""
        weights = tensors.weights
        total = positive_sum(weights, tensors.name)
        if not self.normalize and abs(total - 1) > SUM_TOLERANCE:
            raise ScalerError(
                f"{tensors.name}: the weights add up to {total:g}, so the merged weights would be {total:g} times as "
                "large",
                "set normalize: true, or make the weights add up to 1",
            )
        scaled = tuple(weight / total if self.normalize else weight for weight in weights)
        return Blend(tensors.models, WeightedSum(scaled), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class WeightedSum:
    """sum of w_i * x_i."""

    weights: tuple[float, ...]
    whole: bool = False

    def survey(self, look: Look) -> None:
        """Nothing needs to be known."""

    def blend(self, values: list[Array], facts: None, dice: Dice) -> Array:
        """One chunk."""
        total, *others = values
        total *= np.float32(self.weights[0])
        for value, weight in zip(others, self.weights[1:], strict=True):
            value *= np.float32(weight)
            total += value
        return total
