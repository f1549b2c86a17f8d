"""Deepen a model by inserting identity blocks (LLaMA-Pro, arXiv:2401.02415).

Keeps: every logit, bit for bit, because what the new blocks add to the residual stream starts at zero.
Does not: train the new blocks; a training phase does.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import Blueprint
from scaler_wizard.grow.operator import GrowthOperator, Preserves
from scaler_wizard.grow.surgery import Layer, layered, relayer, silent
from scaler_wizard.weights import Program


class IdentityBlocks(GrowthOperator):
    """Insert blocks that copy their neighbour and add nothing yet, evenly spread over the depth."""

    title: ClassVar[str] = "identity blocks"
    paper: ClassVar[str] = "LLaMA-Pro, arXiv:2401.02415"
    trains_first: ClassVar[str] = (
        "The new blocks' output projections, which start at zero and get gradients at once; then the whole new blocks."
    )

    op: Literal["identity_blocks"] = "identity_blocks"
    """Which operator."""
    blocks: Annotated[int, Field(ge=1, le=1024)]
    """How many blocks to insert."""

    @property
    def preserves(self) -> Preserves:
        """The old computation is not touched, not even its summation order."""
        return "bitwise"

    def resized(self, view: Blueprint) -> Blueprint:
        """More layers."""
        return layered(view, self._layers(view))

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Insert the blocks."""
        return relayer(view, program, self._layers(view), change=silent(view))

    def _layers(self, view: Blueprint) -> list[Layer]:
        after = [(block + 1) * view.layers // self.blocks for block in range(self.blocks)]
        layers: list[Layer] = []
        for layer in range(view.layers):
            layers.append(Layer(layer))
            layers += [Layer(layer, new=True)] * sum(max(place, 1) == layer + 1 for place in after)
        return layers
