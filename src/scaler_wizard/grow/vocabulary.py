"""Make room for more tokens.

Keeps: every old logit. The new tokens' logits join the softmax, so old probabilities shrink a little: new rows start
at the mean of the old ones, whose logit is an average one.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import Blueprint
from scaler_wizard.grow.operator import GrowthOperator, Preserves, refuse
from scaler_wizard.grow.surgery import Draft, spread_of
from scaler_wizard.weights import Mean, Program, Random, Sum

NOISE = 0.01  # of the embedding's spread: enough for new tokens to part


class GrowVocabulary(GrowthOperator):
    """More rows in embedding and head, rounded up to a multiple that hardware likes."""

    title: ClassVar[str] = "larger vocabulary"
    paper: ClassVar[str] = "mean initialisation, Hewitt 2021"
    trains_first: ClassVar[str] = "The new rows, on text that uses the new tokens."

    op: Literal["grow_vocabulary"] = "grow_vocabulary"
    """Which operator."""
    size: Annotated[int, Field(ge=2, le=2**24)]
    """Rows that are needed."""
    multiple: Annotated[int, Field(ge=1, le=1024)] = 64
    """Rows are rounded up to a multiple of this."""

    @property
    def preserves(self) -> Preserves:
        """Old logits are the same sums; kernels may cut them differently."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """A larger vocabulary."""
        size = -(-self.size // self.multiple) * self.multiple
        if size <= view.vocabulary:
            raise refuse(self.op, f"{size} rows are not above {view.vocabulary}", f"name more than {view.vocabulary}")
        return view.changed(vocab_size=size)

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Append mean rows with a little noise."""
        after = self.resized(view)
        new = after.vocabulary - view.vocabulary
        draft = Draft(program)
        for place in view.places():
            if "vocabulary" in place.row.axes[0]:
                tensor = draft.tensors[place.name]
                shape = (new, *tensor.shape[1:])
                noise = Random(shape, tensor.dtype, spread_of(tensor, NOISE), f"{place.name}#{view.vocabulary}")
                draft.insert(place.name, 0, [(view.vocabulary, Sum((Mean(tensor, new), noise)))])
        return draft.done(after)
