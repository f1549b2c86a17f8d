"""What a model is, by its configuration and the headers of its weights (`scaler inspect MODEL`): reads no weight.

An operator's smallest settings are tried on the configuration; where it refuses, its own words are the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaler_wizard.architecture import Architecture, Blueprint, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    OPERATORS,
    AddKvGroups,
    AddQueryHeads,
    DuplicateExperts,
    DuplicateLayers,
    GrowthOperator,
    GrowVocabulary,
    HyperClone,
    IdentityBlocks,
    Preserves,
    SharedExpert,
    SplitIntoExperts,
    SplitKvHeads,
    StackLayers,
    Upcycle,
    WidenFfn,
    WidenHidden,
    grown,
)
from scaler_wizard.record import Record
from scaler_wizard.target import cache_bytes

PARTS = {
    "embedding": "embeddings",
    "head": "head",
    "router": "router",
    "shared_gate": "router",
    "ffn_in": "feed-forward",
    "ffn_out": "feed-forward",
    "norm": "norms",
    "final_norm": "norms",
    "post_norm": "norms",
    "query_norm": "norms",
    "key_norm": "norms",
}
"""Part of a model by a tensor's role; the rest is attention."""
KEEPS = {"bitwise": "keeps every bit", "exact": "keeps the function", "no": "changes the function, to be healed"}


class Part(Record):
    """One part of a model."""

    name: str
    """Which."""
    parameters: int
    """Its parameters."""
    share: float
    """Of all parameters."""


class Applies(Record):
    """Whether an operator can grow this model."""

    op: str
    """The operator's name."""
    title: str
    """What it does."""
    preserves: Preserves | None
    """What it keeps; null where it cannot be used."""
    reason: str | None
    """Why it cannot be used; null where it can."""


class Inspection(Record):
    """What a model is, from its configuration and the headers of its weights."""

    name: str
    """Name of its folder."""
    family: str
    """`model_type` of transformers."""
    parameters: int
    """Exact number of parameters; a tied head counts once."""
    parts: tuple[Part, ...]
    """The same by part."""
    layers: int
    """Transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads."""
    head_dim: int
    """Width of a head."""
    ffn: int
    """Feed-forward neurons of a block, or of one expert."""
    experts: int | None
    """Experts in a block; null for dense models."""
    vocabulary: int
    """Rows of the embedding."""
    native_context: int
    """Window in tokens."""
    rope_type: str
    """How rotary frequencies are scaled."""
    rope_theta: float | None
    """Base of the rotary frequencies; null where several are used."""
    dtype: str
    """Type of its weights."""
    tied: bool
    """Whether the head is the embedding."""
    bytes: int
    """Bytes of its weights."""
    cache_bytes_per_token: int
    """Key/value cache for one more token in the weights' type, without sliding windows."""
    operators: tuple[Applies, ...]
    """Which growth operators apply."""

    def rows(self) -> list[tuple[str, str]]:
        """The same for a table."""
        experts = f", {self.experts} experts" if self.experts else ""
        theta = "" if self.rope_theta is None else f", theta {self.rope_theta:g}"
        return [
            ("model", f"{self.name} ({self.family})"),
            ("parameters", f"{self.parameters:,} in {self.bytes / 1e6:,.1f} MB of {self.dtype}"),
            *((f"  {part.name}", f"{part.parameters:,} ({part.share:.0%})") for part in self.parts),
            ("layers", f"{self.layers}, hidden size {self.hidden}, {self.ffn} neurons{experts}"),
            ("heads", f"{self.heads} query, {self.kv_heads} key/value, {self.head_dim} wide"),
            ("vocabulary", f"{self.vocabulary:,}, head {'tied' if self.tied else 'of its own'}"),
            ("context", f"{self.native_context:,} tokens, RoPE {self.rope_type}{theta}"),
            ("cache", f"{self.cache_bytes_per_token:,} bytes per token"),
            *((f"  {one.op}", KEEPS[one.preserves] if one.preserves else f"-: {one.reason}") for one in self.operators),
        ]


def inspect_model(source: Path) -> Inspection:
    """Read configuration and headers; no weight."""
    found = read_architecture(source)
    theta = found.rope.get("rope_theta")
    return Inspection(
        name=source.resolve().name,
        family=found.family,
        parameters=found.parameters,
        parts=parts(found),
        layers=found.layers,
        hidden=found.hidden,
        heads=found.heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        ffn=found.ffn,
        experts=found.experts,
        vocabulary=found.vocabulary,
        native_context=found.native_context,
        rope_type=str(found.rope.get("rope_type", "default")),
        rope_theta=float(theta) if isinstance(theta, (int, float)) else None,
        dtype=found.dtype,
        tied=found.tied,
        bytes=found.bytes,
        cache_bytes_per_token=cache_bytes(found, 1, item_bytes=found.item_bytes),
        operators=tuple(applies(name, found) for name in OPERATORS),
    )


def parts(found: Architecture) -> tuple[Part, ...]:
    """Parameters by part, from the headers."""
    sizes: dict[str, int] = {}
    for place in found.places():
        part = PARTS.get(place.row.role, "attention")
        sizes[part] = sizes.get(part, 0) + found.tensors[place.name].elements
    return tuple(Part(name=name, parameters=size, share=size / found.parameters) for name, size in sizes.items())


def applies(name: str, view: Blueprint) -> Applies:
    """Try an operator's smallest settings on a configuration; its own refusal is the reason."""
    kind = OPERATORS[name]
    refusal: str | None = None
    for trial in trials(name, view):
        try:
            grown(view, [trial])
        except ScalerError as error:
            refusal = refusal or error.wrong.removeprefix(f"{name}: ")
        else:
            return Applies(op=name, title=kind.title, preserves=trial.preserves, reason=None)
    return Applies(op=name, title=kind.title, preserves=None, reason=refusal or "this model has nothing to split")


def trials(name: str, view: Blueprint) -> Iterator[GrowthOperator]:
    """Small settings of an operator for a model, the likeliest first."""
    match name:
        case "identity_blocks":
            yield IdentityBlocks(blocks=1)
        case "widen_ffn":
            yield WidenFfn(size=view.ffn + 2 * max(1, view.ffn // 8))
        case "add_kv_groups":
            yield from (AddKvGroups(groups=groups) for groups in range(1, view.kv_heads + 1))
        case "add_query_heads":
            most = view.heads // view.kv_heads
            yield from (AddQueryHeads(per_group=heads) for heads in range(1, most + 1))
        case "split_kv_heads":
            more = range(view.kv_heads * 2, view.heads + 1, view.kv_heads)
            yield from (SplitKvHeads(heads=heads) for heads in more)
        case "widen_hidden":
            yield from (WidenHidden(size=view.hidden * parts // 4) for parts in (5, 6, 8))
        case "hyper_clone":
            yield HyperClone(times=2)
        case "stack_layers":
            yield StackLayers(layers=view.layers + max(1, view.layers // 4))
        case "duplicate_layers":
            yield DuplicateLayers(layers=(view.layers // 2,))
        case "upcycle":
            yield Upcycle(experts=4)
        case "split_into_experts":
            yield from (SplitIntoExperts(experts=experts) for experts in (4, 2, 3))
        case "shared_expert":
            yield SharedExpert(experts=4, size=max(1, view.ffn // 4))
        case "duplicate_experts":
            yield DuplicateExperts(times=2)
        case "grow_vocabulary":
            yield GrowVocabulary(size=view.vocabulary + 1)
