"""Growth operators: how a model gets more parameters, and what each way keeps. One operator, one file; no torch.

`grow_program` composes operators into one checkpoint program, so any combination is written in a single pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from scaler_wizard.architecture import Architecture, Blueprint
from scaler_wizard.grow.clone import HyperClone
from scaler_wizard.grow.depth import IdentityBlocks
from scaler_wizard.grow.experts import DuplicateExperts, SharedExpert, SplitIntoExperts, Upcycle
from scaler_wizard.grow.ffn import WidenFfn
from scaler_wizard.grow.heads import AddKvGroups, AddQueryHeads, SplitKvHeads
from scaler_wizard.grow.operator import GrowthOperator, Preserves
from scaler_wizard.grow.stack import DuplicateLayers, StackLayers
from scaler_wizard.grow.vocabulary import GrowVocabulary
from scaler_wizard.grow.width import WidenHidden
from scaler_wizard.record import Record
from scaler_wizard.weights import Program, identity

OPERATORS: Mapping[str, type[GrowthOperator]] = {
    "identity_blocks": IdentityBlocks,
    "widen_ffn": WidenFfn,
    "add_kv_groups": AddKvGroups,
    "add_query_heads": AddQueryHeads,
    "split_kv_heads": SplitKvHeads,
    "widen_hidden": WidenHidden,
    "hyper_clone": HyperClone,
    "stack_layers": StackLayers,
    "duplicate_layers": DuplicateLayers,
    "upcycle": Upcycle,
    "split_into_experts": SplitIntoExperts,
    "shared_expert": SharedExpert,
    "duplicate_experts": DuplicateExperts,
    "grow_vocabulary": GrowVocabulary,
}
"""Every operator by the name that a plan uses."""

Operator = Annotated[
    IdentityBlocks
    | WidenFfn
    | AddKvGroups
    | AddQueryHeads
    | SplitKvHeads
    | WidenHidden
    | HyperClone
    | StackLayers
    | DuplicateLayers
    | Upcycle
    | SplitIntoExperts
    | SharedExpert
    | DuplicateExperts
    | GrowVocabulary,
    Field(discriminator="op"),
]
"""Any growth operator, as a field of a record."""


class NewPart(Record):
    """Which part of a tensor holds new parameters: all of it, or the union of some rows and columns."""

    whole: bool = False
    """The whole tensor is new."""
    rows: tuple[tuple[int, int], ...] = ()
    """New rows, as half-open ranges."""
    columns: tuple[tuple[int, int], ...] = ()
    """New columns, as half-open ranges."""


class NewParameters(Record):
    """What growth added, by the tensor names of the grown model; a tensor that is missing here is all old."""

    tensors: dict[str, NewPart]
    """New parts by tensor name."""


def grow_program(architecture: Architecture, operators: Sequence[GrowthOperator], *, seed: int = 0) -> Program:
    """The program that writes the grown model; reads no weight."""
    view: Blueprint = Blueprint(architecture.config)
    program = identity(architecture, seed=seed)
    for operator in operators:
        view, program = operator.apply(view, program)
    return program


def grown(blueprint: Blueprint, operators: Sequence[GrowthOperator]) -> Blueprint:
    """The configuration after growth, by arithmetic alone; refuses what cannot be done."""
    view = Blueprint(blueprint.config)
    for operator in operators:
        view = operator.resized(view)
    return view


def grown_size(blueprint: Blueprint, operators: Sequence[GrowthOperator]) -> int:
    """Exact number of parameters after growth."""
    return grown(blueprint, operators).parameters


def promise(operators: Sequence[GrowthOperator]) -> Preserves:
    """What a chain of operators keeps: what its weakest member keeps."""
    order: tuple[Preserves, ...] = ("no", "exact", "bitwise")
    return min((operator.preserves for operator in operators), key=order.index, default="bitwise")


def new_parameters(architecture: Architecture, operators: Sequence[GrowthOperator]) -> NewParameters:
    """Which tensors, rows and columns of the grown model are new: what a trainer may train first."""
    fresh = grow_program(architecture, operators).fresh
    return NewParameters(
        tensors={
            name: NewPart(whole=part.whole, rows=part.rows, columns=part.columns)
            for name, part in fresh.items()
            if part.whole or part.rows or part.columns
        }
    )


__all__ = [
    "OPERATORS",
    "AddKvGroups",
    "AddQueryHeads",
    "DuplicateExperts",
    "DuplicateLayers",
    "GrowVocabulary",
    "GrowthOperator",
    "HyperClone",
    "IdentityBlocks",
    "NewParameters",
    "NewPart",
    "Operator",
    "Preserves",
    "SharedExpert",
    "SplitIntoExperts",
    "SplitKvHeads",
    "StackLayers",
    "Upcycle",
    "WidenFfn",
    "WidenHidden",
    "grow_program",
    "grown",
    "grown_size",
    "new_parameters",
    "promise",
]
