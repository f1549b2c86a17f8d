"""Go from one model to another along a great circle, tensor by tensor (Shoemake 1985)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from scaler_wizard.merge.method import MergedModel, Method, Tensors, WeightedModel, positive_sum
from scaler_wizard.merge.settings import Share
from scaler_wizard.merge.spheres import Gram, cosine, gram, products, slerp_weights
from scaler_wizard.weights import Blend, Dice, Expression, Look
from scaler_wizard.weights.evaluate import Array

STRAIGHT = 0.9995  # cosine from which the way is straight
COLINEAR = 1 - 1e-12  # NuSLERP goes along the circle as long as there is an angle
TINY = 1e-8


class Slerp(Method):
    """From the first model (t = 0) to the second (t = 1)."""

    title: ClassVar[str] = "great circle between two models"
    paper: ClassVar[str] = "SLERP, Shoemake 1985"
    fewest: ClassVar[int] = 2
    most: ClassVar[int] = 2

    method: Literal["slerp"] = "slerp"
    """Which method."""
    models: Annotated[tuple[MergedModel, ...], Field(min_length=2)]
    """Two models."""
    t: Share
    """How far to go, from 0 (first model) to 1 (second)."""

    def merged(self, tensors: Tensors) -> Expression:
        """Factors follow from the angle between the whole tensors."""
        return Blend(tensors.models, Arc(tensors.value(self.t), STRAIGHT), tensors.dtype, tensors.name)


class NuSlerp(Method):
    """SLERP by two weights, of whole tensors or row by row; with a base, of the task vectors."""

    title: ClassVar[str] = "great circle by weights"
    paper: ClassVar[str] = "NuSLERP (mergekit)"
    fewest: ClassVar[int] = 2
    most: ClassVar[int] = 2
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "possible"

    method: Literal["nuslerp"] = "nuslerp"
    """Which method."""
    models: Annotated[tuple[WeightedModel, ...], Field(min_length=2)]
    """Two models, each with its `weight`; only their ratio counts."""
    row_wise: bool = False
    """An angle for each row of a matrix (each output) instead of one for the whole tensor."""

    def merged(self, tensors: Tensors) -> Expression:
        """t is the second weight's share."""
        weights = tensors.weights
        kernel = Arc(
            weights[1] / positive_sum(weights, tensors.name), COLINEAR, tensors.base is not None, self.row_wise
        )
        parts = tensors.models if tensors.base is None else tensors.bases
        return Blend(parts, kernel, tensors.dtype, tensors.name)


class MultiSlerp(Method):
    """A weighted mean of several models on the sphere; with a base, of the task vectors."""

    title: ClassVar[str] = "mean on the sphere"
    paper: ClassVar[str] = "Multi-SLERP (mergekit)"
    fewest: ClassVar[int] = 2
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "possible"

    method: Literal["multislerp"] = "multislerp"
    """Which method."""
    models: Annotated[tuple[WeightedModel, ...], Field(min_length=2)]
    """The models, each with its `weight`."""
    normalize: bool = True
    """Divide the weights by their sum."""

    def merged(self, tensors: Tensors) -> Expression:
        """Factors follow from the angles between the whole tensors."""
        weights = tensors.weights
        total = positive_sum(weights, tensors.name)
        scaled = tuple(weight / total if self.normalize else weight for weight in weights)
        parts = tensors.models if tensors.base is None else tensors.bases
        return Blend(parts, Barycentre(scaled, tensors.base is not None), tensors.dtype, tensors.name)


@dataclass(frozen=True)
class Arc:
    """Two tensors, or two task vectors behind their base, on the way along a great circle."""

    t: float
    straight_from: float
    from_base: bool = False
    row_wise: bool = False
    whole: bool = False

    def survey(self, look: Look) -> tuple[float, float] | None:
        """Two factors; rows find their own later."""
        if self.row_wise and len(look.shape) > 1:
            return None
        angle = cosine(gram(look.each(self._products)), 0, 1)
        return slerp_weights(self.t, angle, straight_from=self.straight_from)

    def blend(self, values: list[Array], facts: tuple[float, float] | None, dice: Dice) -> Array:
        """One chunk."""
        base, (first, second) = moved(values, self.from_base)
        if facts is None:
            a, b = self._by_row(first, second)
            first *= a
            second *= b
        else:
            first *= np.float32(facts[0])
            second *= np.float32(facts[1])
        first += second
        if base is not None:
            first += base
        return first

    def _products(self, values: list[Array]) -> Gram:
        return products(moved(values, self.from_base)[1])

    def _by_row(self, first: Array, second: Array) -> tuple[Array, Array]:
        """(rows, 1) factors of each."""
        pairs = ((first, second), (first, first), (second, second))
        dots, ones, twos = (np.einsum("ij,ij->i", a, b, dtype=np.float64) for a, b in pairs)
        lengths = np.sqrt(ones * twos)
        cosines = np.clip(np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0), -1, 1)
        found = [slerp_weights(self.t, float(angle), straight_from=self.straight_from) for angle in cosines]
        factors = np.array(found, np.float32)
        return factors[:, :1], factors[:, 1:]


@dataclass(frozen=True)
class Barycentre:
    """The weighted mean of several directions by one step in the tangent space, at the mean length.

    All sums are combinations of the tensors, so their inner products (one pass) give every factor.
    """

    weights: tuple[float, ...]
    from_base: bool = False
    whole: bool = False

    def survey(self, look: Look) -> tuple[float, ...]:
        """One factor for each tensor."""
        return self.factors(gram(look.each(self._products)))

    def _products(self, values: list[Array]) -> Gram:
        return products(moved(values, self.from_base)[1])

    def factors(self, inner: Gram) -> tuple[float, ...]:
        """u_i = x_i / |x_i|; mean m = sum w_i u_i / |..|; tangent step v = sum w_i (u_i - <u_i, m> m); exp_m(v)."""
        weights = np.array(self.weights)
        lengths = np.sqrt(np.diag(inner))
        units = inner / np.outer(lengths + TINY, lengths + TINY)  # <u_i, u_j>
        length = float(np.sqrt(max(float(weights @ units @ weights), 0.0)))
        if length < TINY:
            return self.weights  # the directions cancel: no mean direction, so a straight mean
        mean = weights / length  # m in terms of the u_i
        dots = units @ mean
        tangent = weights - float(weights @ dots) * mean
        angle = float(np.sqrt(max(float(tangent @ units @ tangent), 0.0))) + TINY
        point = mean * np.cos(angle) + tangent * (np.sin(angle) / angle)
        found = point * float(weights @ lengths) / (lengths + TINY)
        return tuple(float(factor) for factor in found)

    def blend(self, values: list[Array], facts: tuple[float, ...], dice: Dice) -> Array:
        """One chunk."""
        base, tensors = moved(values, self.from_base)
        total = tensors[0]
        total *= np.float32(facts[0])
        for value, factor in zip(tensors[1:], facts[1:], strict=True):
            value *= np.float32(factor)
            total += value
        if base is not None:
            total += base
        return total


def moved(values: list[Array], from_base: bool) -> tuple[Array | None, list[Array]]:
    """The base and the task vectors; no base and the tensors themselves where there is none."""
    if not from_base:
        return None, values
    base, *tensors = values
    for tensor in tensors:
        tensor -= base
    return base, tensors
