"""Take over from another model only what changed most and matters most (Arcee Fusion, as mergekit documents it).

A number's importance is |change| times how far its row moved: the Kullback-Leibler divergence of the softmax of the
model's row from that of the base's. What lies above median + 1.5 times the distance of the quartiles is taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.threshold import kth_largest
from scaler_wizard.merge.vectors import keep, vectors
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

SMALLEST = 1e-8
"""Added to every share of a softmax."""
QUARTILES = (0.25, 0.5, 0.75)
REACH = 1.5


class ArceeFusion(Method):
    """The base with another model's most important changes."""

    title: ClassVar[str] = "the most important changes of one model"
    paper: ClassVar[str] = "Arcee Fusion (mergekit)"
    most: ClassVar[int] = 1
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"

    method: Literal["arcee_fusion"] = "arcee_fusion"
    """Which method."""
    models: Annotated[tuple[MergedModel, ...], Field(min_length=1)]
    """The other model."""

    def merged(self, tensors: Tensors) -> Expression:
        """A vector is one row, so it is looked at as a whole."""
        vector = len(tensors.models[0].shape) < 2
        return Blend(tensors.bases, MostImportant(whole=vector), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class MostImportant:
    """base + change where the importance is not below the threshold."""

    whole: bool

    def survey(self, look: Look) -> float:
        """The threshold: three exact order statistics of the importances."""
        elements = int(np.prod(look.shape))
        wanted = [(0, elements - int(share * (elements - 1))) for share in QUARTILES]
        width = look.shape[1] if len(look.shape) > 1 else look.shape[0]
        sample = [importance(*(part.reshape(-1, width) for part in look.sample())).reshape(-1)]
        first, median, third = kth_largest(
            lambda find: look.each(lambda values: find([importance(*values)])), sample, wanted, elements
        )
        return median + REACH * (third - first)

    def blend(self, values: list[Array], facts: float, dice: Dice) -> Array:
        """One chunk of whole rows."""
        weight = importance(*values)
        base, (change,) = vectors(values)
        keep(change, weight >= np.float32(facts))
        change += base
        return change


def importance(base: Array, model: Array) -> Array:
    """|change| * divergence of the row, (rows, columns); a column is one row that stands upright."""
    if base.shape[1] == 1:
        return importance(base.T, model.T).T
    changed, before = _log_shares(model), _log_shares(base)
    divergence = (np.exp(changed) * (changed - before)).sum(axis=1, keepdims=True)
    found: Array = (np.abs(model - base) * divergence).astype(np.float32)
    return found


def _log_shares(rows: Array) -> npt.NDArray[np.float64]:
    """log(softmax + SMALLEST) of each row."""
    raised = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    found: npt.NDArray[np.float64] = np.log(raised / raised.sum(axis=1, keepdims=True) + SMALLEST)
    return found
