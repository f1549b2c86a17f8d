"""Leave out the largest changes as well as the small ones (Model Breadcrumbs, arXiv:2312.06795)."""

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

Edges = tuple[float, float]
"""Magnitudes from the first on, and below the second, are kept."""


class MaskedModel(WeightedModel):
    """A model, its weight, and which of its changes are kept."""

    density: Share = 1.0
    """Share of its changes that is kept, 0 to 1."""
    gamma: Share = 0.01
    """Share of the largest changes that is left out."""


class _Breadcrumbs(Method):
    paper: ClassVar[str] = "Model Breadcrumbs, arXiv:2312.06795"
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"
    elects: ClassVar[bool]

    models: Annotated[tuple[MaskedModel, ...], Field(min_length=1)]
    """The models, each with its `weight`, `density` and `gamma`."""
    scale: Scale = 1.0
    """Times the merged task vector."""
    normalize: bool = False
    """Divide by the weights of what was added up."""

    def merged(self, tensors: Tensors) -> Expression:
        """Mask both tails, bring together."""
        pairs = tuple((tensors.value(model.density), tensors.value(model.gamma)) for model in self.models)
        kernel = Weigh(tensors.weights, Middle(pairs), self.elects, self.normalize, tensors.value(self.scale))
        return Blend(tensors.bases, kernel, tensors.dtype, tensors.name)


class Breadcrumbs(_Breadcrumbs):
    """Task vectors without their tails, added up."""

    title: ClassVar[str] = "sum of task vectors without their tails"
    elects: ClassVar[bool] = False

    method: Literal["breadcrumbs"] = "breadcrumbs"
    """Which method."""


class BreadcrumbsTies(_Breadcrumbs):
    """Task vectors without their tails that agree in sign."""

    title: ClassVar[str] = "task vectors without their tails that agree in sign"
    elects: ClassVar[bool] = True

    method: Literal["breadcrumbs_ties"] = "breadcrumbs_ties"
    """Which method."""


@dataclass(frozen=True)
class Middle:
    """Keep magnitudes between two ranks."""

    pairs: tuple[tuple[float, float], ...]
    """Density and gamma of each model."""

    def survey(self, look: Vectors) -> list[Edges]:
        """Smallest magnitude that is kept and smallest that is left out at the top, for each model.

        gamma * n are left out at the top, fewer where density + gamma is above 1; then density * n are kept.
        """
        elements = math.prod(look.shape)
        edges: list[Edges] = [(0.0 if density > 0 else math.inf, math.inf) for density, _ in self.pairs]
        lower, upper = [], []
        for row, (density, gamma) in enumerate(self.pairs):
            kept = int(density * elements)
            top = min(int(gamma * elements), elements - kept)
            if 0 < kept < elements:
                lower.append((row, top + kept))
                upper += [(row, top)] if top else []
        if lower:
            found = kth_largest(look.each, look.sample(), lower + upper, elements)
            for (row, _), edge in zip(lower, found, strict=False):
                edges[row] = (edge, math.inf)
            for (row, _), edge in zip(upper, found[len(lower) :], strict=True):
                edges[row] = (edges[row][0], edge)
        return edges

    def trim(self, vector: Array, model: int, facts: list[Edges], dice: Dice) -> None:
        """Zero both tails; where both edges are equal, nothing lies between them."""
        low, high = facts[model]
        if (low, high) == (0.0, math.inf):
            return
        magnitudes = np.abs(vector)
        between = magnitudes >= np.float32(low)
        between &= magnitudes < np.float32(high)
        keep(vector, between)
