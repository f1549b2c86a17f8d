"""Cuts and seams on a checkpoint program: insert rows or columns, repeat layers; keeps account of what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from scaler_wizard.architecture import Blueprint, Place, Row, Segment
from scaler_wizard.errors import ScalerError
from scaler_wizard.weights import (
    Concatenate,
    Expression,
    Fill,
    Fresh,
    Input,
    Mean,
    Program,
    Run,
    Scaled,
    Share,
    Spread,
    Sum,
    Take,
    cut,
    join,
    stacks_of,
)

Block = tuple[int, Expression]
"""Where to insert, in the coordinates before the insertion, and what."""


class Draft:
    """A program that is being changed, tensor by tensor."""

    def __init__(self, program: Program) -> None:
        self.seed = program.seed
        self.tensors: dict[str, Expression] = dict(program.tensors)
        self.fresh: dict[str, Fresh] = dict(program.fresh)

    def done(self, view: Blueprint) -> tuple[Blueprint, Program]:
        """The changed program with the configuration of `view`."""
        return view, Program(dict(view.config), self.tensors, self.fresh, self.seed, stacks_of(view))

    def insert(self, name: str, axis: int, blocks: Sequence[Block]) -> None:
        """Insert new rows (axis 0) or columns (axis 1) at several places of one tensor."""
        blocks = [block for block in blocks if block[1].shape[axis]]
        tensor = self.tensors[name]
        self.tensors[name] = _interleaved(tensor, axis, blocks)
        lengths = [(place, block.shape[axis]) for place, block in blocks]
        self.fresh[name] = _grown(self.fresh.get(name, Fresh()), axis, lengths)

    def repeat(self, name: str, axis: int, blocks: Sequence[Run], *, copies: int) -> None:
        """Put `copies` copies of each of these runs of rows or columns behind it."""
        tensor = self.tensors[name]
        edges = [0, *(stop for _, stop in blocks)]
        runs = [
            run
            for edge, block in zip(edges, blocks, strict=False)
            for run in [(edge, block[0]), *[block] * (1 + copies)]
        ]
        runs.append((edges[-1], tensor.shape[axis]))
        self.tensors[name] = Take(tensor, axis, tuple((start, stop) for start, stop in runs if start < stop))
        lengths = [(stop, (stop - start) * copies) for start, stop in blocks]
        self.fresh[name] = _grown(self.fresh.get(name, Fresh()), axis, lengths)

    def replace(self, name: str, tensor: Expression, fresh: Fresh | None = None) -> None:
        """Put another expression in a tensor's place; without `fresh` the account of what is new stays."""
        self.tensors[name] = tensor
        if fresh is not None:
            self.fresh[name] = fresh


def _interleaved(tensor: Expression, axis: int, blocks: Sequence[Block]) -> Expression:
    parts: list[Expression] = []
    place = 0
    for at, block in blocks:
        parts += [cut(tensor, axis, place, at), block] if at > place else [block]
        place = at
    if place < tensor.shape[axis]:
        parts.append(cut(tensor, axis, place, tensor.shape[axis]))
    return join(parts, axis)


def _grown(fresh: Fresh, axis: int, lengths: Sequence[tuple[int, int]]) -> Fresh:
    runs = _shifted(fresh.rows if axis == 0 else fresh.columns, lengths)
    if axis == 0:
        return Fresh(fresh.whole, runs, fresh.columns)
    return Fresh(fresh.whole, fresh.rows, runs)


def _shifted(runs: Sequence[Run], lengths: Sequence[tuple[int, int]]) -> tuple[Run, ...]:
    """Old runs at their new places, split where something was inserted inside them, and the inserted runs."""
    found: list[Run] = []
    for start, stop in runs:
        cuts = [start, *(at for at, _ in lengths if start < at < stop), stop]
        for low, high in pairwise(cuts):
            move = sum(length for at, length in lengths if at <= low)
            found.append((low + move, high + move))
    moved = 0
    for at, length in lengths:
        found.append((at + moved, at + moved + length))
        moved += length
    return merged(found)


def merged(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Runs in order, those that touch joined."""
    found: list[Run] = []
    for start, stop in sorted(runs):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


# -- layers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer of the output: which layer it copies, and whether it is new."""

    source: int
    new: bool = False


Change = Callable[[Place, Expression], Expression]


def layered(view: Blueprint, layers: Sequence[Layer]) -> Blueprint:
    """The configuration of a model with these layers; lists with one entry a layer follow."""
    changes: dict[str, Any] = {"num_hidden_layers": len(layers)}
    types = view.layer_types
    if types is not None:
        changes["layer_types"] = [types[layer.source] for layer in layers]
    for key in view.rows.lists:
        listed = view.layer_list(key)
        if listed is None:
            raise ScalerError(f"config.json: {key} is not listed", "load the model in transformers and save it again")
        changes[key] = [listed[layer.source] for layer in layers]
    return view.changed(**changes)


def relayer(
    view: Blueprint, program: Program, layers: Sequence[Layer], *, change: Change | None = None
) -> tuple[Blueprint, Program]:
    """A program whose layers are copies of the old ones in a new order; `change` is applied to new layers."""
    after = layered(view, layers)
    draft = Draft(Program(program.config, {}, {}, program.seed))
    names = {_key(place): place.name for place in view.places()}
    for place in after.places():
        layer = None if place.layer is None else layers[place.layer]
        name = names[_key(place, layer)]
        tensor = program.tensors[name]
        new = layer is not None and layer.new
        draft.tensors[place.name] = change(place, tensor) if new and change else tensor
        if new or name in program.fresh:
            draft.fresh[place.name] = Fresh(whole=True) if new else program.fresh[name]
    return draft.done(after)


def _key(place: Place, layer: Layer | None = None) -> tuple[str, int | None, int | None]:
    return place.row.name, place.layer if layer is None else layer.source, place.expert


def silent(view: Blueprint) -> Change:
    """A change after which a block adds nothing to the residual stream.

    Families that normalise what a block adds are silenced in that norm, because a projection near zero under a norm
    has enormous gradients; the others in the block's output projections (LLaMA-Pro).
    """
    post_norms = any(row.role == "post_norm" for row in view.rows.rows)

    def change(place: Place, tensor: Expression) -> Expression:
        if post_norms and place.row.role == "post_norm":
            return Fill(tensor.shape, tensor.dtype, -view.rows.norm_offset)
        if not post_norms and place.row.role in ("attention_out", "ffn_out"):
            return Fill(tensor.shape, tensor.dtype)
        return tensor

    return change


# -- axes -----------------------------------------------------------------------------------------------------------


def segment_spans(view: Blueprint, row: Row, axis: int) -> list[tuple[Segment, int, int]]:
    """The segments of an axis with their places: ffn stands twice in a fused gate and up projection, and all of them
    once for each expert where experts are stacked."""
    spans: list[tuple[Segment, int, int]] = []
    place = 0
    stack = view.experts or 1 if row.stacked and axis == 0 else 1
    for segment in row.axes[axis] * stack:
        spans.append((segment, place, place + view.size(segment)))
        place += view.size(segment)
    return spans


def spread_of(tensor: Expression, times: float = 1.0) -> Spread | float:
    """The standard deviation of the input tensor that an expression was made from; 0 where it is made of zeros."""
    leaf = input_of(tensor)
    return 0.0 if leaf is None else Spread(leaf, times)


def input_of(tensor: Expression) -> Input | None:
    """The first input tensor in an expression; None where it has none."""
    if isinstance(tensor, Input):
        return tensor
    children: list[Expression] = list(tensor.parts) if isinstance(tensor, Concatenate | Sum) else []
    if isinstance(tensor, Take | Scaled | Share | Mean):
        children.append(tensor.of)
    return next((found for child in children if (found := input_of(child)) is not None), None)
