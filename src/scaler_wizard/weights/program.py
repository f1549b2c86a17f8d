"""A checkpoint program: a configuration and an expression for every output tensor; also which parts are new."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaler_wizard.architecture import ITEM_BYTES, Architecture
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
    )
