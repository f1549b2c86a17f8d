"""More attention heads.

Keeps: the function, in real arithmetic. New query heads write through output columns that start at zero; split
key/value heads are copies that different query heads read. Head width stays, since it would change every rotary
frequency and the attention's scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import Blueprint, Place
from scaler_wizard.grow.operator import GrowthOperator, Preserves, refuse
from scaler_wizard.grow.surgery import Block, Draft, segment_spans, spread_of
from scaler_wizard.weights import Expression, Program, Random, Run, zeros

LEARNS_FIRST = (
    "The new heads' output columns, which start at zero; queries, keys and values follow. All random rows differ."
)


class AddKvGroups(GrowthOperator):
    """Append key/value heads, each with as many new query heads as the old ones have."""

    title: ClassVar[str] = "more key/value groups"
    paper: ClassVar[str] = "arXiv:2308.06103, for grouped queries (arXiv:2305.13245)"
    trains_first: ClassVar[str] = LEARNS_FIRST

    op: Literal["add_kv_groups"] = "add_kv_groups"
    """Which operator."""
    groups: Annotated[int, Field(ge=1, le=1024)]
    """How many key/value heads to append."""

    @property
    def preserves(self) -> Preserves:
        """Sums over heads get longer, so the last bits may change."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """More heads of both kinds."""
        _refuse_wide_norms(view, self.op)
        new = self.groups * (view.heads // view.kv_heads)
        return _with_heads(view, self.op, heads=view.heads + new, kv_heads=view.kv_heads + self.groups)

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Append them at the end of queries, keys and values."""
        new = {"kv": self.groups * view.head_dim}
        new["q"] = new["kv"] * (view.heads // view.kv_heads)

        def blocks(place: Place, tensor: Expression, axis: int, segment: str, span: Run) -> list[Block]:
            return [(span[1], _block(place, tensor, axis, new[segment], span[1]))]

        return _grown(view, self.resized(view), program, blocks, ("q", "kv"))


class AddQueryHeads(GrowthOperator):
    """Insert query heads into every group; keys and values, and so the cache, keep their size."""

    title: ClassVar[str] = "more query heads per group"
    paper: ClassVar[str] = "arXiv:2308.06103, for grouped queries (arXiv:2305.13245)"
    trains_first: ClassVar[str] = LEARNS_FIRST

    op: Literal["add_query_heads"] = "add_query_heads"
    """Which operator."""
    per_group: Annotated[int, Field(ge=1, le=1024)]
    """How many query heads to add for each key/value head."""

    @property
    def preserves(self) -> Preserves:
        """Sums over heads get longer, so the last bits may change."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """More query heads."""
        _refuse_wide_norms(view, self.op)
        return _with_heads(view, self.op, heads=view.heads + self.per_group * view.kv_heads, kv_heads=view.kv_heads)

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Insert them at the end of each group: query head j reads key/value head j // group."""
        group = view.heads // view.kv_heads * view.head_dim
        new = self.per_group * view.head_dim

        def blocks(place: Place, tensor: Expression, axis: int, segment: str, span: Run) -> list[Block]:
            ends = range(span[0] + group, span[1] + 1, group)
            return [(end, _block(place, tensor, axis, new, end)) for end in ends]

        return _grown(view, self.resized(view), program, blocks, ("q",))


class SplitKvHeads(GrowthOperator):
    """Give groups of query heads their own copy of the key/value head that they shared; the cache grows."""

    title: ClassVar[str] = "split key/value heads"
    paper: ClassVar[str] = "grouped queries backwards, arXiv:2305.13245"
    trains_first: ClassVar[str] = "Keys and values: the copies part at once, since different query heads read them."

    op: Literal["split_kv_heads"] = "split_kv_heads"
    """Which operator."""
    heads: Annotated[int, Field(ge=2, le=4096)]
    """Key/value heads afterwards: a multiple of those before that divides the query heads."""

    @property
    def preserves(self) -> Preserves:
        """The same numbers are read from another place; kernels may add them in another order."""
        return "exact"

    def resized(self, view: Blueprint) -> Blueprint:
        """More key/value heads."""
        choices = [n for n in range(view.kv_heads + 1, view.heads + 1) if n % view.kv_heads == 0 == view.heads % n]
        if self.heads not in choices:
            cure = f"choose from {', '.join(map(str, choices))}" if choices else "every query head has its own already"
            raise refuse(self.op, f"{view.kv_heads} key/value heads cannot be split into {self.heads}", cure)
        return _with_heads(view, self.op, heads=view.heads, kv_heads=self.heads)

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Insert the copies behind their originals."""
        draft = Draft(program)
        for place in view.places():
            for axis in range(len(place.row.axes)):
                spans = [span for span in segment_spans(view, place.row, axis) if span[0] == "kv"]
                starts = [at for _, start, end in spans for at in range(start, end, view.head_dim)]
                heads = [(at, at + view.head_dim) for at in starts]
                if heads:
                    draft.repeat(place.name, axis, heads, copies=self.heads // view.kv_heads - 1)
        return draft.done(self.resized(view))


Blocks = Callable[[Place, Expression, int, str, Run], list[Block]]


def _grown(
    view: Blueprint, after: Blueprint, program: Program, blocks: Blocks, segments: tuple[str, ...]
) -> tuple[Blueprint, Program]:
    """Insert blocks into every axis that counts one of the segments."""
    draft = Draft(program)
    for place in view.places():
        for axis in range(len(place.row.axes)):
            spans = [span for span in segment_spans(view, place.row, axis) if span[0] in segments]
            tensor = draft.tensors[place.name]
            new = [block for name, *span in spans for block in blocks(place, tensor, axis, name, (span[0], span[1]))]
            if new:
                draft.insert(place.name, axis, new)
    return draft.done(after)


def _block(place: Place, tensor: Expression, axis: int, size: int, at: int) -> Expression:
    """New rows are random, new biases and output columns zero."""
    if axis == 1:
        return zeros((tensor.shape[0], size), tensor.dtype)
    if len(tensor.shape) == 1:
        return zeros((size,), tensor.dtype)
    return Random((size, tensor.shape[1]), tensor.dtype, spread_of(tensor), f"{place.name}#{at}/{tensor.shape[0]}")


def _with_heads(view: Blueprint, operator: str, *, heads: int, kv_heads: int) -> Blueprint:
    if view.rows.heads_divide_hidden and view.hidden % heads:
        fitting = [n for n in range(heads, view.hidden + 1) if view.hidden % n == 0][:3]
        raise refuse(
            operator,
            f"{view.family} configurations need a hidden size ({view.hidden}) that {heads} heads divide",
            f"grow to {' or '.join(map(str, fitting))} heads, or widen the model as well",
        )
    return view.changed(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=view.head_dim)


def _refuse_wide_norms(view: Blueprint, operator: str) -> None:
    """A norm over all heads together would mix new heads into the old ones' scale."""
    if any(row.role in ("query_norm", "key_norm") and row.axes != (("head_dim",),) for row in view.rows.rows):
        raise refuse(
            operator,
            f"{view.family} normalises queries and keys across heads",
            "use split_kv_heads, widen_ffn or blocks",
        )
