"""What every growth operator is: a record with settings that maps a model and its program to a larger one."""

from __future__ import annotations

from typing import ClassVar, Literal

from scaler_wizard.architecture import Blueprint
from scaler_wizard.errors import ScalerError
from scaler_wizard.record import Record
from scaler_wizard.weights import Program

Preserves = Literal["bitwise", "exact", "no"]
"""bitwise: not one bit of a logit changes; exact: the same function in real arithmetic; no: it must be healed."""


class GrowthOperator(Record):
    """One way to grow; a subclass adds its settings and a literal `op`."""

    title: ClassVar[str]
    """What it does, in a few words."""
    paper: ClassVar[str]
    """Where it comes from."""
    trains_first: ClassVar[str]
    """What learns first afterwards, and why new parameters do not stay copies of old ones."""

    @property
    def preserves(self) -> Preserves:
        """What happens to the model's function."""
        raise NotImplementedError

    def resized(self, view: Blueprint) -> Blueprint:
        """The configuration afterwards; refuses what cannot be done. Reads nothing."""
        raise NotImplementedError

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """The larger model and the program that writes it."""
        raise NotImplementedError


def refuse(operator: str, wrong: str, cure: str) -> ScalerError:
    """An operator that this model or these settings do not allow."""
    return ScalerError(f"{operator}: {wrong}", cure)
