"""What a model is by its configuration alone: sizes, and the name, role and shape of every tensor it must have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scaler_wizard.architecture.families import EXPERT, FAMILIES, Family, Row, Segment
from scaler_wizard.errors import ScalerError


@dataclass(frozen=True)
class Place:
    """One tensor that a model has: which row of its family, in which layer, for which expert."""

    name: str
    row: Row
    layer: int | None
    expert: int | None
    shape: tuple[int, ...]
    """As a matrix or a vector: stacked matrices stand on one another."""
    stack: int | None = None
    """Matrices in the tensor, which has a leading axis for them in its file; None where it has no such axis."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """As in its file."""
        return self.shape if self.stack is None else (self.stack, self.shape[0] // self.stack, *self.shape[1:])


@dataclass(frozen=True)
class Blueprint:
    """A configuration with its sizes; also the view that growth operators work on, before any byte is read."""

    config: Mapping[str, Any]
    """config.json, without code references."""

    @property
    def family(self) -> str:
        """`model_type` of transformers."""
        return str(self.config["model_type"])

    @property
    def rows(self) -> Family:
        """The family's description."""
        return FAMILIES[self.family]

    def value(self, key: str) -> Any:
        """A configuration value, or what transformers assumes where the file says nothing."""
        found = self.config.get(key)
        return self.rows.defaults.get(key) if found is None else found

    def count(self, key: str) -> int:
        """A configuration value that must be a positive whole number."""
        found = self.value(key)
        if type(found) is not int or found <= 0:
            raise ScalerError(f"config.json: {key}: a positive whole number is needed (got {found!r})", "mend the file")
        return found

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return self.count("num_hidden_layers")

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.count("hidden_size")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.count("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.heads if self.value("num_key_value_heads") is None else self.count("num_key_value_heads")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads if self.value("head_dim") is None else self.count("head_dim")

    @property
    def ffn(self) -> int:
        """Neurons of one feed-forward block; of one expert in a mixture."""
        return self.count(next(iter(self.rows.keys.values())))

    @property
    def experts(self) -> int | None:
        """Experts in each block; None for a dense model."""
        return None if self.rows.experts is None else self.count(self.rows.experts)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.count("vocab_size")

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.value("tie_word_embeddings"))

    @property
    def native_context(self) -> int:
        """Window in tokens, by the configuration."""
        return self.count("max_position_embeddings")

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary settings: `rope_parameters`, or the older `rope_theta` with `rope_scaling`, as one mapping."""
        if self.config.get("rope_parameters"):
            return dict(self.config["rope_parameters"])
        return {
            "rope_type": "default",
            "rope_theta": self.config.get("rope_theta", 10000.0),
            **(self.config.get("rope_scaling") or {}),
        }

    def layer_list(self, key: str) -> list[Any] | None:
        """One of the family's lists with an entry a layer; None where config.json leaves it to transformers."""
        listed = self.config.get(key)
        return list(listed) if listed else None

    @property
    def layer_types(self) -> list[str] | None:
        """Attention type of each layer; None where all layers are alike."""
        listed = self.config.get("layer_types")
        return list(listed) if listed else _layer_types(self)

    def size(self, segment: Segment) -> int:
        """How long one segment of an axis is."""
        return self._sizes[segment]

    @cached_property
    def _sizes(self) -> dict[Segment, int]:
        sizes: dict[Segment, int] = {
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "head_dim": self.head_dim,
            "one": 1,
        }
        sizes |= {segment: self.count(key) for segment, key in self.rows.keys.items()}
        return sizes | ({"experts": self.experts} if self.experts else {})

    def exists(self, row: Row) -> bool:
        """Whether this model has this tensor."""
        if row.when == "untied":
            return not self.tied
        return row.when is None or bool(self.value(row.when))

    def shape(self, row: Row) -> tuple[int, ...]:
        """Shape that the configuration gives to one tensor of the family."""
        sizes = tuple(sum(self.size(segment) for segment in axis) for axis in row.axes)
        return (sizes[0] * (self.experts or 0), *sizes[1:]) if row.stacked else sizes

    def places(self) -> Iterator[Place]:
        """Every tensor of the model."""
        for row in self.rows.rows:
            if self.exists(row):
                shape, stack = self.shape(row), self.experts if row.stacked else None
                for layer in range(self.layers) if "{layer}" in row.name else [None]:
                    for expert in range(self.experts or 0) if EXPERT in row.name else [None]:
                        yield Place(row.name.format(layer=layer, expert=expert), row, layer, expert, shape, stack)

    @property
    def parameters(self) -> int:
        """Exact number of parameters; a tied head counts once."""
        return sum(math.prod(self.shape(row)) * self._copies(row) for row in self.rows.rows if self.exists(row))

    def _copies(self, row: Row) -> int:
        return (self.layers if "{layer}" in row.name else 1) * ((self.experts or 0) if EXPERT in row.name else 1)

    def changed(self, **changes: Any) -> Blueprint:
        """The same model with other configuration values; None removes a key (a null in the file is a value)."""
        kept = {key: value for key, value in self.config.items() if key not in changes}
        return Blueprint(kept | {key: value for key, value in changes.items() if value is not None})


def _layer_types(view: Blueprint) -> list[str] | None:
    """What transformers 5 derives where config.json has no list."""
    kinds = {True: "sliding_attention", False: "full_attention"}
    layers = range(view.layers)
    match view.rows.layer_types:
        case "none":
            return None
        case "window_after":
            sliding = bool(view.value("use_sliding_window")) and view.value("sliding_window") is not None
            return [kinds[sliding and layer >= view.count("max_window_layers")] for layer in layers]
        case "alternate":
            return [kinds[bool((layer + 1) % 2)] for layer in layers]
        case "every":
            pattern = view.config.get("sliding_window_pattern") or view.config.get("_sliding_window_pattern") or 6
            return [kinds[bool((layer + 1) % pattern)] for layer in layers]
