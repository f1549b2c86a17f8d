"""Causal attention on a processor, tile by tile: some queries against all keys that they may see.

A tile's scores are one matrix product and its softmax is one pass. Nothing of a tile outlives it: the backward pass
makes its shares again, as FlashAttention does (arXiv:2205.14135), but a row is never cut, so that no running maximum is
needed.

A product in bfloat16 rounds what it writes. Scores are written after the maximum of their row was taken from them,
inside the product: near the maximum, where a share is large, they are near 0 and so nearly exact. A softmax and its
backward pass do not see what is taken from a whole row, so that the maximum itself may be a rounded one; the same holds
for the mean that is taken from a row's slopes.

Texts have ever new lengths, and the matrix library prepares itself for every shape anew. So tiles have few shapes:
queries are filled up to whole tiles, and keys up to a few lengths, with nothing that anybody sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import pad

FEWEST_ROWS, MOST_ROWS = 64, 256
"""Queries of a tile: an eighth of the tokens, between these. What lies above its diagonal is computed for nothing."""
ELEMENTS = 2**21
"""Scores of a tile, about; its passes stay in the processor's cache."""


def attend_by_tiles(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float, window: int | None = None
) -> torch.Tensor:
    """Query (pieces, heads, tokens, dim), key and value (pieces, kv_heads, before + tokens, dim) -> like query.

    Each token sees itself and those before it; with a window only the last `window` of these.
    """
    found: torch.Tensor = _Tiled.apply(query, key, value, scaling, window)
    return found


class _Tiled(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        layout = _Layout.of(query, key, window)
        asked, keys, values = layout.queries(query), layout.keys(key), layout.keys(value)
        found, largest = torch.empty_like(asked), asked.new_empty(*asked.shape[:3], 1)
        with torch.autocast("cpu", enabled=False):
            for part, rows, seen, tile in layout.tiles(asked, keys, scaling):
                largest[part, :, rows] = tile.largest()
                found[part, :, rows] = tile.apart(tile.shares(largest[part, :, rows]) @ values[part, seen])
        ctx.save_for_backward(query, key, value, found, largest)
        ctx.how = scaling, window
        return layout.back(found, query)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, found, largest = ctx.saved_tensors
        scaling, window = ctx.how
        layout = _Layout.of(query, key, window)
        asked, slopes = layout.queries(query), layout.queries(slope)
        keys, values = layout.keys(key), layout.keys(value)
        of_queries = torch.empty_like(asked)
        of_keys, of_values = (torch.zeros(some.mT.shape) for some in (keys, values))
        with torch.autocast("cpu", enabled=False):
            means = (slopes.float() * found).sum(-1, keepdim=True).to(found.dtype)
            for part, rows, seen, tile in layout.tiles(asked, keys, scaling):
                pulled = slopes[part, :, rows].flatten(1, 2)
                shares = tile.shares(largest[part, :, rows])
                of_values[part, :, seen] += pulled.mT @ shares
                of_scores = tile.slopes(shares, pulled, values[part, seen], means[part, :, rows])
                of_queries[part, :, rows] = tile.apart(of_scores @ tile.keys)
                of_keys[part, :, seen] += tile.asked.mT @ of_scores
        return (
            layout.back(of_queries.mul_(scaling), query),
            layout.back(of_keys.mul_(scaling).mT.to(key.dtype), key),
            layout.back(of_values.mT.to(value.dtype), value),
            None,
            None,
        )


@dataclass(frozen=True)
class _Layout:
    """How pieces and heads become batches of tiles."""

    kv_heads: int
    length: int
    """Queries."""
    before: int
    """Keys that stand before the first query's own."""
    rows: int
    """Queries of a tile."""
    window: int | None

    @classmethod
    def of(cls, query: torch.Tensor, key: torch.Tensor, window: int | None) -> _Layout:
        length, seen = query.shape[2], key.shape[2]
        rows = max(FEWEST_ROWS, min(_up_to_power(seen) // 8, MOST_ROWS))
        return cls(key.shape[1], length, seen - length, min(rows, max(16, _up_to_power(length))), window)

    def queries(self, some: torch.Tensor) -> torch.Tensor:
        """(pieces, heads, tokens, dim) -> (pieces * kv_heads, heads of each, whole tiles, dim)."""
        grouped = some.unflatten(1, (self.kv_heads, -1)).flatten(0, 1)
        return pad(grouped, (0, 0, 0, -self.length % self.rows)).contiguous()

    def keys(self, some: torch.Tensor) -> torch.Tensor:
        """(pieces, kv_heads, tokens, dim) -> (pieces * kv_heads, tokens and more, dim)."""
        more = self._filled(self.before + self.length) - some.shape[2]
        return pad(some.flatten(0, 1), (0, 0, 0, more)).contiguous()

    def back(self, found: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What was filled up is left off."""
        return found.narrow(-2, 0, like.shape[-2]).reshape(like.shape)

    def tiles(
        self, asked: torch.Tensor, keys: torch.Tensor, scaling: float
    ) -> Iterator[tuple[slice, slice, slice, _Tile]]:
        """Heads, queries, keys that some of these see, and the tile of both; it is gone when the next one comes."""
        batch, heads, tokens, _ = asked.shape
        widest = keys.shape[1]
        size = heads * self.rows * widest
        step = min(batch, max(1, ELEMENTS // size))
        stairs, room = _stairs(self.rows, widest, self.window, asked.dtype), asked.new_empty(2, step * size)
        for start in range(0, tokens, self.rows):
            own = self.before + start
            first = 0 if self.window is None else max(0, own + 1 - self.window) // self.rows * self.rows
            last = min(first + self._filled(own + self.rows - first), widest)
            rows, seen = slice(start, start + self.rows), slice(first, last)
            mask = stairs[:, widest - own :][:, seen]
            for part in (slice(at, at + step) for at in range(0, batch, step)):
                yield part, rows, seen, _Tile(asked[part, :, rows], keys[part, seen], mask, scaling, room)

    def _filled(self, tokens: int) -> int:
        """Whole tiles, of which there are few numbers: 1 to 4, 6, 8, 12, 16, 24 and so on."""
        tiles = -(-tokens // self.rows)
        coarse = max(1, _up_to_power(tiles) // 4)
        return -(-tiles // coarse) * coarse * self.rows


@lru_cache(maxsize=2)  # the layers of a step ask for the same
def _stairs(rows: int, widest: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """What the queries of a tile see of keys from `widest` before the first of them on; every mask is a part of it."""
    after = torch.arange(-widest, widest, dtype=torch.int32) - torch.arange(rows, dtype=torch.int32)[:, None]
    unseen = after > 0
    if window is not None:
        unseen |= after <= -window
    return torch.zeros(after.shape, dtype=dtype).masked_fill_(unseen, -torch.inf)


@dataclass
class _Tile:
    """Some queries (batch, heads, rows, dim) and the keys (batch, width, dim) that they may see."""

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    scaling: float
    room: torch.Tensor
    """(2, scores of the largest tile)"""

    def __post_init__(self) -> None:
        self.asked = self.queries.flatten(1, 2)
        shape = *self.queries.shape[:3], self.keys.shape[1]
        self._scores, self._shares = (one[: math.prod(shape)].view(shape) for one in self.room)

    def apart(self, rows: torch.Tensor) -> torch.Tensor:
        """(batch, heads * rows, any) -> (batch, heads, rows, any)."""
        return rows.unflatten(1, self.queries.shape[1:3])

    def largest(self) -> torch.Tensor:
        """Of each query's scores, rounded: (batch, heads, rows, 1)."""
        self._scores.copy_(self.mask)
        return self.apart(self._compared().amax(-1, keepdim=True))

    def shares(self, largest: torch.Tensor) -> torch.Tensor:
        """Where each query looks, (batch, heads * rows, width): rows that sum to 1."""
        torch.sub(self.mask, largest, out=self._scores)
        return torch.softmax(self._compared(), -1, out=self._shares.flatten(1, 2))

    def slopes(
        self, shares: torch.Tensor, pulled: torch.Tensor, values: torch.Tensor, means: torch.Tensor
    ) -> torch.Tensor:
        """What pulls at the scores, where `pulled` pulls at what was found."""
        torch.neg(means.expand_as(self._scores), out=self._scores)
        of_shares = self._scores.flatten(1, 2).baddbmm_(pulled, values.mT)
        found: torch.Tensor = torch.ops.aten._softmax_backward_data(
            of_shares, shares, -1, shares.dtype, grad_input=of_shares
        )
        return found

    def _compared(self) -> torch.Tensor:
        return self._scores.flatten(1, 2).baddbmm_(self.asked, self.keys.mT, alpha=self.scaling)


def _up_to_power(number: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << (number - 1).bit_length()
