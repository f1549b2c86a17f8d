"""Learning from a teacher's whole distribution, a piece of the vocabulary's rows at a time.

The teacher's view of a token is either its last hidden state, from which its logits are made again (exact), or its
likeliest tokens and what is left over (a few hundred bytes). Full logits of all tokens never exist, on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional

from scaler_wizard.losses import CHUNK

Divergence = Literal["forward", "reverse", "jsd"]
Slope = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class View(Protocol):
    """What a teacher says of some tokens."""

    def divergence(self, log_p: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """For the student's log-probabilities (n, vocabulary) of the tokens `at`: (n,) and its slope by the logits."""


@dataclass(frozen=True)
class Hidden:
    """The teacher's last hidden states, and its head."""

    states: torch.Tensor
    """(tokens, teacher's hidden)"""
    head: torch.Tensor
    """(vocabulary, teacher's hidden)"""
    temperature: float = 1.0
    kind: Divergence = "forward"

    def divergence(self, log_p: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact."""
        logits = functional.linear(self.states[at].to(self.head.dtype), self.head)
        log_q = functional.log_softmax(logits.to(log_p.dtype) / self.temperature, dim=-1)
        return DIVERGENCES[self.kind](log_p, log_q)


@dataclass(frozen=True)
class Likeliest:
    """The teacher's k likeliest tokens; the rest of its probability is one more outcome.

    Without the bucket for the rest the gradient points elsewhere (docs/log.md).
    """

    tokens: torch.Tensor
    """(tokens, k) indices into the vocabulary."""
    log_q: torch.Tensor
    """(tokens, k) log-probabilities at the temperature."""

    def divergence(self, log_p: torch.Tensor, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Kullback-Leibler divergence of teacher and student over k + 1 outcomes."""
        tokens, log_q = self.tokens[at].long(), self.log_q[at].to(log_p.dtype)
        q, top = log_q.exp(), log_p.gather(1, tokens)
        tiny = torch.finfo(log_p.dtype).tiny
        q_rest = (1 - q.sum(dim=1)).clamp_min(tiny)
        p_rest = (1 - top.exp().sum(dim=1)).clamp_min(1e-9)
        found = (q * (log_q - top)).sum(dim=1) + q_rest * (q_rest / p_rest).log()
        slope = log_p.exp() * (1 - q_rest / p_rest)[:, None]
        return found, slope.scatter_(1, tokens, top.exp() - q)


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(teacher, student): the student covers all that the teacher would say (arXiv:1503.02531)."""
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(dim=1), log_p.exp() - q


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(student, teacher): the student says only what the teacher would (arXiv:2306.08543)."""
    p, ratio = log_p.exp(), log_p - log_q
    found = (p * ratio).sum(dim=1)
    return found, p * (ratio - found[:, None])


def jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of each divergence to the mean of both (arXiv:2306.13649): bounded, symmetric."""
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).clamp_min(torch.finfo(p.dtype).tiny).log()
    ours = (p * (log_p - log_m)).sum(dim=1)
    return (ours + (q * (log_q - log_m)).sum(dim=1)) / 2, p * (log_p - log_m - ours[:, None]) / 2


DIVERGENCES: dict[str, Slope] = {"forward": forward_kl, "reverse": reverse_kl, "jsd": jensen_shannon}


class _Distilled(torch.autograd.Function):  # type: ignore[misc]
    """Both losses of a piece from one product with the head; gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, view: View, how: _How
    ) -> torch.Tensor:
        matrix, rows = weight.to(how.dtype), hidden.to(how.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=how.wide)
        for start in range(0, len(targets), CHUNK):
            at = slice(start, min(start + CHUNK, len(targets)))
            logits = functional.linear(rows[at], matrix).to(how.wide)
            losses, slope = _both(logits, targets[at], view, at, how)
            total += losses.sum()
            slope = slope.to(how.dtype)
            if grad_hidden is not None:
                grad_hidden[at] = (slope @ matrix).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += slope.T @ rows[at]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = [None if found is None else found.mul_(grad) for found in (grad_hidden, grad_weight)]
        return scaled[0], scaled[1], None, None, None


@dataclass(frozen=True)
class _How:
    weight: float
    temperature: float
    dtype: torch.dtype
    wide: torch.dtype


def _both(
    logits: torch.Tensor, targets: torch.Tensor, view: View, at: slice, how: _How
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) losses and (n, vocabulary) slopes; T^2 keeps the teacher's gradient as large at any temperature."""
    log_p = functional.log_softmax(logits / how.temperature, dim=-1)
    found, slope = view.divergence(log_p, at)
    losses, slope = how.weight * how.temperature**2 * found, slope.mul_(how.weight * how.temperature)
    if how.weight < 1:
        log_one = log_p if how.temperature == 1 else functional.log_softmax(logits, dim=-1)
        losses = losses - (1 - how.weight) * log_one.gather(1, targets[:, None])[:, 0]
        slope.add_(log_one.exp(), alpha=1 - how.weight)
        slope[torch.arange(len(targets), device=targets.device), targets] -= 1 - how.weight
    return losses, slope


def distilled_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    view: View,
    *,
    weight: float,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Mean of (1 - weight) x cross-entropy + weight x T^2 x divergence from the teacher, nats.

    hidden (tokens, hidden), head (vocabulary, hidden), targets (tokens,). Differentiable once in `hidden` and `head`;
    the matrix products run in `dtype` (as hidden where it is left out), the softmax in fp32 at least.
    """
    dtype = dtype or hidden.dtype
    how = _How(weight, temperature, dtype, torch.promote_types(dtype, torch.float32))
    total: torch.Tensor = _Distilled.apply(hidden, head, targets, view, how)
    return total / len(targets)
