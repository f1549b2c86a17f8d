"""Widen the residual stream to any size by lanes that start at zero (after arXiv:2308.06103).

Keeps: the function, in real arithmetic. The new lanes hold zero, so a norm's mean square shrinks by h/h'; the norms'
scales times sqrt(h/h') and their epsilon times h/h' undo that exactly. Where the factor is a power of two (h' = 4h)
the scales are exact in bf16 as well.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import Blueprint, Place
from scaler_wizard.grow.operator import GrowthOperator, Preserves, refuse
from scaler_wizard.grow.surgery import Draft, segment_spans, spread_of
from scaler_wizard.weights import Expression, Fill, Program, Random, Scaled, zeros

WRITERS = ("embedding", "attention_out", "ffn_out")
NORMS = ("norm", "final_norm", "post_norm")


class WidenHidden(GrowthOperator):
    """A wider residual stream; heads and feed-forward neurons stay, and read and write the new lanes."""

    title: ClassVar[str] = "wider residual stream"
    paper: ClassVar[str] = "arXiv:2308.06103"
    trains_first: ClassVar[str] = (
        "The new output rows and embedding columns, which start at zero and get different gradients, since the new "
        "lanes are read by random columns."
    )

    op: Literal["widen_hidden"] = "widen_hidden"
    """Which operator."""
    size: Annotated[int, Field(ge=2, le=2**20)]
    """Hidden size afterwards."""

    @property
    def preserves(self) -> Preserves:
        """Sums get longer and scales are rounded, so the last bits may change."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """A larger hidden size, a smaller epsilon, the head width written down."""
        if self.size <= view.hidden:
            raise refuse(self.op, f"size {self.size} is not above {view.hidden}", f"name more than {view.hidden}")
        if view.rows.heads_divide_hidden and self.size % view.heads:
            fitting = -(-self.size // view.heads) * view.heads
            raise refuse(self.op, f"{view.heads} heads do not divide {self.size}", f"name {fitting}")
        epsilon = view.value("rms_norm_eps") * view.hidden / self.size
        return view.changed(hidden_size=self.size, rms_norm_eps=epsilon, head_dim=view.head_dim)

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Add the lanes to every tensor that reads or writes the residual stream, and rescale."""
        after = self.resized(view)
        draft = Draft(program)
        for place in view.places():
            self._rescale(draft, view, place)
            for axis in range(len(place.row.axes)):
                ends = [end for name, _, end in segment_spans(view, place.row, axis) if name == "hidden"]
                tensor = draft.tensors[place.name]
                draft.insert(place.name, axis, [(end, self._lanes(tensor, view, place, axis)) for end in ends])
        return draft.done(after)

    def _lanes(self, tensor: Expression, view: Blueprint, place: Place, axis: int) -> Expression:
        new = self.size - view.hidden
        if place.row.role in NORMS:
            return Fill((new,), tensor.dtype, math.sqrt(view.hidden / self.size) - view.rows.norm_offset)
        shape = (new, *tensor.shape[1:]) if axis == 0 else (tensor.shape[0], new)
        if place.row.role in WRITERS:
            return zeros(shape, tensor.dtype)
        return Random(shape, tensor.dtype, spread_of(tensor), f"{place.name}#{view.hidden}")

    def _rescale(self, draft: Draft, view: Blueprint, place: Place) -> None:
        shrunk = math.sqrt(view.hidden / self.size)
        role, tensor = place.row.role, draft.tensors[place.name]
        embedding_grows = view.rows.scales_embeddings  # the model multiplies embeddings by sqrt(h'): divide it out
        if role in NORMS:
            undone = role == "final_norm" and view.tied and embedding_grows
            factor = 1.0 if undone else shrunk
            draft.replace(place.name, scaled_norm(tensor, factor, view.rows.norm_offset))
        elif role == "embedding" and embedding_grows:
            draft.replace(place.name, Scaled(tensor, shrunk))
        elif role in ("query", "key") and normed_heads(view):
            draft.replace(place.name, Scaled(tensor, shrunk))  # epsilon shrinks for the norms of the heads as well


def scaled_norm(tensor: Expression, factor: float, offset: float) -> Expression:
    """A norm's scale times `factor`; where it is stored less one (Gemma), (1 + w) * factor - 1."""
    return tensor if factor == 1.0 else Scaled(tensor, factor, offset * factor - offset)


def normed_heads(view: Blueprint) -> bool:
    """Whether queries and keys are normalised."""
    return any(row.role == "query_norm" for row in view.rows.rows)
