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

Divergence = Literal["forward", "reverse", "jsd"]
PIECE = 128
"""Tokens whose logits exist together: up to four tables of them, half as many tokens as where there is one."""


@dataclass(frozen=True)
class Shares:
    """What a piece's slope is made of."""

    divergence: float
    """Times the divergence's slope by the logits."""
    own: float
    """Times the student's own probabilities: the part of the cross-entropy's slope that stands in every column."""


class View(Protocol):
    """What a teacher says of some tokens."""

    def divergence(self, log_p: torch.Tensor, at: slice, shares: Shares = ...) -> torch.Tensor:
        """(n,) for the student's log-probabilities (n, vocabulary) of the tokens `at`, which become the slope."""


ALONE = Shares(divergence=1.0, own=0.0)


@dataclass(frozen=True)
class Hidden:
    """The teacher's last hidden states, and its head."""

    states: torch.Tensor
    """(tokens, teacher's hidden)"""
    head: torch.Tensor
    """(vocabulary, teacher's hidden)"""
    temperature: float = 1.0
    kind: Divergence = "forward"

    def divergence(self, log_p: torch.Tensor, at: slice, shares: Shares = ALONE) -> torch.Tensor:
        """Exact."""
        logits = functional.linear(self.states[at].to(self.head.dtype), self.head)
        return DIVERGENCES[self.kind](log_p, _log_softmax(logits, self.temperature, log_p.dtype), shares)


@dataclass(frozen=True)
class Likeliest:
    """The teacher's k likeliest tokens; the rest of its probability is one more outcome.

    Without the bucket for the rest the gradient points elsewhere (docs/log.md).
    """

    tokens: torch.Tensor
    """(tokens, k) indices into the vocabulary."""
    log_q: torch.Tensor
    """(tokens, k) log-probabilities at the temperature."""

    def divergence(self, log_p: torch.Tensor, at: slice, shares: Shares = ALONE) -> torch.Tensor:
        """Kullback-Leibler divergence of teacher and student over k + 1 outcomes."""
        tokens, log_q = self.tokens[at].long(), self.log_q[at].to(log_p.dtype)
        q, top = log_q.exp(), log_p.gather(1, tokens)
        p = top.exp()
        q_rest = (1 - q.sum(dim=1)).clamp_min(torch.finfo(log_p.dtype).tiny)
        p_rest = (1 - p.sum(dim=1)).clamp_min(1e-9)
        found = (q * (log_q - top)).sum(dim=1) + q_rest * (q_rest / p_rest).log()
        log_p.exp_().mul_((shares.divergence * (1 - q_rest / p_rest) + shares.own)[:, None])
        log_p.scatter_(1, tokens, (shares.divergence + shares.own) * p - shares.divergence * q)
        return found


# -- divergences: (n, vocabulary) log-probabilities of student and teacher -> (n,); log_p becomes the slope ------------

Slope = Callable[[torch.Tensor, torch.Tensor, Shares], torch.Tensor]


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor, shares: Shares) -> torch.Tensor:
    """KL(teacher, student): the student covers all that the teacher would say (arXiv:1503.02531)."""
    q = log_q.exp()
    found = torch.linalg.vecdot(q, log_q.sub_(log_p))
    log_p.exp_().mul_(shares.divergence + shares.own).sub_(q, alpha=shares.divergence)
    return found


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor, shares: Shares) -> torch.Tensor:
    """KL(student, teacher): the student says only what the teacher would (arXiv:2306.08543)."""
    p, ratio = log_p.exp(), log_p.sub_(log_q)
    found = torch.linalg.vecdot(p, ratio)
    ratio.sub_(found[:, None]).mul_(shares.divergence).add_(shares.own).mul_(p)
    return found


def jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor, shares: Shares) -> torch.Tensor:
    """Half of each divergence to the mean of both (arXiv:2306.13649): bounded, symmetric."""
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).clamp_min_(torch.finfo(p.dtype).tiny).log_()
    theirs = torch.linalg.vecdot(q, log_q.sub_(log_m))
    ours = torch.linalg.vecdot(p, log_p.sub_(log_m))
    log_p.sub_(ours[:, None]).mul_(shares.divergence / 2).add_(shares.own).mul_(p)
    return (ours + theirs) / 2


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
        for start in range(0, len(targets), PIECE):
            at = slice(start, min(start + PIECE, len(targets)))
            losses, slope = _both(functional.linear(rows[at], matrix), targets[at], view, at, how)
            total += losses.sum()
            if grad_hidden is not None:
                grad_hidden[at] = (slope @ matrix).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += slope.T @ rows[at]
            del slope  # else it would stand beside the next piece's logits
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
    plain = how.temperature == 1  # then both losses share the student's probabilities
    log_p, rest = _log_softmax(logits, how.temperature, how.wide), 1 - how.weight
    losses = -rest * log_p.gather(1, targets[:, None])[:, 0] if plain else torch.zeros_like(log_p[:, 0])
    shares = Shares(divergence=how.weight * how.temperature, own=rest if plain else 0.0)
    losses += how.weight * how.temperature**2 * view.divergence(log_p, at, shares)
    slope = log_p
    if rest and not plain:
        log_one = _log_softmax(logits, 1.0, how.wide)
        losses -= rest * log_one.gather(1, targets[:, None])[:, 0]
        slope.add_(log_one.exp_(), alpha=rest)
    slope[torch.arange(len(targets), device=targets.device), targets] -= rest
    return losses, slope.to(how.dtype)


def _log_softmax(logits: torch.Tensor, temperature: float, wide: torch.dtype) -> torch.Tensor:
    bent = logits if temperature == 1 else logits.to(wide) / temperature
    return functional.log_softmax(bent, dim=-1, dtype=wide)


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
