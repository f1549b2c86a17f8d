"""Attention inside each piece of a flat batch: no dense mask, and no work between texts that do not see each other.

All pieces of a step stand end to end in one row of tokens, so every other layer is one large matrix product; only here
are they taken apart, pieces of equal length together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from scaler_wizard.tiles import attend_by_tiles

NAME = "by_piece"
VARLEN = "torch.nn.attention.varlen"


@dataclass(frozen=True)
class Attended:
    """What one attention layer compared."""

    query: torch.Tensor
    """(heads, tokens, dim)"""
    key: torch.Tensor
    """(kv_heads, tokens, dim)"""
    scaling: float
    window: int | None
    softcap: float | None


Seen = dict[int, Attended | None]
"""What some layers compared, by their number; only layers that have a key are looked at."""


@contextmanager
def by_piece(model: Any) -> Iterator[None]:
    """While inside, the model attends by piece; forward and backward both belong inside, as activations may be redone.

    Its forward pass then takes `pieces`, the lengths in order, whose sum is the row's number of tokens.
    """
    with attending(model, NAME, _attend):
        yield


@contextmanager
def attending(model: Any, name: str, attend: Callable[..., tuple[torch.Tensor, None]]) -> Iterator[None]:
    """While inside, every layer attends by `attend`; no mask is built, since none is registered under `name`."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, attend)
    configuration = model.config
    before = configuration._attn_implementation
    configuration._attn_implementation = name
    try:
        yield
    finally:
        configuration._attn_implementation = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    pieces: Sequence[int],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    seen: Seen | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) -> (1, tokens, heads, dim)."""
    if seen is not None and (layer := getattr(module, "layer_idx", None)) in seen:
        seen[layer] = Attended(query[0], key[0], scaling or query.shape[-1] ** -0.5, sliding_window, softcap)
    if softcap is None and has_varlen(query):
        parts = [part[0].transpose(0, 1) for part in (query, key, value)]
        return _varlen(*parts, pieces=pieces, scaling=scaling, window=sliding_window)[None], None
    groups = [(length, len(list(same))) for length, same in groupby(pieces)]
    sizes = [length * count for length, count in groups]
    found = []
    for (length, count), *parts in zip(
        groups, *(part.split(sizes, dim=2) for part in (query, key, value)), strict=True
    ):
        apart = [part[0].unflatten(1, (count, length)).transpose(0, 1) for part in parts]
        together = _causal(*apart, scaling=scaling, window=sliding_window, softcap=softcap)
        found.append(together.transpose(1, 2).flatten(0, 1))
    return (found[0] if len(found) == 1 else torch.cat(found))[None], None


def attention_shares(attended: Attended, piece: slice, rows: torch.Tensor) -> torch.Tensor:
    """Where some tokens of a piece look, averaged over heads: (rows, tokens of the piece), each row sums to 1."""
    query, key = attended.query[:, piece][:, rows].float(), attended.key[:, piece].float()
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    scores = query @ key.transpose(1, 2) * attended.scaling
    if attended.softcap is not None:
        scores = attended.softcap * torch.tanh(scores / attended.softcap)
    distance = rows[:, None] - torch.arange(key.shape[1], device=rows.device)
    allowed = (distance >= 0) & (distance < (attended.window or key.shape[1]))
    shares: torch.Tensor = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1).mean(dim=0)
    return shares


def has_varlen(query: torch.Tensor) -> bool:
    """Whether torch has a kernel that attends inside every piece at once: on a GPU from Ampere on, in 16 bits."""
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0) and find_spec(VARLEN) is not None


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    pieces: Sequence[int],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """(tokens, heads, dim) each, by FlashAttention (arXiv:2307.08691)."""
    attend = import_module(VARLEN).varlen_attn
    ends, longest = piece_ends(pieces).to(query.device), max(pieces)
    reach = (-1 if window is None or window >= longest else window - 1, 0)
    grouped = query.shape[1] != key.shape[1]
    found: torch.Tensor = attend(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=reach, enable_gqa=grouped
    )
    return found


def piece_ends(pieces: Sequence[int]) -> torch.Tensor:
    """Where each piece begins, and where the last one ends: (pieces + 1,)."""
    return torch.tensor([0, *pieces], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Each of (pieces, heads, tokens, dim) by itself."""
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    windowed = window is not None and window < length
    if softcap is None and computes_bfloat16(query):
        parts = [part.to(torch.bfloat16) for part in (query, key, value)]
        return attend_by_tiles(*parts, scaling=scaling or query.shape[-1] ** -0.5, window=window if windowed else None)
    if softcap is None and not windowed:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    allowed = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if windowed:
        allowed = allowed.triu(1 - (window or 0))
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling, enable_gqa=grouped)
    return _capped(query, key, value, allowed, scaling=scaling, softcap=softcap)


def computes_bfloat16(query: torch.Tensor) -> bool:
    """Whether products are made in bfloat16 on a processor, where tiles are faster than torch's own kernel."""
    if query.device.type != "cpu":
        return False
    products = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return bool(products == torch.bfloat16)


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor,
    *,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Gemma 2 bends its scores by a tanh, which no fused kernel does."""
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    shares = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    return shares.to(value.dtype) @ value
