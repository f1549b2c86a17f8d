"""What stock rotary settings mean: the frequencies and the scale that transformers 5 computes from `rope_parameters`.

Loads no torch. Notation: d rotated width of a head, b theta, inv_i = b^(-2i/d) for i < d/2, s factor, L0 native window,
l tokens in the text, t scale of both cos and sin (logits get t^2). Formulas are those of transformers 5
(`modeling_rope_utils`); YaRN is arXiv:2309.00071, longrope arXiv:2402.13753.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scaler_wizard.errors import ScalerError

Rope = dict[str, Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Frequencies:
    """What positions turn into: angle_i = position * inverse_i."""

    inverse: Floats
    """(d/2,): radians per token."""
    scale: float
    """t."""


@dataclass(frozen=True)
class Case:
    """What a formula may look at besides the settings."""

    width: int
    """d."""
    window: int
    """`max_position_embeddings` of the configuration."""
    length: int
    """Tokens in the text."""


def plain(theta: float, width: int) -> Floats:
    """b^(-2i/d)."""
    return np.asarray(theta ** -(np.arange(0, width, 2) / width))


def _default(rope: Rope, case: Case) -> Frequencies:
    return Frequencies(plain(rope["rope_theta"], case.width), 1.0)


def _linear(rope: Rope, case: Case) -> Frequencies:
    return Frequencies(plain(rope["rope_theta"], case.width) / rope["factor"], 1.0)


def _dynamic(rope: Rope, case: Case) -> Frequencies:
    length, s, d = max(case.length, case.window), rope["factor"], case.width
    theta = rope["rope_theta"] * (s * length / case.window - (s - 1)) ** (d / (d - 2))
    return Frequencies(plain(theta, d), 1.0)


def _yarn(rope: Rope, case: Case) -> Frequencies:
    theta, d, native = rope["rope_theta"], case.width, rope["original_max_position_embeddings"]
    s = rope.get("factor") or case.window / native

    def place(turns: float) -> float:
        return d * math.log(native / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(rope.get("beta_fast") or 32), place(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = np.clip((np.arange(d // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    inverse = plain(theta, d)
    return Frequencies(inverse / s * ramp + inverse * (1 - ramp), _scale(rope, s))


def _scale(rope: Rope, s: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return yarn_scale(s, rope["mscale"]) / yarn_scale(s, rope["mscale_all_dim"])
    return yarn_scale(s)


def yarn_scale(s: float, times: float = 1.0) -> float:
    """YaRN's t, its temperature: 0.1 ln s + 1."""
    return 0.1 * times * math.log(s) + 1 if s > 1 else 1.0


def _llama3(rope: Rope, case: Case) -> Frequencies:
    inverse, s = plain(rope["rope_theta"], case.width), rope["factor"]
    turns = rope["original_max_position_embeddings"] * inverse / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return Frequencies((1 - smooth) * inverse / s + smooth * inverse, 1.0)


def _longrope(rope: Rope, case: Case) -> Frequencies:
    native = rope["original_max_position_embeddings"]
    factors = rope["long_factor"] if case.length > native else rope["short_factor"]
    s = rope.get("factor") or case.window / native
    scale = rope.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(s) / math.log(native)) if s > 1 else 1.0
    return Frequencies(plain(rope["rope_theta"], case.width) / np.asarray(factors, np.float64), float(scale))


FORMULAS: Mapping[str, Callable[[Rope, Case], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def frequencies(rope: Rope, *, width: int, window: int, length: int | None = None) -> Frequencies:
    """Frequencies for a text of `length` tokens (None: the window); only dynamic and longrope depend on it."""
    kind = rope.get("rope_type", "default")
    if kind not in FORMULAS:
        raise ScalerError(f"rope_type {kind!r:.40}: not understood", f"known: {', '.join(FORMULAS)}")
    return FORMULAS[kind](rope, Case(width, window, length or window))


def one_shot(rope: Rope) -> bool:
    """Whether the frequencies follow the length of the text, so that keys in a cache go stale when it grows."""
    kind = rope.get("rope_type")
    return kind == "dynamic" or (kind == "longrope" and list(rope["short_factor"]) != list(rope["long_factor"]))
