"""Longer windows by rotary scaling, written only through stock `rope_parameters` of transformers 5.

Notation: d head width, b theta, inv_i = b^(-2i/d) for i < d/2, L0 native window, s = target / L0, t attention factor
(it multiplies both cos and sin, so logits get t^2).

| method | inv'_i | t | source |
|---|---|---|---|
| linear | inv_i / s | 1 | Position Interpolation, arXiv:2306.15595 |
| ntk | theta' = b (2s)^(d/(d-2)) | 1 | NTK-aware; 2s, since s itself breaks before s L0 (arXiv:2309.00071, 3.1) |
| yarn | by parts between beta_fast and beta_slow turns | 0.1 ln s + 1 | arXiv:2309.00071 |
| llama3 | by parts between two wavelengths | 1 | transformers `llama3` |

All of these are static: keys in a cache stay valid at any length. Every rung is computed from the native window, never
from an earlier rung, whose scaling would be applied twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from scaler_wizard.errors import ScalerError

Rope = dict[str, Any]


def _linear(theta: float, factor: float, native: int, head_dim: int) -> Rope:
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _ntk(theta: float, factor: float, native: int, head_dim: int) -> Rope:
    return {"rope_type": "default", "rope_theta": theta * (2 * factor) ** (head_dim / (head_dim - 2))}


def _yarn(theta: float, factor: float, native: int, head_dim: int) -> Rope:
    # the native window stands inside the block: outside, transformers would take the new one
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": native,
        "attention_factor": 0.1 * math.log(factor) + 1,
    }


def _llama3(theta: float, factor: float, native: int, head_dim: int) -> Rope:
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": native,
    }


METHODS: Mapping[str, Callable[[float, float, int, int], Rope]] = {
    "yarn": _yarn,
    "llama3": _llama3,
    "ntk": _ntk,
    "linear": _linear,
}


def rope_of(config: Mapping[str, Any]) -> Rope:
    """The rotary settings of a config.json, new or old style."""
    if isinstance(config.get("rope_parameters"), dict):
        return dict(config["rope_parameters"])
    theta = config.get("rope_theta", 10000.0)
    return {"rope_type": "default", "rope_theta": theta, **(config.get("rope_scaling") or {})}


def native_window(config: Mapping[str, Any]) -> int:
    """The window a model was trained with: the original one where it has been extended before."""
    rope = rope_of(config)
    window = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if not isinstance(window, int) or "rope_type" not in rope:
        raise ScalerError("config.json: no window (max_position_embeddings)", "only models with rotary positions grow")
    return window


def extended_config(
    config: Mapping[str, Any], length: int, method: str = "yarn", *, native: int | None = None, **options: float
) -> dict[str, Any]:
    """The configuration with a window of `length` tokens; `native` is the base's window, `options` go to the method.

    Raises ScalerError for an unknown method, a window that is not longer, or a model whose base was scaled already.
    """
    if method not in METHODS:
        raise ScalerError(f"{method}: no such method", f"known: {', '.join(METHODS)}")
    native = native or native_window(config)
    if length <= native:
        raise ScalerError(f"a window of {length} is not longer than {native}", f"name more than {native}")
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = METHODS[method](_theta(config, native, head_dim), length / native, native, head_dim) | options
    changed = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    return {**changed, "rope_parameters": rope, "max_position_embeddings": length}


def _theta(config: Mapping[str, Any], native: int, head_dim: int) -> float:
    """The base's theta; the static NTK method is the only one that changes it, and says so by its window."""
    theta = float(rope_of(config)["rope_theta"])
    before = config["max_position_embeddings"] / native
    rescaled = rope_of(config)["rope_type"] == "default" and before > 1
    return theta / (2 * before) ** (head_dim / (head_dim - 2)) if rescaled else theta
