"""Deepen a model by repeating layers that it has.

Does not keep the function: loss jumps at once and comes back with training, often lower than after a growth that
kept it. A gate shows the jump; heal by distilling on the base's own logits first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.architecture import Blueprint
from scaler_wizard.grow.operator import GrowthOperator, Preserves, refuse
from scaler_wizard.grow.surgery import Layer, layered, relayer
from scaler_wizard.weights import Program


class _Repeated(GrowthOperator):
    trains_first: ClassVar[str] = (
        "The copies, or everything: on the base's own logits first, then on text alone; `scaler plan` does so."
    )

    @property
    def preserves(self) -> Preserves:
        """The second copy of a layer gets inputs that the first has changed."""
        return "no"

    def resized(self, view: Blueprint) -> Blueprint:
        """More layers."""
        return layered(view, _marked(self.order(view)))

    def apply(self, view: Blueprint, program: Program) -> tuple[Blueprint, Program]:
        """Repeat them."""
        return relayer(view, program, _marked(self.order(view)))

    def order(self, view: Blueprint) -> list[int]:
        """Which old layer stands at each place."""
        raise NotImplementedError


class StackLayers(_Repeated):
    """Repeat runs of layers: SOLAR overlaps two copies, G_stack sets copies end to end, MIDAS repeats the middle."""

    title: ClassVar[str] = "stacked layers"
    paper: ClassVar[str] = "SOLAR, arXiv:2312.15166; G_stack, arXiv:2405.15319; MIDAS, arXiv:2409.19044"

    op: Literal["stack_layers"] = "stack_layers"
    """Which operator."""
    layers: Annotated[int, Field(ge=2, le=4096)]
    """Layers afterwards."""
    method: Literal["solar", "g_stack", "midas"] = "solar"
    """How they are stacked."""

    def order(self, view: Blueprint) -> list[int]:
        """SOLAR: the first and the last half; G_stack: all, again and again; MIDAS: the middle twice."""
        old, new = view.layers, self.layers
        most = {"solar": 2 * old, "g_stack": 4096, "midas": 2 * old}[self.method]
        if not old < new <= most:
            raise refuse(self.op, f"{self.method} cannot make {new} layers of {old}", f"name {old + 1} to {most}")
        if self.method == "g_stack" and new % old:
            raise refuse(
                self.op, f"g_stack repeats all {old} layers (asked for {new})", f"name {new // old * old + old}"
            )
        match self.method:
            case "solar":
                return [*range((new + 1) // 2), *range(old - new // 2, old)]
            case "g_stack":
                return list(range(old)) * (new // old)
            case "midas":
                start = (2 * old - new) // 2
                return [*range(start + new - old), *range(start, old)]


class DuplicateLayers(_Repeated):
    """Repeat chosen layers in place: those whose repetition was measured to cost least."""

    title: ClassVar[str] = "duplicated layers"
    paper: ClassVar[str] = "SOLAR, arXiv:2312.15166, with a measured seam"

    op: Literal["duplicate_layers"] = "duplicate_layers"
    """Which operator."""
    layers: Annotated[tuple[int, ...], Field(min_length=1, max_length=1024)]
    """Numbers of the layers to repeat, from 0; a number may stand several times."""

    def order(self, view: Blueprint) -> list[int]:
        """Each layer, and behind it its copies."""
        outside = [layer for layer in self.layers if not 0 <= layer < view.layers]
        if outside:
            raise refuse(self.op, f"there is no layer {outside[0]}", f"name layers from 0 to {view.layers - 1}")
        return [layer for layer in range(view.layers) for _ in range(1 + self.layers.count(layer))]


def _marked(sources: Iterable[int]) -> list[Layer]:
    """The second time that a layer appears, it is new."""
    seen: set[int] = set()
    layers = []
    for source in sources:
        layers.append(Layer(source, new=source in seen))
        seen.add(source)
    return layers
