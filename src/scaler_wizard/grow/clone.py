"""Multiply every width by cloning (HyperCloning, arXiv:2409.12903).

Keeps: the function, in real arithmetic. Tied embeddings stay tied: 1/n is folded into the last norm. Clones alone
would stay alike for ever, so noise is added in opposite pairs, which cancel because the cloned inputs are equal.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import Blueprint, Place
from scaler_wizard.grow.operator import GrowthOperator, Preserves
from scaler_wizard.grow.surgery import Draft, segment_spans, spread_of
from scaler_wizard.weights import Expression, Program, Random, Scaled, Sum, join, negate, zeros

KEPT = ("vocabulary", "head_dim", "experts", "one")
"""What is not multiplied."""


class HyperClone(GrowthOperator):
    """Clone the residual stream, the heads and the feed-forward neurons `times` times."""

    title: ClassVar[str] = "cloned widths"
    paper: ClassVar[str] = "HyperCloning, arXiv:2409.12903"
    trains_first: ClassVar[str] = "Everything; the paired noise lets the clones part. Halve the learning rate."

    op: Literal["hyper_clone"] = "hyper_clone"
    """Which operator."""
    times: Annotated[int, Field(ge=2, le=8)] = 2
    """How many times each width; parameters grow with its square."""
    noise_db: Annotated[float, Field(ge=0, le=100)] | None = 10.0
    """Weights over noise in decibels; null adds none, and the clones stay alike."""

    @property
    def preserves(self) -> Preserves:
        """Sums get longer, so the last bits may change."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """Every width times n; the width of a head stays."""
        changes: dict[str, Any] = {key: view.count(key) * self.times for key in view.rows.keys.values()}
        return view.changed(
            hidden_size=view.hidden * self.times,
            num_attention_heads=view.heads * self.times,
            num_key_value_heads=view.kv_heads * self.times,
            head_dim=view.head_dim,
            **changes,
        )

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Clone rows and columns, divide by n what n equal inputs now feed."""
        draft = Draft(program)
        for place in view.places():
            base = draft.tensors[place.name]
            for axis in reversed(range(len(place.row.axes))):
                self._clone(draft, view, place, axis)
            self._balance(draft, view, place, base)
        return draft.done(self.resized(view))

    def _clone(self, draft: Draft, view: Blueprint, place: Place, axis: int) -> None:
        spans = [span for span in segment_spans(view, place.row, axis) if span[0] not in KEPT]
        if spans:
            draft.repeat(place.name, axis, [(start, end) for _, start, end in spans], copies=self.times - 1)

    def _balance(self, draft: Draft, view: Blueprint, place: Place, base: Expression) -> None:
        tensor, role = draft.tensors[place.name], place.row.role
        embedding = 1 / math.sqrt(self.times) if view.rows.scales_embeddings else 1.0
        if role == "embedding":
            draft.replace(place.name, _times(tensor, embedding))
        elif role == "final_norm" and view.tied:
            factor, offset = 1 / (self.times * embedding), view.rows.norm_offset
            draft.replace(place.name, Scaled(tensor, factor, offset * factor - offset))
        elif len(tensor.shape) == 2:
            draft.replace(place.name, self._noisy(Scaled(tensor, 1 / self.times), place, base))

    def _noisy(self, tensor: Expression, place: Place, base: Expression) -> Expression:
        """Add noise to pairs of cloned columns: plus on one, minus on the other."""
        if self.noise_db is None:
            return tensor
        rows, width = tensor.shape[0], base.shape[1]
        spread = spread_of(base, 10 ** (-self.noise_db / 20) / self.times)
        parts: list[Expression] = []
        for pair in range(self.times // 2):
            noise = Random((rows, width), tensor.dtype, spread, f"{place.name}#{rows}x{width}.{pair}")
            parts += [noise, negate(noise)]
        return Sum((tensor, join([*parts, zeros((rows, width * (self.times % 2)), tensor.dtype)], 1)))


def _times(tensor: Expression, factor: float) -> Expression:
    return tensor if factor == 1.0 else Scaled(tensor, factor)
