"""Check a GGUF file before any library reads it: counts, sizes, keys, shapes, offsets; reads no weight.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything that the file claims is compared with the
bytes that are there, so a claim costs nothing, and a refusal takes milliseconds.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard.errors import ScalerError

FETCH_AGAIN = "fetch the file again; it is damaged or was not written by a GGUF writer"
LARGEST_HEADER = 64 * 2**20
MOST_TENSORS = 200_000
MOST_KEYS = 10_000
MOST_ITEMS = 4_000_000
"""Entries of all arrays together; vocabularies of 260,000 tokens with as many merges have about a million."""
LONGEST_KEY = 2**16 - 1
LONGEST_NAME = 64
MOST_DIMENSIONS = 4
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, BOOL: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each scalar type of a metadata value."""


class _Bad(Exception):
    """What is wrong with the file."""


@dataclass(frozen=True)
class Facts:
    """What the header of a sound file says."""

    version: int
    keys: int
    tensors: int


def check_gguf(file: Path) -> Facts:
    """Refuse a GGUF file whose header lies; the weights themselves are not read."""
    size = file.stat().st_size
    if size < 24:
        raise ScalerError(f"{file.name}: {size} bytes are no GGUF file", FETCH_AGAIN)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Header(data, size).facts()
        except _Bad as bad:
            raise ScalerError(f"{file.name}: {bad}", FETCH_AGAIN) from None


class _Header:
    """A reader that never goes past the end, nor past what a header may weigh."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 0
        self._end = min(size, LARGEST_HEADER)
        self._items = 0
        self._alignment = 32

    def facts(self) -> Facts:
        if self._bytes(4) != b"GGUF":
            raise _Bad("does not begin with GGUF")
        version, tensors, keys = self._u32(), self._u64(), self._u64()
        if version not in (2, 3):
            raise _Bad(f"GGUF version {version}; read are 2 and 3, little-endian")
        self._claim(tensors, MOST_TENSORS, 24, "tensors")
        self._claim(keys, MOST_KEYS, 13, "keys")
        self._unique(keys, self._key)
        self._offsets(self._unique(tensors, self._tensor))
        return Facts(version, keys, tensors)

    # -- metadata ------------------------------------------------------------------------------------------------------

    def _unique(self, count: int, read: Callable[[], tuple[str, tuple[int, int]]]) -> list[tuple[str, tuple[int, int]]]:
        found = [read() for _ in range(count)]
        name, times = Counter(name for name, _ in found).most_common(1)[0] if found else ("", 0)
        if times > 1:
            raise _Bad(f"{name!r:.80} appears twice")
        return found

    def _key(self) -> tuple[str, tuple[int, int]]:
        name = self._string(LONGEST_KEY, "key")
        kind, start = self._u32(), self._at
        self._value(kind, name)
        if name == "general.alignment":
            self._alignment = self._aligned(kind, start)
        return name, (kind, start)

    def _aligned(self, kind: int, start: int) -> int:
        value = int.from_bytes(self._data[start : start + 4], "little") if kind == 4 else 0
        if not 8 <= value <= 2**16 or value & (value - 1):
            raise _Bad(f"general.alignment is {value}; a power of two from 8 to 65536 is read")
        return value

    def _value(self, kind: int, name: str) -> None:
        if kind in SCALARS:
            self._bytes(SCALARS[kind])
        elif kind == STRING:
            self._string(LARGEST_HEADER, name)
        elif kind == ARRAY:
            self._array(name)
        else:
            raise _Bad(f"{name!r:.80}: a value of unknown type {kind}")

    def _array(self, name: str) -> None:
        kind, count = self._u32(), self._u64()
        if kind == ARRAY:
            raise _Bad(f"{name!r:.80}: arrays inside arrays are not read")
        if kind != STRING and kind not in SCALARS:
            raise _Bad(f"{name!r:.80}: an array of unknown type {kind}")
        self._items += count
        self._claim(self._items, MOST_ITEMS, 0, "array entries")
        self._claim(count, MOST_ITEMS, SCALARS.get(kind, 8), f"entries of {name!r:.80}")
        if kind in SCALARS:
            self._bytes(count * SCALARS[kind])
        else:
            self._skip_strings(count, name)

    def _skip_strings(self, count: int, name: str) -> None:
        """A tight loop: vocabularies have a million of these."""
        data, at, end, length_of = self._data, self._at, self._end, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise _Bad(f"{name!r:.80}: ends inside its strings")
            at += 8 + length_of(data, at)[0]
        if at > end:
            raise _Bad(f"{name!r:.80}: a string goes past the end of the file")
        self._at = at

    # -- tensors -------------------------------------------------------------------------------------------------------

    def _tensor(self) -> tuple[str, tuple[int, int]]:
        name = self._string(LONGEST_NAME, "tensor's name")
        dimensions = self._u32()
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _Bad(f"{name!r:.80}: {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are read")
        shape = [self._u64() for _ in range(dimensions)]
        kind, offset = self._u32(), self._u64()
        return name, (offset, self._tensor_bytes(name, shape, kind))

    def _tensor_bytes(self, name: str, shape: list[int], kind: int) -> int:
        from gguf.constants import GGML_QUANT_SIZES

        block = GGML_QUANT_SIZES.get(kind)  # an IntEnum: looked up by its number
        if block is None:
            raise _Bad(f"{name!r:.80}: weights of unknown type {kind}")
        elements = math.prod(shape)
        if not all(shape) or elements >= 2**63:
            raise _Bad(f"{name!r:.80}: a shape of {elements:.3g} elements")
        if shape[0] % block[0]:
            raise _Bad(f"{name!r:.80}: rows of {shape[0]} are no multiple of the block of {block[0]}")
        return int(elements // block[0] * block[1])

    def _offsets(self, tensors: list[tuple[str, tuple[int, int]]]) -> None:
        place, base = 0, self._padded(self._at)
        for name, (offset, length) in tensors:
            if offset != place:
                raise _Bad(f"{name!r:.80}: its bytes begin at {offset}, expected {place}: they overlap or leave a gap")
            place = self._padded(offset + length)
            if base + offset + length > self._size:
                raise _Bad(f"{name!r:.80}: its bytes go past the end of the file ({self._size} bytes)")
        if self._size > base + place:
            raise _Bad(f"{self._size - base - place} bytes follow the last tensor")

    def _padded(self, place: int) -> int:
        return -(-place // self._alignment) * self._alignment

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _claim(self, count: int, most: int, each: int, what: str) -> None:
        if count > most:
            raise _Bad(f"{count} {what}; at most {most} are read")
        if count * each > self._end - self._at:
            raise _Bad(f"{count} {what} do not fit in its {self._size} bytes")

    def _bytes(self, count: int) -> bytes:
        if count > self._end - self._at:
            raise _Bad(f"ends inside its header ({self._size} bytes)")
        self._at += count
        return self._data[self._at - count : self._at]

    def _u32(self) -> int:
        return int.from_bytes(self._bytes(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._bytes(8), "little")

    def _string(self, longest: int, what: str) -> str:
        length = self._u64()
        if length > longest:
            raise _Bad(f"a {what!s:.80} of {length} bytes; at most {longest} are read")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _Bad(f"a {what!s:.80} that is not UTF-8 text") from None
