"""Cross-entropy from hidden states, a piece at a time, so that the logits of all tokens never exist together.

For SmolLM2 (vocabulary 49,152) one window of 4,096 tokens would need 805 MB of fp32 logits, and as much again for
their gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

CHUNK = 512


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """Sum of weighted losses; the gradients are made in the forward pass, while a piece's logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        need_hidden, need_weight = hidden.requires_grad, weight.requires_grad
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        total = hidden.new_zeros(())
        for at in range(0, len(targets), CHUNK):
            piece, goal, share = hidden[at : at + CHUNK], targets[at : at + CHUNK], weights[at : at + CHUNK]
            logits = functional.linear(piece, weight)
            log_p = functional.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
            total -= (log_p.gather(1, goal[:, None])[:, 0] * share).sum()
            slope = log_p.exp_()
            slope[torch.arange(len(goal), device=goal.device), goal] -= 1
            slope = (slope * share[:, None]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[at : at + CHUNK] = slope @ weight
            if grad_weight is not None:
                grad_weight.addmm_(slope.T, piece)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = [None if found is None else found * grad for found in (grad_hidden, grad_weight)]
        return scale[0], scale[1], None, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of -log softmax(hidden @ weight.T)[target], nats; differentiable in `hidden` and `weight`.

    hidden (tokens, hidden), weight (vocabulary, hidden), targets (tokens,), weights (tokens,) count each token.
    """
    shares = torch.ones_like(targets, dtype=hidden.dtype) if weights is None else weights.to(hidden.dtype)
    total = _LinearCrossEntropy.apply(hidden, weight, targets, shares)
    mean: torch.Tensor = total / shares.sum()
    return mean
