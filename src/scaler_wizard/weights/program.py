"""A checkpoint program: a configuration and an expression for every output tensor; also which parts are new."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaler_wizard.architecture import ITEM_BYTES, Architecture, Blueprint
from scaler_wizard.weights.expressions import Expression, Input, Run


@dataclass(frozen=True)
class Fresh:
    """Which part of a tensor holds new parameters: all of it, or the union of some rows and columns."""

    whole: bool = False
    rows: tuple[Run, ...] = ()
    columns: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Program:
    """What to write: pure data, made without reading a weight. Operators map programs to programs."""

    config: Mapping[str, Any]
    """config.json of the output."""
    tensors: Mapping[str, Expression]
    """Every output tensor."""
    fresh: Mapping[str, Fresh] = field(default_factory=dict)
    """Tensors that hold new parameters; a tensor that is not here is all old."""
    seed: int = 0
    """Seed of everything random in it."""
    stacks: Mapping[str, int] = field(default_factory=dict)
    """Tensors that are stored with a leading axis, and how long it is."""

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in its file."""
        shape = self.tensors[name].shape
        stack = self.stacks.get(name)
        return shape if stack is None else (stack, shape[0] // stack, *shape[1:])

    @property
    def parameters(self) -> int:
        """Numbers that will be written."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Bytes of them."""
        return sum(math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype] for tensor in self.tensors.values())


def identity(architecture: Architecture, *, seed: int = 0) -> Program:
    """The program that writes the model as it is."""
    return Program(
        config=dict(architecture.config),
        tensors={name: Input(tensor) for name, tensor in architecture.tensors.items()},
        seed=seed,
        stacks=stacks_of(architecture),
    )


def stacks_of(view: Blueprint) -> dict[str, int]:
    """Which tensors of a model are stored with a leading axis, and how long it is."""
    stacked = any(row.stacked for row in view.rows.rows)
    return {place.name: place.stack for place in view.places() if place.stack} if stacked else {}
