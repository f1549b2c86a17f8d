"""The new rows and columns of partly new tensors, as parameters of their own.

Their gradients and moments exist for what is new alone: a feed-forward block that grew by a third would else hold those
of all of it. The old part is never written, so it keeps its bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import torch

Span = tuple[int, int, int]
"""Dimension, start, stop."""
Rectangle = tuple[slice, ...]


class Sliced:
    """A tensor of which only `spans` learn: what autograd finds for it is kept for these, and for no longer."""

    def __init__(self, whole: torch.nn.Parameter, spans: Sequence[Span]) -> None:
        self.whole = whole
        self._places = tuple(rectangles(whole.shape, spans))
        self.own = [torch.nn.Parameter(whole.detach()[place].clone()) for place in self._places]
        whole.register_post_accumulate_grad_hook(self._take)

    def _take(self, whole: torch.Tensor) -> None:
        assert whole.grad is not None
        for own, place in zip(self.own, self._places, strict=True):
            found = whole.grad[place]
            own.grad = found.clone() if own.grad is None else own.grad.add_(found)
        whole.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """What was learnt, into the tensor."""
        for own, place in zip(self.own, self._places, strict=True):
            self.whole[place].copy_(own)

    @torch.no_grad()
    def read(self) -> None:
        """Begin again from what the tensor holds."""
        for own, place in zip(self.own, self._places, strict=True):
            own.copy_(self.whole[place])


def rectangles(shape: Sequence[int], spans: Sequence[Span]) -> Iterator[Rectangle]:
    """Disjoint parts that together are the spans: where new rows cross new columns both claim the corner."""
    chosen = [runs(size, [(start, stop) for dim, start, stop in spans if dim == at]) for at, size in enumerate(shape)]
    for at, (new, _) in enumerate(chosen):
        before = [old for _, old in chosen[:at]]
        after = [[slice(0, size)] for size in shape[at + 1 :]]
        yield from product(*before, new, *after)


def runs(size: int, spans: Sequence[tuple[int, int]]) -> tuple[list[slice], list[slice]]:
    """The stretches of a dimension that lie in the spans, and those that do not."""
    inside = torch.zeros(size, dtype=torch.bool)
    for start, stop in spans:
        inside[start:stop] = True
    edges = [0, *(torch.nonzero(inside[1:] != inside[:-1])[:, 0] + 1).tolist(), size]
    found = [slice(start, stop) for start, stop in pairwise(edges)]
    return [run for run in found if inside[run.start]], [run for run in found if not inside[run.start]]
