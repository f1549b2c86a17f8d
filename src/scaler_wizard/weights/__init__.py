"""Checkpoint programs: output tensors as lazy expressions of input tensors, streamed to disk without torch."""

from __future__ import annotations

from scaler_wizard.weights.companions import copy_companions
from scaler_wizard.weights.evaluate import stored_pieces, values
from scaler_wizard.weights.expressions import (
    Concatenate,
    Expression,
    Fill,
    Input,
    Mean,
    Random,
    Run,
    Scaled,
    Share,
    Spread,
    Sum,
    Take,
    columns,
    cut,
    join,
    negate,
    repeat,
    rows,
    tile,
    zeros,
)
from scaler_wizard.weights.program import Fresh, Program, identity, stacks_of
from scaler_wizard.weights.stream import Written, broken_numbers, check_disk, write

__all__ = [
    "Concatenate",
    "Expression",
    "Fill",
    "Fresh",
    "Input",
    "Mean",
    "Program",
    "Random",
    "Run",
    "Scaled",
    "Share",
    "Spread",
    "Sum",
    "Take",
    "Written",
    "broken_numbers",
    "check_disk",
    "columns",
    "copy_companions",
    "cut",
    "identity",
    "join",
    "negate",
    "repeat",
    "rows",
    "stacks_of",
    "stored_pieces",
    "tile",
    "values",
    "write",
    "zeros",
]
