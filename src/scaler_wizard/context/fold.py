"""The form of a stretched window that every runtime can run: fixed factors, and no scale left to apply.

Any static scheme is a vector f that divides the frequencies and a scale t of cos and sin, which makes every attention
score t^2 as large. The scores are as large again when t^2 is folded into the queries: `q_proj`, or `q_norm` where a
norm behind it would undo that. What is left is longrope with short = long = f and attention_factor 1 for transformers,
and `rope_freqs.weight` = f in a GGUF file. Not covered: frequencies that follow the length (dynamic, longrope with two
different sets). In bfloat16 the folded weights are rounded once more, by at most 2^-9 of their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaler_wizard.architecture import Architecture, Place
from scaler_wizard.context.frequencies import Floats, one_shot, plain
from scaler_wizard.context.rope import GLOBAL, LOCAL, positions, rope_sets, static_rope
from scaler_wizard.errors import ScalerError
from scaler_wizard.weights import Expression, Program, Scaled, cut, identity, join


def static_factors(config: Mapping[str, Any]) -> tuple[Floats, float]:
    """(d/2,) factors f that divide theta's frequencies, and the scale t, of a static configuration."""
    base = positions(config)
    if one_shot(base.rope):
        raise ScalerError(
            f"rope_type {base.rope['rope_type']}: the frequencies follow the length, so no fixed factors exist",
            "stretch the window with a static method: yarn, llama3, linear or searched",
        )
    now = base.frequencies
    return plain(base.theta, base.width) / now.inverse, now.scale


def fold_program(architecture: Architecture) -> Program:
    """The program that writes the model in this form: the same logits, up to rounding."""
    config, program = architecture.config, identity(architecture)
    factors, scale = static_factors(config)
    base = positions(config)
    native = int(base.rope.get("original_max_position_embeddings") or base.window)
    rope = static_rope(base, base.window / native, factors, 1.0) | {"original_max_position_embeddings": native}
    if "partial_rotary_factor" in base.rope:
        rope["partial_rotary_factor"] = base.rope["partial_rotary_factor"]
    sets = rope_sets(config)
    changed = {**config, "rope_parameters": {**sets, GLOBAL: rope} if LOCAL in sets else rope}
    for old in ("rope_scaling", "rope_theta", "rope_local_base_freq"):
        changed.pop(old, None)
    tensors = dict(program.tensors)
    for place in _queries(architecture):
        tensors[place.name] = _folded(architecture, place, tensors[place.name], scale**2, base.width)
    return Program(changed, tensors, program.fresh, program.seed)


def _queries(view: Architecture) -> list[Place]:
    """Where the size of the queries is decided, in the layers that the scale reaches."""
    two, types = LOCAL in rope_sets(view.config), view.layer_types
    places = [p for p in view.places() if not (two and types and p.layer is not None and types[p.layer] != GLOBAL)]
    norms = [place for place in places if place.row.role == "query_norm"]
    return norms or [place for place in places if place.row.role in ("query", "query_key_value")]


def _folded(view: Architecture, place: Place, tensor: Expression, times: float, width: int) -> Expression:
    """Rows of rotated queries, times t^2; a fused projection's keys and values, and unrotated rows, as they are."""
    # Gemma stores a norm's scale less one
    shift = (times - 1) * view.rows.norm_offset if place.row.role == "query_norm" else 0.0
    head, rows = view.head_dim, tensor.shape[0]
    queries = min(rows, view.heads * head)  # a norm may be shared by all heads
    if width == head:
        scaled = Scaled(cut(tensor, 0, 0, queries), times, shift)
        return join([scaled, cut(tensor, 0, queries, rows)], 0) if queries < rows else scaled
    parts: list[Expression] = []
    for start in range(0, queries, head):
        parts.append(Scaled(cut(tensor, 0, start, start + width), times, shift))
        parts.append(cut(tensor, 0, start + width, start + head))
    return join([*parts, cut(tensor, 0, queries, rows)] if queries < rows else parts, 0)
