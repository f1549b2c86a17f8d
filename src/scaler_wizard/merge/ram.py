"""Average what several models changed, keep whole what one alone changed (Reinforced Agent Merging, arXiv:2601.13572).

Fine-tunes by reinforcement change few numbers; a plain mean would thin out what only one of them learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.settings import Setting, within
from scaler_wizard.merge.vectors import Vectors, keep, vectors
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

Threshold = Annotated[Setting, AfterValidator(within(0, 1))]
Factor = Annotated[Setting, AfterValidator(within(0, 10))]


class _Ram(Method):
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"

    models: Annotated[tuple[MergedModel, ...], Field(min_length=1)]
    """The models."""
    epsilon: Threshold = 1e-5
    """A number changed where it differs from the base by more than this."""


class Ram(_Ram):
    """base + changes of one model alone + the mean of changes that several made."""

    title: ClassVar[str] = "changes of one kept, of several averaged"
    paper: ClassVar[str] = "RAM, arXiv:2601.13572"

    method: Literal["ram"] = "ram"
    """Which method."""

    def merged(self, tensors: Tensors) -> Expression:
        """The sum of the changes over their number."""
        return Blend(tensors.bases, Shared(tensors.value(self.epsilon)), tensors.dtype, tensors.name)


class RamPlus(_Ram):
    """The same, and a model that shares much has what it changed alone enlarged."""

    title: ClassVar[str] = "changes of one enlarged, of several averaged"
    paper: ClassVar[str] = "RAM+ (tensor by tensor), arXiv:2601.13572"

    method: Literal["ramplus_tl"] = "ramplus_tl"
    """Which method."""
    r: Factor = 0.1
    """How much is enlarged for the ratio of shared to unshared changes."""
    alpha: Factor = 0.2
    """The largest ratio that counts."""

    def merged(self, tensors: Tensors) -> Expression:
        """Unshared changes are multiplied by 1 + r * min(ratio, alpha)."""
        epsilon, r, alpha = (tensors.value(one) for one in (self.epsilon, self.r, self.alpha))
        return Blend(tensors.bases, Shared(epsilon, r, alpha), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Shared:
    """base + sum of changes / models that changed the number, each alone times 1 + r min(shared / alone, alpha)."""

    epsilon: float
    r: float = 0.0
    alpha: float = 0.0
    whole: bool = False

    def survey(self, look: Look) -> tuple[float, ...] | None:
        """By how much each model's unshared changes are enlarged: one pass; none where nothing is."""
        if not self.r or not self.alpha:
            return None
        shared, alone = np.sum(list(Vectors(look).each(self._counts)), axis=0)
        ratios = np.minimum(shared / np.maximum(alone, 1), self.alpha)
        return tuple(float(factor) for factor in 1 + self.r * ratios)

    def _counts(self, models: list[Array]) -> npt.NDArray[np.int64]:
        """(2, models): numbers that each changed together with others, and alone."""
        changed, count = self._changed(models)
        together = [np.count_nonzero(one & (count > 1)) for one in changed]
        return np.array([together, [np.count_nonzero(one) for one in changed]]) - np.array([[0], [1]]) * together

    def _changed(self, models: list[Array]) -> tuple[list[Any], Array]:
        """Where each model changed something, and how many did."""
        changed = [np.abs(vector) > np.float32(self.epsilon) for vector in models]
        count: Array = np.add.reduce([one.view(np.uint8) for one in changed], dtype=np.uint8)
        return changed, count

    def blend(self, values: list[Array], facts: tuple[float, ...] | None, dice: Dice) -> Array:
        """One chunk."""
        base, models = vectors(values)
        changed, count = self._changed(models)
        total = np.zeros_like(base)
        for number, (vector, one) in enumerate(zip(models, changed, strict=True)):
            keep(vector, one)
            if facts is not None:
                vector *= 1 + (count == 1).view(np.uint8) * np.float32(facts[number] - 1)
            total += vector
        total /= np.maximum(count, np.uint8(1))
        total += base
        return total
