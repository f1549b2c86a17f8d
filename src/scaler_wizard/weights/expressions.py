"""Output tensors as lazy expressions of input tensors: their shapes are known before a byte is read.

Every expression is a matrix (rows, columns) or a vector. `Take` covers slices, tiling, repetition and permutation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scaler_wizard.architecture import Tensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

Found = TypeVar("Found")
Shape = tuple[int, ...]
Run = tuple[int, int]
"""A half-open range of rows or columns."""


@dataclass(frozen=True)
class Input:
    """A tensor of an input file, as it is."""

    tensor: Tensor

    @property
    def shape(self) -> Shape:
        """As in the file; stacked matrices stand on one another."""
        shape = self.tensor.shape
        return shape if len(shape) < 3 else (math.prod(shape[:-1]), shape[-1])

    @property
    def dtype(self) -> str:
        """As in the file."""
        return self.tensor.dtype


@dataclass(frozen=True)
class Fill:
    """The same number everywhere; zeros cost no time and no writing."""

    shape: Shape
    dtype: str
    value: float = 0.0


@dataclass(frozen=True)
class Spread:
    """Standard deviation of an input tensor, estimated on 64K evenly spread numbers: to about 0.3 %."""

    of: Input
    times: float = 1.0


@dataclass(frozen=True)
class Random:
    """Random numbers of mean 0; they depend on the seed, the key and the place, never on processes or shards.

    Uniform, as torch initialises linear layers, in 65,536 steps: several times cheaper to draw than normal ones.
    """

    shape: Shape
    dtype: str
    std: float | Spread
    key: str
    """Two nodes with one key hold the same numbers."""


@dataclass(frozen=True)
class Mean:
    """The mean row of a matrix, `rows` times."""

    of: Expression
    rows: int

    @property
    def shape(self) -> Shape:
        """(rows, columns of the source)."""
        return (self.rows, *self.of.shape[1:])

    @property
    def dtype(self) -> str:
        """As the source."""
        return self.of.dtype


@dataclass(frozen=True)
class Concatenate:
    """Parts one after another along an axis."""

    parts: tuple[Expression, ...]
    axis: int

    @cached_property
    def shape(self) -> Shape:
        """Sum along the axis."""
        first = self.parts[0].shape
        total = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], total, *first[self.axis + 1 :])

    @property
    def dtype(self) -> str:
        """Of the first part."""
        return self.parts[0].dtype


@dataclass(frozen=True)
class Take:
    """Runs of rows (axis 0) or columns (axis 1), in the order given; a run may appear several times."""

    of: Expression
    axis: int
    runs: tuple[Run, ...]

    @cached_property
    def shape(self) -> Shape:
        """Lengths of the runs along the axis."""
        before = self.of.shape
        total = sum(stop - start for start, stop in self.runs)
        return (*before[: self.axis], total, *before[self.axis + 1 :])

    @property
    def dtype(self) -> str:
        """As the source."""
        return self.of.dtype


@dataclass(frozen=True)
class Scaled:
    """factor * of + shift, in fp32."""

    of: Expression
    factor: float
    shift: float = 0.0

    @property
    def shape(self) -> Shape:
        """As the source."""
        return self.of.shape

    @property
    def dtype(self) -> str:
        """As the source."""
        return self.of.dtype


@dataclass(frozen=True)
class Share:
    """Each row (axis 0) or column (axis 1) times its own random share of U(low, high), or times one minus it."""

    of: Expression
    axis: int
    low: float
    high: float
    key: str
    rest: bool = False
    """Take one minus the share: with the same key, share and rest add up to the source."""

    @property
    def shape(self) -> Shape:
        """As the source."""
        return self.of.shape

    @property
    def dtype(self) -> str:
        """As the source."""
        return self.of.dtype


@dataclass(frozen=True)
class Sum:
    """Parts of one shape added up, in fp32."""

    parts: tuple[Expression, ...]

    @property
    def shape(self) -> Shape:
        """As the first part."""
        return self.parts[0].shape

    @property
    def dtype(self) -> str:
        """As the first part."""
        return self.parts[0].dtype


class Look(Protocol):
    """Passes over a Blend's parts before its numbers are made."""

    shape: Shape

    def each(self, find: Callable[[list[Array]], Found]) -> Iterator[Found]:
        """What `find` says of each chunk of all parts, as (rows, columns), in order; it may overwrite the arrays."""

    def sample(self) -> list[Array]:
        """About 64K evenly spread numbers of each part, as (numbers,), at the same places in all."""


Dice = Callable[[int], "npt.NDArray[np.uint16]"]
"""Random 16-bit numbers for the chunk at hand, for a part by its number; the same wherever a chunk begins."""


class Kernel(Protocol):
    """How a Blend's numbers come from those of its parts: a frozen value, so that a program stays data."""

    @property
    def whole(self) -> bool:
        """Whether it needs a whole matrix at once; others are given whole rows, as many as fit."""

    def survey(self, look: Look) -> Any:
        """Find out about the whole tensors what `blend` needs to know."""

    def blend(self, values: list[Array], facts: Any, dice: Dice) -> Array:
        """The numbers of one chunk in fp32, from those of the parts, which may be overwritten."""


@dataclass(frozen=True)
class Blend:
    """Parts of one shape, brought together number by number."""

    parts: tuple[Expression, ...]
    kernel: Kernel
    dtype: str
    key: str
    """One for each tensor of a program: its random numbers and what is known of it."""

    @property
    def shape(self) -> Shape:
        """As the first part."""
        return self.parts[0].shape


@dataclass(frozen=True)
class LowRank:
    """The product of two small matrices, times a factor: (rows, rank) by (rank, columns), what an adapter adds."""

    left: Expression
    right: Expression
    factor: float
    dtype: str

    @property
    def shape(self) -> Shape:
        """(rows of the left, columns of the right)."""
        return self.left.shape[0], self.right.shape[1]


Expression = Input | Fill | Random | Mean | Concatenate | Take | Scaled | Share | Sum | Blend | LowRank


def children(expression: Expression) -> list[Expression]:
    """The expressions that an expression is made of."""
    match expression:
        case Concatenate(parts) | Sum(parts) | Blend(parts):
            return list(parts)
        case Take(of) | Scaled(of) | Share(of) | Mean(of):
            return [of]
        case LowRank(left, right):
            return [left, right]
        case Random(_, _, Spread(of)):
            return [of]
        case _:
            return []


def zeros(shape: Shape, dtype: str) -> Fill:
    """Zeros: unwritten extents of the output file."""
    return Fill(shape, dtype)


def negate(of: Expression) -> Scaled:
    """-of; exact in every type."""
    return Scaled(of, -1.0)


def rows(of: Expression, start: int, stop: int) -> Expression:
    """Rows [start, stop)."""
    return of if (start, stop) == (0, of.shape[0]) else Take(of, 0, ((start, stop),))


def columns(of: Expression, start: int, stop: int) -> Expression:
    """Columns [start, stop)."""
    return of if (start, stop) == (0, of.shape[1]) else Take(of, 1, ((start, stop),))


def cut(of: Expression, axis: int, start: int, stop: int) -> Expression:
    """Rows or columns [start, stop)."""
    return rows(of, start, stop) if axis == 0 else columns(of, start, stop)


def join(parts: Sequence[Expression], axis: int) -> Expression:
    """Parts one after another; empty parts vanish."""
    kept = tuple(part for part in parts if part.shape[axis])
    return kept[0] if len(kept) == 1 else Concatenate(kept, axis)


def tile(of: Expression, axis: int, times: int) -> Expression:
    """The whole source `times` times along the axis: abab."""
    return Take(of, axis, ((0, of.shape[axis]),) * times)


def repeat(of: Expression, axis: int, *, block: int, times: int) -> Expression:
    """Each block of rows or columns `times` times: aabb."""
    starts = range(0, of.shape[axis], block)
    return Take(of, axis, tuple((start, start + block) for start in starts for _ in range(times)))
