"""Merge matrices by their singular vectors: TSV-M (arXiv:2412.00081) and Iso-C (arXiv:2502.04959).

These need a whole matrix of every model in memory at once, with its singular vectors in fp64: about
`memory_bytes`. Embeddings, heads and vectors, which are no maps between spaces, get the mean task vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.merge.settings import Scale
from scaler_wizard.merge.vectors import Weigh, vectors
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

TABLES = ("embed_tokens", "lm_head")
Matrix = npt.NDArray[np.float64]


class _Spectral(Method):
    fewest: ClassVar[int] = 2
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"
    whole: ClassVar[bool] = True
    joins: ClassVar[Literal["tsv", "iso"]]

    models: Annotated[tuple[MergedModel, ...], Field(min_length=2)]
    """The models."""
    scale: Scale = 1.0
    """Times the merged task vector."""

    def merged(self, tensors: Tensors) -> Expression:
        """Matrices by their spectrum, the rest by the mean."""
        scale, shape = tensors.value(self.scale), tensors.models[0].shape
        if len(shape) < 2 or any(table in tensors.name for table in TABLES):
            mean = Weigh((1.0,) * len(tensors.models), normalize=True, scale=scale)
            return Blend(tensors.bases, mean, tensors.dtype, tensors.name)
        return Blend(tensors.bases, Spectrum(self.joins, scale), tensors.dtype, tensors.name)


class TsvMerge(_Spectral):
    """Keep each model's strongest singular directions and make them orthogonal to each other."""

    title: ClassVar[str] = "decorrelated singular vectors"
    paper: ClassVar[str] = "TSV-M, arXiv:2412.00081"
    joins: ClassVar[Literal["tsv", "iso"]] = "tsv"

    method: Literal["tsv"] = "tsv"
    """Which method."""


class IsoC(_Spectral):
    """The sum of the task vectors with all its singular values set to their mean."""

    title: ClassVar[str] = "flattened spectrum"
    paper: ClassVar[str] = "Iso-C, arXiv:2502.04959"
    joins: ClassVar[Literal["tsv", "iso"]] = "iso"

    method: Literal["iso_c"] = "iso_c"
    """Which method."""


@dataclass(frozen=True)
class Spectrum:
    """base + scale * (task vectors joined by their singular vectors)."""

    joins: Literal["tsv", "iso"]
    scale: float
    whole: bool = True

    def survey(self, look: Look) -> None:
        """The whole matrix is at hand in `blend`."""

    def blend(self, values: list[Array], facts: None, dice: Dice) -> Array:
        """The whole matrix."""
        base, models = vectors(values)
        wide = [vector.astype(np.float64) for vector in models]
        joined = tsv(wide) if self.joins == "tsv" else iso(wide)
        base += (self.scale * joined).astype(np.float32)
        return base


def tsv(changes: list[Matrix]) -> Matrix:
    """The strongest 1/N of each model's singular triples; the vectors of all are made orthonormal together."""
    rank = max(1, min(changes[0].shape) // len(changes))
    lefts, values, rights = [], [], []
    for change in changes:
        left, spectrum, right = np.linalg.svd(change, full_matrices=False)
        lefts.append(left[:, :rank])
        values.append(spectrum[:rank])
        rights.append(right[:rank])
    left = nearest_orthonormal(np.concatenate(lefts, axis=1))
    right = nearest_orthonormal(np.concatenate(rights, axis=0))
    joined: Matrix = (left * np.concatenate(values)) @ right
    return joined


def nearest_orthonormal(vectors: Matrix) -> Matrix:
    """The orthogonal factor of the polar decomposition (Procrustes)."""
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    nearest: Matrix = left @ right
    return nearest


def iso(changes: list[Matrix]) -> Matrix:
    """U diag(mean of the singular values) V' of the sum."""
    left, spectrum, right = np.linalg.svd(np.sum(changes, axis=0), full_matrices=False)
    flat: Matrix = float(spectrum.mean()) * (left @ right)
    return flat


def memory_bytes(shape: tuple[int, ...], models: int) -> int:
    """Peak memory of one matrix: fp32 inputs, fp64 task vectors, and the two sets of singular vectors."""
    rows, columns = shape
    small = min(rows, columns)
    return rows * columns * (4 * (models + 1) + 8 * (models + 3)) + 8 * 3 * small * (rows + columns)
