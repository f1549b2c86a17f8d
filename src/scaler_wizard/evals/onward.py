"""Attention of a piece of text to the cache before it and to itself, without a mask: pieces cost what one pass costs.

Transformers masks such a piece, so the kernel also works on what is hidden, and copies the cache for grouped heads.
Here the two parts are attended apart, the cache without a mask and the piece causally, and joined by the logarithms of
their softmax's sums, as blocks are in FlashAttention (arXiv:2205.14135, section 3.1). In bfloat16 tiles see both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from scaler_wizard.attention import attending, computes_bfloat16
from scaler_wizard.tiles import attend_by_tiles

NAME = "onward"
FEW = 16
"""Tokens of a piece that are not worth a tile."""


@contextmanager
def onward(model: Any) -> Iterator[None]:
    """While inside, the model reads pieces of one text without a mask, where its layers see everything before them.

    Other models (sliding layers, capped scores, attention of their own, on a GPU) go on as they are.
    """
    configuration = model.config
    able = configuration._attn_implementation == "sdpa" and model.device.type == "cpu" and _sees_all(configuration)
    with attending(model, NAME, _attend) if able else nullcontext():
        yield


def _sees_all(configuration: Any) -> bool:
    types = getattr(configuration, "layer_types", None) or ("full_attention",)
    capped = getattr(configuration, "attn_logit_softcapping", None)
    slides = getattr(configuration, "sliding_window", None) and getattr(configuration, "use_sliding_window", True)
    return set(types) == {"full_attention"} and not capped and not slides


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query (n, heads, tokens, dim), key and value (n, kv_heads, before + tokens, dim) -> (n, tokens, heads, dim)."""
    assert attention_mask is None
    if computes_bfloat16(query) and query.shape[2] >= FEW:
        return attend_by_tiles(query, key, value, scaling=scaling or query.shape[-1] ** -0.5).transpose(1, 2), None
    before = key.shape[2] - query.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if before == 0:
        own = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return own.transpose(1, 2), None
    groups = query.shape[1] // key.shape[1]
    here = [part[:, :, before:].repeat_interleave(groups, dim=1) for part in (key, value)]
    own, own_sum = _flash(query, *here, causal=True, scaling=scaling)
    # heads that share keys stand one after another: as further queries they need no copy of the cache
    folded = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
    far, far_sum = _flash(folded, key[:, :, :before], value[:, :, :before], causal=False, scaling=scaling)
    far, far_sum = far.reshape(own.shape), far_sum.reshape(own_sum.shape)
    share = torch.sigmoid(far_sum - own_sum)[..., None].to(own.dtype)
    return torch.lerp(own, far, share).transpose(1, 2), None


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The processor's fused kernel: (n, heads, tokens, dim), and the logarithms of its softmax's sums."""
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scaling
    )
    return found
