"""What every merge method is: a record with settings that brings the tensors of several models together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.settings import Setting, Weight, value_at
from scaler_wizard.record import Record
from scaler_wizard.weights import Expression

Dtype = Literal["float32", "float16", "bfloat16"]


class MergedModel(Record):
    """One of the models that are merged."""

    model: Annotated[str, Field(min_length=1)]
    """A folder, a hub id, `embedded` or `smollm2`; `MODEL+ADAPTER` is a model with a LoRA adapter's folder."""
    layers: tuple[int, int] | None = None
    """First layer that is used, and one past the last, from 0; all where left out."""

    @model_validator(mode="after")
    def _forward(self) -> MergedModel:
        if self.layers and not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError("layers: [first, one past the last], such as [0, 12]")
        return self


class WeightedModel(MergedModel):
    """One of the models that are merged, with its weight."""

    weight: Weight = 1.0
    """How much it counts, -10 to 10."""


@dataclass(frozen=True)
class Tensors:
    """The same tensor of all models, and where it stands in the model."""

    name: str
    depth: float
    """0 in the first layer (and outside the layers), 1 in the last."""
    base: Expression | None
    models: tuple[Expression, ...]
    settings: tuple[MergedModel, ...]
    """Each model's own."""
    dtype: str
    """Type that is written, in the words of safetensors."""

    def value(self, setting: Setting) -> float:
        """A setting's number here."""
        return value_at(setting, self.name, self.depth)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each model here."""
        return tuple(self.value(model.weight) for model in self.settings if isinstance(model, WeightedModel))

    @property
    def bases(self) -> tuple[Expression, ...]:
        """The base and the models, for methods that need a base."""
        assert self.base is not None, "the method's record asks for a base"
        return (self.base, *self.models)


class Method(Record):
    """One way to merge; a subclass adds its settings, those of each model, and a literal `method`."""

    model_config = ConfigDict(defer_build=True)  # of all methods a merge uses one

    title: ClassVar[str]
    """What it does, in a few words."""
    paper: ClassVar[str]
    """Where it comes from."""
    fewest: ClassVar[int] = 1
    """Models that it needs, without the base."""
    most: ClassVar[int] = 64
    """Models that it can take, without the base."""
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "not used"
    """Whether it starts from the model that the others were trained from."""
    whole: ClassVar[bool] = False
    """Whether it needs a whole matrix in memory at once."""
    stacks: ClassVar[bool] = False
    """Whether it puts layers one on another, instead of mixing layers of the same height."""

    models: tuple[Any, ...]
    """The models, with their settings."""
    base: str | None = None
    """The model that the others were trained from."""
    configuration: str | None = None
    """Whose configuration the merged model gets, where they differ in rotary settings, window or epsilon: one of the
    models, by the name it has here. Left out, differences are refused."""
    tokenizer: str | None = None
    """Whose tokenizer files (with chat template) the merged model gets: `base`, or a model by the name it has
    here; all have to number their tokens alike, so `union` is that of the base as well."""
    dtype: Dtype | None = None
    """Type that is written; that of the base, or of the first model, where left out."""
    grow: bool = False
    """Grow smaller models to the size of the largest first, each keeping its function exactly."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def _enough(self) -> Method:
        name, count = getattr(self, "method", "merge"), len(self.models)
        if not self.fewest <= count <= self.most:
            wanted = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
            raise ValueError(f"{name} takes {wanted} models besides the base, and {count} are given")
        if self.base_is == "needed" and self.base is None:
            raise ValueError(f"{name} needs `base`: the model that the others were trained from")
        if self.base_is == "not used" and self.base is not None:
            raise ValueError(f"{name} has no use for a base; list it under `models` if it shall be merged")
        return self

    def merged(self, tensors: Tensors) -> Expression:
        """One tensor of the merged model."""
        raise NotImplementedError


def positive_sum(weights: tuple[float, ...], name: str) -> float:
    """The sum of weights that will be divided by."""
    total = sum(weights)
    if abs(total) < 1e-6:
        raise ScalerError(f"{name}: the weights {_listed(weights)} add up to 0", "change a weight")
    return total


def _listed(weights: tuple[float, ...]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)
