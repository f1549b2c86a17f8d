"""Settings that may differ by layer and by part of the model: one number, a gradient over the layers, or filters.

`0.5` holds everywhere. `[0, 0.5, 1]` is interpolated from the first layer to the last; tensors outside the layers get
the first number. A list of `{filter, value}` is searched from above for the first filter whose text stands in the
tensor's name; an entry without a filter fits every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.record import Record

EVERYWHERE = "*"
Gradient = Annotated[tuple[float, ...], Field(min_length=1)]


class Filtered(Record):
    """A value for the tensors whose name holds a text."""

    filter: Annotated[str, Field(min_length=1)] = EVERYWHERE
    """Text that stands in the tensor's name, such as `mlp` or `layers.3.`; `*` fits every tensor."""
    value: float | Gradient
    """The value, or a gradient over the layers."""


Setting = float | Gradient | Annotated[tuple[Filtered, ...], Field(min_length=1)]
"""A number, a gradient, or filters."""


def within(low: float, high: float) -> Callable[[Setting], Setting]:
    """A validator: every number of a setting lies in [low, high]."""

    def check(setting: Setting) -> Setting:
        for number in numbers(setting):
            if not (math.isfinite(number) and low <= number <= high):
                raise ValueError(f"must be from {low:g} to {high:g}, and {number:g} is not")
        return setting

    return check


def numbers(setting: Setting) -> Iterator[float]:
    """Every number of a setting."""
    if isinstance(setting, Filtered):
        yield from numbers(setting.value)
    elif isinstance(setting, tuple):
        for part in setting:
            yield from numbers(part)  # type: ignore[arg-type]
    else:
        yield setting


def value_at(setting: Setting, name: str, depth: float) -> float:
    """The number for one tensor; `depth` runs from 0 in the first layer to 1 in the last."""
    if not isinstance(setting, tuple):
        return float(setting)
    if isinstance(setting[0], Filtered):
        for entry in setting:
            assert isinstance(entry, Filtered)
            if entry.filter == EVERYWHERE or entry.filter in name:
                return value_at(entry.value, name, depth)
        raise ScalerError(f"no filter fits {name}", "add a last entry without a filter: {value: 0.5}")
    place = depth * (len(setting) - 1)
    low = min(int(place), len(setting) - 1)
    high = min(low + 1, len(setting) - 1)
    share = place - low
    first, second = setting[low], setting[high]
    assert not isinstance(first, Filtered) and not isinstance(second, Filtered)
    return (1 - share) * float(first) + share * float(second)


Weight = Annotated[Setting, AfterValidator(within(-10, 10))]
Share = Annotated[Setting, AfterValidator(within(0, 1))]
Scale = Annotated[Setting, AfterValidator(within(-10, 10))]
