"""Fingerprints of texts by hashes of all their substrings: near duplicates, and overlap with texts kept for measuring.

The hash of a substring is a difference of prefix sums (Rabin and Karp) modulo 2**64, so numpy hashes every substring of
a text in a few passes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

SHINGLE = 24
"""Characters of a substring that near duplicates are compared by."""
OVERLAP = 50
"""Characters of a common substring that make a text contaminated (as in the GPT-4 report, arXiv:2303.08774)."""
BANDS, ROWS = 12, 8
"""Texts of a Jaccard similarity of 0.8 share one of 12 bands of 8 with a probability of 0.89, of 0.9 with 0.999."""
SIMILAR = 0.8
LONGEST = 200_000
"""Characters of a text that are compared; more say nothing new."""
_PRIME = 1_099_511_628_211
_MIX = np.uint64(0x9E3779B97F4A7C15)
_EMPTY = np.uint64(2**64 - 1)


def normal(text: str) -> bytes:
    """Lower case, one space between words: what does not count for sameness is gone."""
    return " ".join(text[:LONGEST].lower().split()).encode()


def substring_hashes(text: bytes, length: int) -> Hashes:
    """A well-mixed hash of every substring of `length` bytes: (len(text) - length + 1,)."""
    if len(text) < length:
        return np.empty(0, np.uint64)
    powers, inverses = _powers(1 << (len(text) - 1).bit_length())
    sums = np.zeros(len(text) + 1, np.uint64)
    np.cumsum(np.frombuffer(text, np.uint8) * powers[: len(text)], out=sums[1:])
    return _mixed((sums[length:] - sums[:-length]) * inverses[: len(text) - length + 1])


@lru_cache(maxsize=24)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of the prime and of its inverse modulo 2**64."""
    found = []
    for base in (_PRIME, pow(_PRIME, -1, 2**64)):
        steps = np.full(count, base, np.uint64)
        steps[0] = 1
        found.append(np.multiply.accumulate(steps))
    return found[0], found[1]


def _mixed(values: Any) -> Hashes:
    values = (values ^ (values >> np.uint64(31))) * _MIX
    mixed: Hashes = values ^ (values >> np.uint64(29))
    return mixed


def sketch(text: bytes) -> Hashes:
    """One-permutation MinHash (arXiv:1208.1259): the smallest hash in each of BANDS x ROWS parts of the hash space.

    Empty parts take the value of the next full one (arXiv:1406.4784), so short texts compare well too.
    """
    bins = BANDS * ROWS
    hashes = substring_hashes(text, SHINGLE)
    if not len(hashes):
        hashes = substring_hashes(text.ljust(SHINGLE, b"\0"), SHINGLE)
    least = np.full(bins, _EMPTY, np.uint64)
    np.minimum.at(least, (hashes % np.uint64(bins)).astype(np.intp), hashes)
    full = np.flatnonzero(least != _EMPTY)
    following = full[np.searchsorted(full, np.arange(bins)) % len(full)]
    return least[following] + ((following - np.arange(bins)) % bins).astype(np.uint64) * _MIX


def bands(signature: Hashes) -> Hashes:
    """One hash for each band: texts that share one are compared."""
    folded = np.bitwise_xor.reduce(_mixed(signature.reshape(BANDS, ROWS) + np.arange(ROWS, dtype=np.uint64)), axis=1)
    return _mixed(folded + np.arange(BANDS, dtype=np.uint64))


class NearDuplicates:
    """Remembers texts by about 1.5 kB each, however long they are."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._signatures: list[npt.NDArray[np.uint32]] = []
        self._bands: dict[int, int] = {}

    def seen(self, name: str, text: bytes) -> str | None:
        """Name of an earlier text that is nearly the same; otherwise this one is remembered, and None."""
        signature = sketch(text)
        short, places = signature.astype(np.uint32), [int(band) for band in bands(signature)]
        for number in {self._bands[place] for place in places if place in self._bands}:
            if float(np.mean(self._signatures[number] == short)) >= SIMILAR:
                return self._names[number]
        self._bands.update((place, len(self._names)) for place in places if place not in self._bands)
        self._names.append(name)
        self._signatures.append(short)
        return None


class Reserved:
    """Texts that are kept for measuring: nothing to learn from may share OVERLAP characters with them."""

    def __init__(self, texts: list[str]) -> None:
        found = [substring_hashes(normal(text), OVERLAP) for text in texts]
        self._hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))

    def overlaps(self, text: bytes) -> bool:
        """Whether a normalised text shares a stretch with them."""
        if not len(self._hashes):
            return False
        hashes = substring_hashes(text, OVERLAP)
        places = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        return bool((self._hashes[places] == hashes).any())
