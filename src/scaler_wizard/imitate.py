"""Make a model's blocks work like a teacher's: what they put out, through learned projections (TinyBERT,
arXiv:1909.10351), and where they look (attention transfer, arXiv:1612.03928).

Heads are averaged, so the two may differ in their number, and in their width. Not covered: blocks on other tokens than
the teacher's own (another tokenizer is refused).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from scaler_wizard.attention import Attended, Seen, attention_shares
from scaler_wizard.errors import ScalerError
from scaler_wizard.recipe import Distil

PAIRS = 4
"""Pairs of blocks where nobody named any."""
LOOKS = 64
"""Tokens of a piece whose looks are compared: a whole map would hold its length squared."""
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Inside:
    """What some blocks made of a row of tokens."""

    states: dict[int, torch.Tensor]
    """By block: (tokens, hidden) after it."""
    attended: Seen
    """By block: what its attention compared."""


@contextmanager
def watched(blocks: Sequence[torch.nn.Module], wanted: Sequence[int]) -> Iterator[Inside]:
    """Keep what these blocks put out while inside; the model's forward pass must be given `seen=inside.attended`."""
    inside = Inside({}, dict.fromkeys(wanted))

    def keep(number: int) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            inside.states[number] = (out[0] if isinstance(out, tuple) else out)[0]

        return hook

    hooks = [blocks[number].register_forward_hook(keep(number)) for number in wanted]
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


def pairs_of(how: Distil, *, ours: int, theirs: int, named: bool = True) -> Pairs:
    """(block of the model, block of the teacher): those that were named, or even ones.

    Raises ScalerError for a block that does not exist.
    """
    if not (how.layers and named):
        count = min(PAIRS, ours, theirs)
        return tuple((ours * part // count - 1, theirs * part // count - 1) for part in range(1, count + 1))
    for pair in how.layers:
        for block, count, whose in zip(pair, (ours, theirs), ("the model", "the teacher"), strict=True):
            if block >= count:
                raise ScalerError(
                    f"heal.distil.layers: block {block}: {whose} has {count} blocks, from 0 to {count - 1}",
                    "name other blocks, or leave the line out",
                )
    return how.layers


class Imitation(torch.nn.Module):  # type: ignore[misc]
    """The two losses, and the projections that learn with the model and are thrown away after."""

    def __init__(self, how: Distil, pairs: Pairs, *, ours: int, theirs: int) -> None:
        """`ours` and `theirs` are the hidden sizes; a projection begins as the identity, padded or cut."""
        super().__init__()
        self.how, self.pairs = how, pairs
        self.projections = torch.nn.ModuleList(
            torch.nn.Linear(ours, theirs, bias=False) for _ in pairs if how.hidden > 0
        )
        for projection in self.projections:
            torch.nn.init.eye_(projection.weight)

    @property
    def ours(self) -> tuple[int, ...]:
        """Blocks of the model that learn."""
        return tuple(sorted({mine for mine, _ in self.pairs}))

    @property
    def theirs(self) -> tuple[int, ...]:
        """Blocks of the teacher that are looked at."""
        return tuple(sorted({other for _, other in self.pairs}))

    def forward(self, mine: Inside, other: Inside, *, pieces: Sequence[int], taught: Sequence[bool]) -> torch.Tensor:
        """The weighted losses, averaged over pairs and over the tokens that are taught.

        `pieces` are the lengths in the model's row, `taught` which of them stand in the teacher's.
        """
        total = next(iter(mine.states.values())).new_zeros((), dtype=torch.float32)
        spans = list(_spans(pieces, taught))
        for number, (ours, theirs) in enumerate(self.pairs):
            if self.how.hidden:
                projection = self.projections[number]
                total = total + self.how.hidden * _unlike(projection, mine.states[ours], other.states[theirs], spans)
            if self.how.attention:
                looks = _looks(mine.attended[ours], other.attended[theirs], spans)
                total = total + self.how.attention * looks
        return total / len(self.pairs)


Spans = list[tuple[slice, slice]]


def _spans(pieces: Sequence[int], taught: Sequence[bool]) -> Iterator[tuple[slice, slice]]:
    """Where each taught piece stands in the model's row and in the teacher's."""
    ours = theirs = 0
    for length, fits in zip(pieces, taught, strict=True):
        if fits:
            yield slice(ours, ours + length), slice(theirs, theirs + length)
            theirs += length
        ours += length


def _unlike(projection: torch.nn.Module, mine: torch.Tensor, other: torch.Tensor, spans: Spans) -> torch.Tensor:
    """Squared distance as a share of the teacher's squared length: blocks far up have far larger states."""
    rows = torch.cat([mine[ours] for ours, _ in spans])
    aims = torch.cat([other[theirs] for _, theirs in spans]).float()
    found: torch.Tensor = (projection(rows.float()) - aims).square().sum() / aims.square().sum()
    return found


def _looks(mine: Attended | None, other: Attended | None, spans: Spans) -> torch.Tensor:
    """Kullback-Leibler divergence between where the two look, averaged over heads first, then over pieces; nats."""
    assert mine is not None and other is not None
    found = []
    for ours, theirs in spans:
        length = ours.stop - ours.start
        if length == 1:  # it can only look at itself
            continue
        rows = torch.arange(length - 1, 0, -max(1, length // LOOKS), device=mine.query.device)
        p, q = attention_shares(mine, ours, rows), attention_shares(other, theirs, rows)
        tiny = torch.finfo(torch.float32).tiny
        found.append((q * (q.clamp_min(tiny).log() - p.clamp_min(tiny).log())).sum(dim=-1).mean())
    return torch.stack(found).mean() if found else mine.query.new_zeros((), dtype=torch.float32)
