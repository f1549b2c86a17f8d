"""Put layers of several models one on another (SOLAR, arXiv:2312.15166; "frankenmerges").

Does not keep any model's function: measure the result and heal it. Lists with one entry a layer follow the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.settings import Scale
from scaler_wizard.weights import Blend, Dice, Expression, Look, Scaled
from scaler_wizard.weights.evaluate import Array


class Slice(MergedModel):
    """A run of layers of one model."""

    scale: Scale = 1.0
    """Times the weights."""


class Passthrough(Method):
    """Layers of one or several models, one on another; nothing is mixed."""

    title: ClassVar[str] = "stacked layers"
    paper: ClassVar[str] = "SOLAR, arXiv:2312.15166"
    stacks: ClassVar[bool] = True

    method: Literal["passthrough"] = "passthrough"
    """Which method."""
    models: Annotated[tuple[Slice, ...], Field(min_length=1)]
    """Slices from the bottom to the top; the embedding comes from the first, final norm and head from the last."""

    def merged(self, tensors: Tensors) -> Expression:
        """One tensor of one slice, as it is or times its scale."""
        (tensor,), (slice,) = tensors.models, tensors.settings
        assert isinstance(slice, Slice)
        factor = tensors.value(slice.scale)
        if factor == 1.0 and tensor.dtype == tensors.dtype:
            return tensor
        return Blend((Scaled(tensor, factor),), Cast(), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Cast:
    """The only part, in another type."""

    whole: bool = False

    def survey(self, look: Look) -> None:
        """Nothing needs to be known."""

    def blend(self, values: list[Array], facts: None, dice: Dice) -> Array:
        """One chunk."""
        return values[0]
