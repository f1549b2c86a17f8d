"""Trim small changes, elect a sign for every number, average those that agree (TIES, arXiv:2306.01708)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from scaler_wizard.merge.method import Method, Tensors, WeightedModel
from scaler_wizard.merge.settings import Scale, Share
from scaler_wizard.merge.threshold import kth_largest
from scaler_wizard.merge.vectors import Vectors, Weigh, keep
from scaler_wizard.weights import Blend, Dice, Expression
from scaler_wizard.weights.evaluate import Array


class TrimmedModel(WeightedModel):
    """A model, its weight, and how much of its task vector is kept."""

    density: Share = 1.0
    """Share of its changes that is kept, the largest ones, 0 to 1."""


class Ties(Method):
    """Trim, elect signs, average what agrees."""

    title: ClassVar[str] = "trimmed task vectors that agree in sign"
    paper: ClassVar[str] = "TIES, arXiv:2306.01708"
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"

    method: Literal["ties"] = "ties"
    """Which method."""
    models: Annotated[tuple[TrimmedModel, ...], Field(min_length=1)]
    """The models, each with its `weight` and `density`."""
    scale: Scale = 1.0
    """Times the merged task vector (lambda in the paper)."""
    normalize: bool = True
    """Divide by the weights of the models that agree."""

    def merged(self, tensors: Tensors) -> Expression:
        """Thresholds are exact; changes that equal a threshold are all kept."""
        densities = tuple(tensors.value(model.density) for model in self.models)
        kernel = Weigh(tensors.weights, Largest(densities), True, self.normalize, scale=tensors.value(self.scale))
        return Blend(tensors.bases, kernel, tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Largest:
    """Keep the largest changes of each task vector."""

    densities: tuple[float, ...]

    def survey(self, look: Vectors) -> list[float]:
        """The smallest magnitude that is kept, for each model; infinite where nothing is."""
        elements = math.prod(look.shape)
        wanted = [
            (row, max(1, int(density * elements))) for row, density in enumerate(self.densities) if 0 < density < 1
        ]
        found = [0.0 if density > 0 else math.inf for density in self.densities]
        if wanted:
            exact = kth_largest(look.each, look.sample(), wanted, elements)
            for (row, _), threshold in zip(wanted, exact, strict=True):
                found[row] = threshold
        return found

    def trim(self, vector: Array, model: int, facts: list[float], dice: Dice) -> None:
        """Zero what is smaller."""
        if facts[model] > 0:
            keep(vector, np.abs(vector) >= np.float32(facts[model]))
