"""The exact k-th largest magnitude of a whole tensor without sorting it.

A sample of 64K numbers brackets the k-th largest by two standard errors; one pass counts what lies above the bracket
and keeps the few numbers inside, among which the k-th is found. A bracket that turns out wrong tells on which side to
look next, so that ties and uneven tensors cost a pass more, never a wrong answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np

from scaler_wizard.weights.evaluate import Array

ERRORS = 2.0  # standard errors of a sampled share: a bracket misses in 5 of 100 tensors, and a pass more is made
LOOSE_BYTES = 2**19  # numbers of a bracket that are kept one by one
Each = Callable[[Callable[[list[Array]], "list[Count]"]], Iterator["list[Count]"]]
"""Begins a pass: what a function says of each chunk of all tensors."""


@dataclass(frozen=True)
class Count:
    """What a chunk has above and inside a bracket; changes of 16-bit weights are full of equal magnitudes, so the edges
    are inside."""

    above: int
    inside: Array
    """Magnitudes from the lower edge to the upper one."""


class Tally:
    """All chunks' counts. A number inside is kept once, with how often it came: large tensors of 16-bit weights have
    megabytes of them, and few different ones."""

    def __init__(self) -> None:
        self.above = 0
        self.inside = 0
        self._loose = BytesIO()
        self._values = np.empty(0, np.float32)
        self._counts = np.empty(0, np.int64)

    def add(self, count: Count) -> None:
        """One chunk more."""
        self.above += count.above
        self.inside += count.inside.size
        self._loose.write(count.inside.data)
        if self._loose.tell() >= LOOSE_BYTES:
            self._fold()

    def ascending(self, place: int) -> float:
        """The number inside at a place, from 0 for the smallest."""
        self._fold()
        return float(self._values[np.searchsorted(np.cumsum(self._counts), place, side="right")])

    def _fold(self) -> None:
        """Count what came since the last time."""
        loose = np.frombuffer(self._loose.getvalue(), np.float32)
        self._loose = BytesIO()
        values, counts = np.unique(loose, return_counts=True)
        self._values, places = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        self._counts = np.bincount(places, weights=np.concatenate([self._counts, counts])).astype(np.int64)


@dataclass(frozen=True)
class Search:
    """The rank-th largest magnitude of one tensor, and what is known of it."""

    row: int
    """In which tensor."""
    rank: int
    """1 for the largest."""
    low: float
    high: float
    """The bracket of the next pass."""
    least: float = 0.0
    most: float = math.inf
    """It is not below the one and not above the other; where they are equal, it is found."""
    errors: float = ERRORS

    @property
    def found(self) -> bool:
        """Whether it is known."""
        return self.least == self.most

    def count(self, magnitudes: Array) -> Count:
        """Look at a chunk."""
        within = magnitudes <= np.float32(self.high)
        above = within.size - int(np.count_nonzero(within))
        within &= magnitudes >= np.float32(self.low)
        return Count(above, magnitudes.reshape(-1)[np.flatnonzero(within)])

    def after(self, tally: Tally, ordered: Array, elements: int) -> Search:
        """What is known after a pass, and where to look next."""
        if self.rank <= tally.above:
            return self._moved(ordered, elements, least=self.high)
        if self.rank > tally.above + tally.inside:
            return self._moved(ordered, elements, most=self.low)
        value = tally.ascending(tally.inside - (self.rank - tally.above))
        return replace(self, least=value, most=value)

    def _moved(self, ordered: Array, elements: int, **known: float) -> Search:
        moved = replace(self, errors=4 * self.errors, **known)  # type: ignore[arg-type]
        low, high = edges(ordered, self.rank / elements, moved.errors)
        return replace(moved, low=max(low, moved.least), high=min(high, moved.most))


def kth_largest(each: Each, sample: list[Array], wanted: list[tuple[int, int]], elements: int) -> list[float]:
    """For each (tensor, k) of `wanted` the k-th largest magnitude (k from 1) among `elements` numbers.

    `sample` are some numbers of each tensor, or all of them.
    """
    ordered = [np.sort(np.abs(values)) for values in sample]
    if ordered[0].size == elements:
        return [float(ordered[row][elements - rank]) for row, rank in wanted]
    searches = [Search(row, rank, *edges(ordered[row], rank / elements, ERRORS)) for row, rank in wanted]
    while not all(search.found for search in searches):
        searches = _pass(each, searches, ordered, elements)
    return [search.least for search in searches]


def _pass(each: Each, searches: list[Search], ordered: list[Array], elements: int) -> list[Search]:
    missing = [number for number, search in enumerate(searches) if not search.found]

    def look(vectors: list[Array]) -> list[Count]:
        magnitudes = [np.abs(vector, out=vector) for vector in vectors]
        return [searches[number].count(magnitudes[searches[number].row]) for number in missing]

    tallies = [Tally() for _ in missing]
    for counts in each(look):
        for tally, count in zip(tallies, counts, strict=True):
            tally.add(count)
    after = list(searches)
    for number, tally in zip(missing, tallies, strict=True):
        search = searches[number]
        after[number] = search.after(tally, ordered[search.row], elements)
    return after


def edges(ordered: Array, share: float, errors: float) -> tuple[float, float]:
    """Magnitudes so many standard errors around the place of a share in a sample in ascending order."""
    size = ordered.size
    error = errors * math.sqrt(share * (1 - share) / size) + 1 / size
    low, high = math.floor((1 - share - error) * size), math.ceil((1 - share + error) * size)
    return float(ordered[low]) if low >= 0 else 0.0, float(ordered[high]) if high < size - 1 else math.inf
