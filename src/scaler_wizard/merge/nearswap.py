"""Follow another model where it is near: no number of the base moves by more than `t` (NearSwap, alchemonaut 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.settings import Setting, within
from scaler_wizard.merge.vectors import vectors
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array


class NearSwap(Method):
    """The base, moved towards another model by at most `t` in every number."""

    title: ClassVar[str] = "the base moved a little towards another model"
    paper: ClassVar[str] = "NearSwap (mergekit)"
    most: ClassVar[int] = 1
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"

    method: Literal["nearswap"] = "nearswap"
    """Which method."""
    models: Annotated[tuple[MergedModel, ...], Field(min_length=1)]
    """The other model."""
    t: Annotated[Setting, AfterValidator(within(0, 10))]
    """How far a number may move: numbers that differ by less become the other model's."""

    def merged(self, tensors: Tensors) -> Expression:
        """base + clip(x - base, -t, t)."""
        return Blend(tensors.bases, Follow(tensors.value(self.t)), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Follow:
    """One limit for every number of a tensor."""

    t: float
    whole: bool = False

    def survey(self, look: Look) -> None:
        """Nothing needs to be known."""

    def blend(self, values: list[Array], facts: None, dice: Dice) -> Array:
        """One chunk."""
        base, (change,) = vectors(values)
        np.clip(change, -np.float32(self.t), np.float32(self.t), out=change)
        change += base
        return change
