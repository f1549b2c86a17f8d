"""Drop changes at random, small ones more often (DELLA, arXiv:2406.11617), then add up or elect signs.

In each row the changes are ranked by magnitude; the probability to be kept rises evenly with the rank from
density - epsilon to density + epsilon, and what is kept is divided by its own probability, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.method import Method, Tensors, WeightedModel
from scaler_wizard.merge.settings import Scale, Share
from scaler_wizard.merge.vectors import Vectors, Weigh, keep
from scaler_wizard.weights import Blend, Dice, Expression
from scaler_wizard.weights.evaluate import Array


class RankedModel(WeightedModel):
    """A model, its weight, and how much of its task vector is kept."""

    density: Share = 1.0
    """Share of its changes that is kept on average, 0 to 1."""
    epsilon: Share = 0.15
    """How far the probability of the smallest and of the largest change is from the density."""


class _Della(Method):
    paper: ClassVar[str] = "DELLA, arXiv:2406.11617"
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"
    elects: ClassVar[bool]

    models: Annotated[tuple[RankedModel, ...], Field(min_length=1)]
    """The models, each with its `weight`, `density` and `epsilon`."""
    scale: Scale = 1.0
    """Times the merged task vector."""
    normalize: bool = True
    """Divide by the weights of what was added up."""
    rescale: bool = True
    """Divide what is kept by its probability."""

    def merged(self, tensors: Tensors) -> Expression:
        """Rank, drop, rescale, bring together."""
        pairs = tuple((tensors.value(model.density), tensors.value(model.epsilon)) for model in self.models)
        for density, epsilon in pairs:
            if 0 < density < 1 and not epsilon < min(density, 1 - density):
                raise ScalerError(
                    f"{tensors.name}: density {density:g} and epsilon {epsilon:g} give probabilities outside 0 to 1",
                    f"keep epsilon below {min(density, 1 - density):g}",
                )
        kernel = Weigh(
            tensors.weights, Ranked(pairs, self.rescale), self.elects, self.normalize, tensors.value(self.scale)
        )
        return Blend(tensors.bases, kernel, tensors.dtype, tensors.name)


class DellaLinear(_Della):
    """Task vectors thinned by rank, added up."""

    title: ClassVar[str] = "sum of task vectors thinned by rank"
    elects: ClassVar[bool] = False

    method: Literal["della_linear"] = "della_linear"
    """Which method."""


class Della(_Della):
    """Task vectors thinned by rank that agree in sign."""

    title: ClassVar[str] = "task vectors thinned by rank that agree in sign"
    elects: ClassVar[bool] = True

    method: Literal["della"] = "della"
    """Which method."""


@dataclass(frozen=True)
class Ranked:
    """Keep each change with a probability that rises with its rank in its row."""

    pairs: tuple[tuple[float, float], ...]
    """Density and epsilon of each model."""
    rescale: bool = True

    def survey(self, look: Vectors) -> None:
        """Nothing: rows are whole in a chunk."""

    def trim(self, vector: Array, model: int, facts: None, dice: Dice) -> None:
        """Zero what chance drops."""
        density, epsilon = self.pairs[model]
        if density >= 1:
            return
        if density <= 0:
            vector[...] = 0
            return
        rows = vector if vector.shape[1] > 1 else vector.reshape(1, -1)  # a vector is one row
        chances = probabilities(rows, density, epsilon)
        keep(rows, dice(model).reshape(rows.shape) < chances * np.float32(65536))
        if self.rescale:
            rows /= chances


def probabilities(rows: Array, density: float, epsilon: float) -> Array:
    """From density - epsilon for the smallest magnitude of a row to density + epsilon for its largest.

    Magnitude and column are sorted as one number, so equal magnitudes are ranked by column on every machine.
    """
    columns = rows.shape[1]
    keys = (rows.view(np.uint32) & np.uint32(0x7FFFFFFF)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(columns, dtype=np.uint64)
    keys.sort(axis=1)
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    steps = np.linspace(density - epsilon, density + epsilon, columns, dtype=np.float64).astype(np.float32)
    found = np.empty_like(rows)
    np.put_along_axis(found, order, np.broadcast_to(steps, rows.shape), axis=1)
    return found
