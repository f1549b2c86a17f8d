"""Longer windows by rotary scaling, written only through stock `rope_parameters` of transformers 5: one table.

Notation as in `frequencies.py`; s = target / native window, turns_i = L0 inv_i / 2 pi (how often pair i turns round in
the native window).

| method | inv'_i | t | source |
|---|---|---|---|
| linear | inv_i / s | 1 | Position Interpolation, arXiv:2306.15595 |
| ntk | theta' = b (2s)^(d/(d-2)) | 1 | NTK-aware; 2s, since s itself breaks before s L0 (arXiv:2309.00071, 3.1) |
| dynamic | theta' follows the length | 1 | dynamic NTK, transformers `dynamic`; one-shot scoring only |
| yarn | by parts between beta_fast and beta_slow turns | 0.1 ln s + 1 | arXiv:2309.00071 |
| llama3 | by parts between two wavelengths | 1 | transformers `llama3` |
| longrope | inv_i / f_i, f given | sqrt(1 + ln s / ln L0) | arXiv:2402.13753 |
| searched | by parts in ln(turns), edges and t found for this model | t | `search.py` |

`searched` is written as static factors (longrope with short = long), so it also stretches bases that are scaled
already. Every rung is computed from the base, never from an earlier rung, whose scaling would be applied twice.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaler_wizard.architecture import Blueprint
from scaler_wizard.context.frequencies import Floats, Frequencies, Rope, frequencies, one_shot, plain, yarn_scale
from scaler_wizard.errors import ScalerError

Options = Mapping[str, float | Sequence[float]]
GLOBAL, LOCAL = "full_attention", "sliding_attention"
GEMMA3_THETA = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}  # what transformers assumes where config.json says nothing
ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq", "partial_rotary_factor")


@dataclass(frozen=True)
class Positions:
    """The base's rotary positions, of the layers that see the whole text."""

    rope: Rope
    window: int
    """The window that is stretched, in tokens."""
    width: int
    """Rotated width of a head."""

    @property
    def theta(self) -> float:
        """b."""
        return float(self.rope["rope_theta"])

    @property
    def frequencies(self) -> Frequencies:
        """As the base computes them."""
        return frequencies(self.rope, width=self.width, window=self.window)


# -- methods ---------------------------------------------------------------------------------------------------------


def _linear(base: Positions, s: float) -> Rope:
    return {"rope_type": "linear", "rope_theta": base.theta, "factor": s}


def _ntk(base: Positions, s: float, *, alpha: float | None = None) -> Rope:
    stretch = (alpha or 2 * s) ** (base.width / (base.width - 2))
    return {"rope_type": "default", "rope_theta": base.theta * stretch}


def _dynamic(base: Positions, s: float) -> Rope:
    return {"rope_type": "dynamic", "rope_theta": base.theta, "factor": s}


def _yarn(
    base: Positions,
    s: float,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    truncate: float = True,
) -> Rope:
    return {
        "rope_type": "yarn",
        "rope_theta": base.theta,
        "factor": s,
        # inside the block: outside, transformers would take the new window for the native one
        "original_max_position_embeddings": base.window,
        "attention_factor": yarn_scale(s) if attention_factor is None else attention_factor,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "truncate": bool(truncate),
    }


def _llama3(base: Positions, s: float, *, low_freq_factor: float = 1.0, high_freq_factor: float = 4.0) -> Rope:
    return {
        "rope_type": "llama3",
        "rope_theta": base.theta,
        "factor": s,
        "low_freq_factor": low_freq_factor,
        "high_freq_factor": high_freq_factor,
        "original_max_position_embeddings": base.window,
    }


def _longrope(
    base: Positions,
    s: float,
    *,
    long_factor: Sequence[float] = (),
    short_factor: Sequence[float] = (),
    attention_factor: float | None = None,
) -> Rope:
    pairs = base.width // 2
    for name, factors in (("long_factor", long_factor), ("short_factor", short_factor or long_factor)):
        if len(factors) != pairs or not all(math.isfinite(f) and f > 0 for f in factors):
            raise ScalerError(
                f"longrope: {name}: {len(factors)} numbers; this model needs {pairs} positive ones",
                "give one factor for each pair of rotated dimensions, or use method: searched",
            )
    # without attention_factor even factors of 1 would change what the model says about short text
    scale = attention_factor or math.sqrt(1 + math.log(s) / math.log(base.window))
    return static_rope(base, s, long_factor, scale) | {"short_factor": list(short_factor or long_factor)}


def _searched(
    base: Positions, s: float, *, beta_fast: float = 32.0, beta_slow: float = 1.0, temperature: float | None = None
) -> Rope:
    """Stretch by s what turns less than beta_slow times in the native window, nothing above beta_fast turns."""
    if not 0 < beta_slow < beta_fast:
        raise ScalerError(f"searched: beta_slow {beta_slow:g} must be below beta_fast {beta_fast:g}", "swap them")
    now = base.frequencies
    turns = np.log(base.window * now.inverse / (2 * math.pi))
    fast = min(math.log(beta_fast), float(turns[0]))  # no pair turns more often than the first
    slow = min(math.log(beta_slow), fast - 1e-6)
    ramp = np.clip((fast - turns) / (fast - slow), 0, 1)
    inverse = now.inverse / s * ramp + now.inverse * (1 - ramp)
    scale = (yarn_scale(s) if temperature is None else temperature) * now.scale
    return static_rope(base, s, plain(base.theta, base.width) / inverse, scale)


def static_rope(base: Positions, s: float, factors: Sequence[float] | Floats, scale: float) -> Rope:
    """Fixed factors f_i that divide the frequencies, and t: the one form that every static method can be written in."""
    listed = [float(f"{factor:.9g}") for factor in factors]
    return {
        "rope_type": "longrope",
        "rope_theta": base.theta,
        "factor": s,
        "short_factor": listed,
        "long_factor": list(listed),
        "original_max_position_embeddings": base.window,
        "attention_factor": float(scale),
    }


@dataclass(frozen=True)
class Method:
    """One way to stretch a window."""

    rope: Callable[..., Rope]
    """(base, factor, **options) -> `rope_parameters`."""
    untrained: float | None
    """Largest factor at which it found 15 of 16 far facts without training (benchmarks/methods.py); None: unknown."""
    stacks: bool = False
    """Whether a base that is scaled already can be stretched further."""


METHODS: Mapping[str, Method] = {
    "yarn": Method(_yarn, untrained=8),
    "llama3": Method(_llama3, untrained=4),
    "ntk": Method(_ntk, untrained=2),
    "dynamic": Method(_dynamic, untrained=4),
    "linear": Method(_linear, untrained=1),
    "longrope": Method(_longrope, untrained=None),
    "searched": Method(_searched, untrained=8, stacks=True),
}


def default_method(base: Blueprint) -> str:
    """yarn; where the base is scaled already, the method that carries its scaling on."""
    return "yarn" if rope_of(base.config)["rope_type"] == "default" else "searched"


# -- configurations --------------------------------------------------------------------------------------------------


def rope_of(config: Mapping[str, Any]) -> Rope:
    """The rotary settings of a config.json, new or old style: of the global layers, where the model has two sets."""
    return rope_sets(config)[GLOBAL]


def rope_sets(config: Mapping[str, Any]) -> dict[str, Rope]:
    """Rotary settings by kind of layer; a family with one set has it under "full_attention"."""
    block = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    old = {"rope_type": block.pop("type")} if "type" in block else {}
    two = config.get("model_type") == "gemma3_text"
    if GLOBAL in block or LOCAL in block:
        return {kind: _complete(block.get(kind) or {}, config, GEMMA3_THETA[kind]) for kind in (GLOBAL, LOCAL)}
    settings = _complete({**block, **old}, config, GEMMA3_THETA[GLOBAL] if two else 10_000.0)
    if not two:
        return {GLOBAL: settings}
    return {
        GLOBAL: settings,
        LOCAL: {"rope_type": "default", "rope_theta": config.get("rope_local_base_freq", GEMMA3_THETA[LOCAL])},
    }


def _complete(block: Mapping[str, Any], config: Mapping[str, Any], theta: float) -> Rope:
    rope: Rope = {"rope_type": "default", "rope_theta": config.get("rope_theta") or theta, **block}
    partial = config.get("partial_rotary_factor")
    return rope if partial in (None, 1.0) else {"partial_rotary_factor": partial, **rope}


def positions(config: Mapping[str, Any]) -> Positions:
    """The positions of a configuration. Raises ScalerError where it has none that can be stretched."""
    rope, window = rope_of(config), config.get("max_position_embeddings")
    if type(window) is not int or window < 1:
        raise ScalerError("config.json: no window (max_position_embeddings)", "only models with rotary positions grow")
    if rope["rope_type"] == "longrope" and config.get("original_max_position_embeddings"):  # Phi-3 keeps it outside
        rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return Positions(rope, window, int(head * rope.get("partial_rotary_factor", 1.0)))


def native_window(config: Mapping[str, Any]) -> int:
    """The window a model was trained with: the original one where it has been extended before."""
    base = positions(config)
    return int(base.rope.get("original_max_position_embeddings") or base.window)


def extended_config(
    config: Mapping[str, Any],
    length: int,
    method: str = "yarn",
    *,
    base: Mapping[str, Any] | None = None,
    **options: float | Sequence[float],
) -> dict[str, Any]:
    """The configuration with a window of `length` tokens.

    `base` is the configuration before any rung (default: `config` itself); `options` go to the method. Raises
    ScalerError for an unknown method or option, a window that is not longer, layers that all look back over a fixed
    number of tokens only, or a base whose own scaling the method cannot carry on.
    """
    if method not in METHODS:
        raise ScalerError(f"{method}: no such method", f"known: {', '.join(METHODS)}")
    before = positions(base or config)
    if length <= before.window:
        raise ScalerError(f"a window of {length} is not longer than {before.window}", f"name more than {before.window}")
    _must_look_far(config, length)
    _must_stack(before, method)
    rope = _rope(METHODS[method], method, before, length / before.window, options)
    return _written(config, _for_family(config, rope, before, length), length, before)


def _rope(method: Method, name: str, base: Positions, s: float, options: Options) -> Rope:
    known = [*inspect.signature(method.rope).parameters][2:]
    for option in options:
        if option not in known:
            raise ScalerError(f"{name}: {option}: no such option", f"known: {', '.join(known) or 'none'}")
    rope = method.rope(base, s, **options)
    partial = base.rope.get("partial_rotary_factor")
    return rope if partial is None else rope | {"partial_rotary_factor": partial}


def _must_look_far(config: Mapping[str, Any], length: int) -> None:
    """Refuse models whose every layer slides over fewer tokens: no positions lie farther apart than that."""
    family, types = config.get("model_type"), config.get("layer_types")
    sliding = config.get("sliding_window", 4096 if family == "mistral" else None)
    everywhere = family in ("mistral", "mixtral", "phi3") or (types and GLOBAL not in types)
    if isinstance(sliding, int) and sliding < length and everywhere:
        raise ScalerError(
            f"every layer looks back over {sliding} tokens only: a window of {length} would never be used",
            "take a model with full attention, or set sliding_window: null if it was trained without it",
        )


def _must_stack(base: Positions, method: str) -> None:
    if one_shot(base.rope):
        raise ScalerError(
            f"the base switches its frequencies with the length (rope_type {base.rope['rope_type']})",
            "set its long factors as short factors too, or take a base with fixed frequencies",
        )
    if base.rope["rope_type"] != "default" and not METHODS[method].stacks:
        able = ", ".join(name for name, row in METHODS.items() if row.stacks)
        raise ScalerError(
            f"{method}: the base is scaled already (rope_type {base.rope['rope_type']}) and would lose that scaling",
            f"use a method that carries it on: {able}",
        )


def _for_family(config: Mapping[str, Any], rope: Rope, base: Positions, length: int) -> Rope:
    """Phi-3's configuration knows longrope only, and silently reads yarn as longrope: there, factors are written."""
    if config.get("model_type") != "phi3" or rope["rope_type"] == "longrope":
        return rope
    found = frequencies(rope, width=base.width, window=base.window, length=length)
    written = static_rope(base, length / base.window, plain(base.theta, base.width) / found.inverse, found.scale)
    return written | {key: rope[key] for key in ("partial_rotary_factor",) if key in rope}


def _written(config: Mapping[str, Any], rope: Rope, length: int, base: Positions) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ROPE_KEYS}
    sets = rope_sets(config)
    block = {**sets, GLOBAL: rope} if LOCAL in sets else rope
    if config.get("model_type") == "phi3":  # this family's own key wins over the one inside
        kept["original_max_position_embeddings"] = base.window
        kept["partial_rotary_factor"] = rope.get("partial_rotary_factor", 1.0)
    # dynamic scaling starts where max_position_embeddings ends: it must stay the native window
    window = base.window if rope["rope_type"] == "dynamic" else length
    return {**kept, "rope_parameters": block, "max_position_embeddings": window}


def cautions(view: Blueprint, length: int, method: str) -> tuple[str, ...]:
    """What should be known before this method is used for this window; empty where nothing speaks against it."""
    base = positions(view.config)
    s, found = length / base.window, []
    if method == "dynamic":
        found.append(
            "dynamic: keys in a cache go stale as the text grows: good for scoring in one pass, not to generate"
        )
    reach = METHODS[method].untrained
    if reach is not None and s > reach:
        found.append(
            f"{method}: {s:g}x is above the {reach:g}x at which it was seen to work without training "
            f"({int(base.window * reach)} tokens here): plan healing, and trust the needles, not the config"
        )
    if LOCAL in (view.layer_types or ()) and LOCAL not in rope_sets(view.config):
        found.append(
            "this family has one set of rotary settings: its sliding layers are stretched with the global ones"
        )
    return tuple(found)
