"""Evaluate expressions chunk by chunk in fp32, or as stored integers where numbers only move.

fp32 and bf16 meet as integers: bf16 is the upper half of fp32; rounding is to nearest, ties to even.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from scaler_wizard.architecture import ITEM_BYTES, Tensor
from scaler_wizard.weights.expressions import (
    Blend,
    Concatenate,
    Expression,
    Fill,
    Input,
    LowRank,
    Mean,
    Random,
    Run,
    Scaled,
    Shape,
    Share,
    Spread,
    Sum,
    Take,
)

Array = npt.NDArray[Any]
CHUNK = 48 * 1024  # elements: several arrays of a quarter megabyte stay in the second-level cache
SAMPLE, PIECES, LOOKS = 2**16, 64, 32
BLOCK = 64 * 1024  # elements of one random block
KEPT_BLOCKS = 6  # 128 KB each
RAW: dict[str, np.dtype[Any]] = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
Value = TypeVar("Value")


class Source:
    """Open input files, and numbers about whole tensors that were found out once; for one thread."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._files: dict[Path, int] = {}
        self._facts: dict[Any, Any] = {}
        self._latest: tuple[str, Array] | None = None
        self._recent: tuple[tuple[Random, int, int], Array] | None = None
        self._blocks: dict[tuple[str, int], Array] = {}

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def descriptor(self, file: Path) -> int:
        """The open file."""
        if file not in self._files:
            self._files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[file]

    def raw(self, tensor: Tensor, start: int, stop: int) -> Array:
        """Elements [start, stop) of a tensor as stored integers."""
        values = np.empty(stop - start, RAW[tensor.dtype])
        offset = tensor.start + start * ITEM_BYTES[tensor.dtype]
        read_exactly(self.descriptor(tensor.file), offset, values.data.cast("B"))
        return values

    def once(self, key: Any, find: Callable[[], Value]) -> Value:
        """A fact about a whole tensor, found at the first question."""
        if key not in self._facts:
            self._facts[key] = find()
        found: Value = self._facts[key]
        return found

    def latest(self, key: str, find: Callable[[], Array]) -> Array:
        """A whole matrix that is asked for row by row: only the last one is kept."""
        if self._latest is None or self._latest[0] != key:
            self._latest = None  # free the one before first
            self._latest = (key, find())
        return self._latest[1]

    def recent(self, key: tuple[Random, int, int], find: Callable[[], Array]) -> Array:
        """Numbers that may be asked for twice in a row; nobody may write into them."""
        if self._recent is None or self._recent[0] != key:
            found = find()
            found.flags.writeable = False
            self._recent = (key, found)
        return self._recent[1]

    def block(self, key: str, number: int) -> Array:
        """One block of 16-bit random numbers; the last few are kept, since chunks seldom end where blocks do."""
        kept = self._blocks
        if (key, number) not in kept:
            if len(kept) >= KEPT_BLOCKS:
                del kept[next(iter(kept))]
            raw = generator(self.seed, key, number).bit_generator.random_raw(BLOCK // 4)
            kept[key, number] = raw.astype("<u8", copy=False).view("<u2")
        return kept[key, number]


def read_exactly(descriptor: int, offset: int, into: memoryview) -> None:
    """Fill `into` from `offset`; a file that ends earlier was changed under us."""
    done = 0
    while done < len(into):
        got = os.preadv(descriptor, [into[done:]], offset + done)
        if not got:
            raise OSError("an input file became shorter while it was read")
        done += got


def generator(seed: int, key: str, number: int) -> np.random.Generator:
    """Random numbers of one block of one tensor."""
    digest = blake3(f"{seed}\0{number}\0{key}".encode()).digest(32)
    return np.random.Generator(np.random.SFC64(np.frombuffer(digest, np.uint32)))


# -- stored types ---------------------------------------------------------------------------------------------------


def to_float(raw: Array, dtype: str) -> Array:
    """Stored integers as fp32."""
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    wide = raw.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def from_float(values: Array, dtype: str) -> Array:
    """fp32 as stored integers, rounded to nearest, ties to even; NaN stays NaN."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    odd += bits
    odd >>= 16
    rounded = odd.astype(np.uint16)
    if values.size and np.isnan(values.max()):  # a maximum with a NaN is NaN
        rounded[np.isnan(values)] = 0x7FC0
    return rounded


# -- evaluation -----------------------------------------------------------------------------------------------------


def width(expression: Expression) -> int:
    """Elements of one row; 1 for a vector."""
    return expression.shape[1] if len(expression.shape) > 1 else 1


def chunks(expression: Expression, source: Source) -> Iterator[Array]:
    """The expression in its stored type, as flat chunks of whole rows."""
    step = max(1, CHUNK // max(1, width(expression)))
    for start in range(0, expression.shape[0], step):
        part = stored(expression, start, min(start + step, expression.shape[0]), source, dtype=expression.dtype)
        yield np.ascontiguousarray(part.reshape(-1))


def values(expression: Expression, *, seed: int) -> Iterator[Array]:
    """The expression's numbers in fp32, not rounded to its type, as flat chunks of whole rows."""
    source = Source(seed)
    step = max(1, CHUNK // max(1, width(expression)))
    try:
        for start in range(0, expression.shape[0], step):
            part = evaluate(expression, start, min(start + step, expression.shape[0]), source)
            yield np.ascontiguousarray(part.reshape(-1))
    finally:
        source.close()


def stored_pieces(expression: Expression, *, seed: int) -> Iterator[bytes]:
    """The expression in its stored type, as bytes."""
    source = Source(seed)
    try:
        for piece in chunks(expression, source):
            yield piece.tobytes()
    finally:
        source.close()


def stored(expression: Expression, start: int, stop: int, source: Source, *, dtype: str) -> Array:
    """Rows [start, stop) in a stored type: numbers that only move stay as they are, others are rounded from fp32."""
    match expression:
        case Input(tensor) if tensor.dtype == dtype:
            return _raw(expression, start, stop, source)
        case Fill(_, _, 0.0):
            return np.zeros((stop - start, width(expression)), RAW[dtype])
        case Concatenate() | Take():
            return _moved(expression, start, stop, partial(stored, source=source, dtype=dtype))
        case _:
            return from_float(evaluate(expression, start, stop, source), dtype)


def evaluate(expression: Expression, start: int, stop: int, source: Source) -> Array:
    """Rows [start, stop) as (rows, columns) in fp32."""
    if isinstance(expression, Input):  # the commonest by far
        return to_float(_raw(expression, start, stop, source), expression.tensor.dtype)
    again = partial(evaluate, source=source)
    match expression:
        case Fill(_, _, value):
            return np.full((stop - start, width(expression)), value, np.float32)
        case Concatenate() | Take():
            return _moved(expression, start, stop, again)
        case Scaled(of, factor, shift):
            return _scaled(again(of, start, stop), factor, shift)
        case Sum(parts):
            total: Array = sum((again(part, start, stop) for part in parts[1:]), start=again(parts[0], start, stop))
            return total
        case Share():
            return again(expression.of, start, stop) * _shares(expression, start, stop, source)
        case Mean(of, _):
            mean = source.once(("mean", of), lambda: _mean_row(of, source))
            return np.broadcast_to(mean, (stop - start, mean.size))
        case Random():
            return _random(expression, start, stop, source)
        case LowRank(left, right, factor):
            return _scaled(again(left, start, stop) @ again(right, 0, right.shape[0]), factor, 0.0)
        case Blend():
            return _blended(expression, start, stop, source)


def _raw(expression: Input, start: int, stop: int, source: Source) -> Array:
    columns = width(expression)
    return source.raw(expression.tensor, start * columns, stop * columns).reshape(-1, columns)


def _moved(
    expression: Concatenate | Take, start: int, stop: int, again: Callable[[Expression, int, int], Array]
) -> Array:
    """Rows and columns in other places."""
    match expression:
        case Concatenate(parts, 0):
            return np.concatenate([again(part, low, high) for part, low, high in _within(parts, start, stop)])
        case Concatenate(parts, _):
            return np.concatenate([again(part, start, stop) for part in parts], axis=1)
        case Take(of, 0, runs):
            return np.concatenate([again(of, low, high) for low, high in clip(runs, start, stop)])
        case Take(of, _, runs):
            whole = again(of, start, stop)
            return np.concatenate([whole[:, low:high] for low, high in runs], axis=1)


def clip(runs: Iterable[Run], start: int, stop: int) -> Iterator[Run]:
    """The part of the runs that fills output rows [start, stop)."""
    place = 0
    for low, high in runs:
        length = high - low
        first, last = max(start - place, 0), min(stop - place, length)
        if first < last:
            yield low + first, low + last
        place += length
        if place >= stop:
            return


def _within(parts: Iterable[Expression], start: int, stop: int) -> Iterator[tuple[Expression, int, int]]:
    place = 0
    for part in parts:
        first, last = max(start - place, 0), min(stop - place, part.shape[0])
        if first < last:
            yield part, first, last
        place += part.shape[0]


def _scaled(values: Array, factor: float, shift: float) -> Array:
    result: Array = values * np.float32(factor)
    if shift:
        result += np.float32(shift)
    return result


def _shares(node: Share, start: int, stop: int, source: Source) -> Array:
    length = node.shape[node.axis]
    shares = source.once(
        (node.key, length, node.low, node.high),
        lambda: generator(source.seed, node.key, 0).uniform(node.low, node.high, length).astype(np.float32),
    )
    shares = 1 - shares if node.rest else shares
    return shares[start:stop, None] if node.axis == 0 else shares[None, :]


def _random(node: Random, start: int, stop: int, source: Source) -> Array:
    """Random rows; the last ones are kept, since noise is often added here and taken away there."""
    return source.recent((node, start, stop), lambda: _drawn(node, start, stop, source))


def _drawn(node: Random, start: int, stop: int, source: Source) -> Array:
    columns = width(node)
    std = node.std if isinstance(node.std, float) else spread(node.std, source)
    first, last = start * columns, stop * columns
    values = _dice(node.key, first, last, source).astype(np.float32)
    values -= np.float32(32767.5)
    values *= np.float32(std * math.sqrt(12) / 65536)
    return values.reshape(-1, columns)


def _blended(node: Blend, start: int, stop: int, source: Source) -> Array:
    if node.kernel.whole and (start, stop) != (0, node.shape[0]):
        return source.latest(node.key, lambda: _blended(node, 0, node.shape[0], source))[start:stop]
    facts = survey(node, source)
    values = [_own(evaluate(part, start, stop, source)) for part in node.parts]
    columns = width(node)

    def dice(part: int) -> Array:
        return _dice(f"{node.key}#{part}", start * columns, stop * columns, source)

    return node.kernel.blend(values, facts, dice)


def survey(node: Blend, source: Source) -> Any:
    """What a blend's kernel has to know of the whole tensors."""
    return source.once(("survey", node.key), lambda: node.kernel.survey(Survey(node.parts, source)))


def _own(values: Array) -> Array:
    """An array that may be overwritten."""
    return values if values.flags.writeable else values.copy()


class Survey:
    """Passes over the parts of a blend."""

    def __init__(self, parts: tuple[Expression, ...], source: Source) -> None:
        self.shape: Shape = parts[0].shape
        self._parts, self._source = parts, source
        self._width = width(parts[0])

    def each(self, find: Callable[[list[Array]], Value]) -> Iterator[Value]:
        """What `find` says of each chunk of all parts."""
        step = max(1, CHUNK // self._width)
        for start in range(0, self.shape[0], step):
            yield find(self._rows(start, min(start + step, self.shape[0])))

    def sample(self) -> list[Array]:
        """About 64K numbers of each part: everything where there are no more."""
        rows = self.shape[0]
        length = max(1, SAMPLE // LOOKS // self._width)
        if rows * self._width <= SAMPLE or rows <= LOOKS * length:
            return [part.reshape(-1) for part in self._rows(0, rows)]
        starts = [(rows - length) * piece // (LOOKS - 1) for piece in range(LOOKS)]
        pieces = [self._rows(start, start + length) for start in starts]
        return [np.concatenate([piece[part].reshape(-1) for piece in pieces]) for part in range(len(self._parts))]

    def _rows(self, start: int, stop: int) -> list[Array]:
        return [_own(evaluate(part, start, stop, self._source)) for part in self._parts]


def _dice(key: str, first: int, last: int, source: Source) -> Array:
    """Random 16-bit numbers [first, last) of an endless row."""
    values = np.empty(last - first, np.uint16)
    for number in range(first // BLOCK, -(-last // BLOCK)):
        low, high = max(first, number * BLOCK), min(last, (number + 1) * BLOCK)
        block = source.block(key, number)
        values[low - first : high - first] = block[low - number * BLOCK : high - number * BLOCK]
    return values


def spread(node: Spread, source: Source) -> float:
    """Standard deviation of 64K evenly spread numbers of a tensor."""
    return node.times * source.once(("spread", node.of), lambda: _spread(node.of.tensor, source))


def _spread(tensor: Tensor, source: Source) -> float:
    pieces = 1 if tensor.elements <= SAMPLE else PIECES
    length = tensor.elements if pieces == 1 else SAMPLE // PIECES
    starts = [(tensor.elements - length) * piece // max(pieces - 1, 1) for piece in range(pieces)]
    values = np.concatenate([to_float(source.raw(tensor, start, start + length), tensor.dtype) for start in starts])
    return float(values.std(dtype=np.float64))


def _mean_row(of: Expression, source: Source) -> Array:
    total = np.zeros(width(of), np.float64)
    step = max(1, CHUNK // width(of))
    for start in range(0, of.shape[0], step):
        total += evaluate(of, start, min(start + step, of.shape[0]), source).sum(axis=0, dtype=np.float64)
    return (total / of.shape[0]).astype(np.float32)
