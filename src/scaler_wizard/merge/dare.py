"""Drop changes at random and make the rest larger (DARE, arXiv:2311.03099), then add up or elect signs.

Which changes are dropped depends on the seed, the tensor's name and the place alone: 16-bit random numbers against the
density, so a density is met to within 1/65536. What is kept is divided by the density, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from scaler_wizard.merge.method import Method, Tensors, WeightedModel
from scaler_wizard.merge.settings import Scale, Share
from scaler_wizard.merge.vectors import Vectors, Weigh, keep
from scaler_wizard.weights import Blend, Dice, Expression
from scaler_wizard.weights.evaluate import Array

STEPS = 65536


class DroppedModel(WeightedModel):
    """A model, its weight, and how much of its task vector is kept."""

    density: Share = 1.0
    """Share of its changes that is kept, 0 to 1; which ones is chance."""


class _Dare(Method):
    paper: ClassVar[str] = "DARE, arXiv:2311.03099"
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"
    elects: ClassVar[bool]

    models: Annotated[tuple[DroppedModel, ...], Field(min_length=1)]
    """The models, each with its `weight` and `density`."""
    scale: Scale = 1.0
    """Times the merged task vector."""
    normalize: bool = False
    """Divide by the weights of what was added up."""
    rescale: bool = True
    """Divide what is kept by the density."""

    def merged(self, tensors: Tensors) -> Expression:
        """Drop, rescale, bring together."""
        import numpy.random  # noqa: F401 - before a process forks, so that both share its memory

        densities = tuple(tensors.value(model.density) for model in self.models)
        kernel = Weigh(
            tensors.weights, Drop(densities, self.rescale), self.elects, self.normalize, tensors.value(self.scale)
        )
        return Blend(tensors.bases, kernel, tensors.dtype, tensors.name)


class DareLinear(_Dare):
    """Randomly thinned task vectors, added up."""

    title: ClassVar[str] = "sum of randomly thinned task vectors"
    elects: ClassVar[bool] = False

    method: Literal["dare_linear"] = "dare_linear"
    """Which method."""


class DareTies(_Dare):
    """Randomly thinned task vectors that agree in sign."""

    title: ClassVar[str] = "randomly thinned task vectors that agree in sign"
    elects: ClassVar[bool] = True

    method: Literal["dare_ties"] = "dare_ties"
    """Which method."""


@dataclass(frozen=True)
class Drop:
    """Keep each change with the same probability."""

    densities: tuple[float, ...]
    rescale: bool = True

    def survey(self, look: Vectors) -> None:
        """Nothing needs to be known."""

    def trim(self, vector: Array, model: int, facts: None, dice: Dice) -> None:
        """Zero what chance drops; divide the rest by the share that is really kept on average."""
        kept = round(self.densities[model] * STEPS)
        if kept == STEPS:
            return
        if kept == 0:
            vector[...] = 0
            return
        keep(vector, (dice(model) < np.uint16(kept)).reshape(vector.shape))
        if self.rescale:
            vector *= np.float32(STEPS / kept)
