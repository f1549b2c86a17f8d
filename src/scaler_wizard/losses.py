"""Cross-entropy from hidden states, a piece at a time, so that the logits of all tokens never exist together.

For SmolLM2 (vocabulary 49,152) one window of 4,096 tokens would need 805 MB of fp32 logits, and as much again for
their gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

CHUNK = 128
"""Tokens whose logits exist together on a processor; pieces of 64 take a third longer, larger ones no less."""
GPU_CHUNK = 1024
"""On a GPU, where every piece reads the head's whole matrix from memory."""


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """Sum of weighted losses; the gradients are made in the forward pass, while a piece's logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        shares: torch.Tensor,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> torch.Tensor:
        matrix, rows = weight.to(dtype), hidden.to(dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total, size = shares.new_zeros(()), CHUNK if hidden.device.type == "cpu" else GPU_CHUNK
        for at in range(0, len(targets), size):
            piece, goal, share = rows[at : at + size], targets[at : at + size], shares[at : at + size]
            loss, slope = _loss_and_slope(functional.linear(piece, matrix), goal, share, softcap)
            total -= loss
            if grad_hidden is not None:
                grad_hidden[at : at + size] = (slope @ matrix) * share[:, None]
            if grad_weight is not None:
                grad_weight += slope.T @ (piece * share[:, None].to(dtype))
            del slope  # else it would stand beside the next piece's logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = [None if found is None else found.mul_(grad) for found in (grad_hidden, grad_weight)]
        return scale[0], scale[1], None, None, None, None


def _loss_and_slope(
    logits: torch.Tensor, goal: torch.Tensor, share: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the log-probabilities of `goal` (n,); the loss's slope by the logits, unweighted."""
    bent = None if softcap is None else torch.tanh(logits.to(share.dtype) / softcap)
    log_p = functional.log_softmax(logits if bent is None else softcap * bent, dim=-1, dtype=share.dtype)
    found = (log_p.gather(1, goal[:, None])[:, 0] * share).sum()
    slope = log_p.exp_()
    slope[torch.arange(len(goal), device=goal.device), goal] -= 1
    return found, (slope if bent is None else slope.mul_(1 - bent * bent)).to(logits.dtype)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Mean of -log softmax(hidden @ weight.T)[target], nats; differentiable once in `hidden` and `weight`.

    hidden (tokens, hidden), weight (vocabulary, hidden), targets (tokens,), weights (tokens,) count each token. The
    matrix products run in `dtype` (as hidden where it is left out), the softmax in fp32 at least. `softcap` bends the
    logits to softcap * tanh(logits / softcap), as Gemma 2 does.
    """
    dtype = dtype or hidden.dtype
    shares = torch.ones_like(targets, dtype=torch.promote_types(dtype, torch.float32)) if weights is None else weights
    shares = shares.to(torch.promote_types(dtype, torch.float32))
    total = _LinearCrossEntropy.apply(hidden, weight, targets, shares, dtype, softcap)
    mean: torch.Tensor = total / shares.sum()
    return mean


def head_loss(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, *, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The same for a model's own head, with the family's divisor (Granite) and cap (Gemma 2) of the logits."""
    divisor = getattr(model.config, "logits_scaling", None) or 1.0
    cap = getattr(model.config, "final_logit_softcapping", None)
    return linear_cross_entropy(hidden / divisor, model.lm_head.weight, targets, weights=weights, softcap=cap)
