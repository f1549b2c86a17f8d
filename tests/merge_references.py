"""What every merge method means, written a second time: plain numpy, fp64, whole tensors at once, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def linear(models: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    total: Matrix = np.tensordot(np.array(weights) / sum(weights), np.stack(models), 1)
    return total


def slerp(a: Matrix, b: Matrix, t: float, straight: float = 0.9995) -> Matrix:
    cosine = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    if abs(cosine) > straight:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    found: Matrix = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return found


def slerp_rows(a: Matrix, b: Matrix, t: float) -> Matrix:
    return np.stack([slerp(x, y, t, 1 - 1e-12) for x, y in zip(a, b, strict=True)])


def multislerp(models: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    share = np.array(weights) / sum(weights)
    flat = np.stack([model.reshape(-1) for model in models])
    lengths = np.linalg.norm(flat, axis=1)
    units = flat / lengths[:, None]
    mean = share @ units
    mean /= np.linalg.norm(mean)
    tangent = share @ (units - np.outer(units @ mean, mean))
    angle = np.linalg.norm(tangent)
    point = mean * np.cos(angle) + tangent / angle * np.sin(angle)
    return (point * (share @ lengths)).reshape(models[0].shape)


def elect(vectors: Sequence[Matrix], weights: Sequence[float], *, normalize: bool) -> Matrix:
    """NaN where the weighted sum is zero but for the rounding of the weights: there, no sign is the right one."""
    weighted = np.stack([w * v for w, v in zip(weights, vectors, strict=True)])
    undecided = (np.abs(weighted.sum(0)) < 1e-6 * np.abs(weighted).sum(0)) & (weighted.sum(0) != 0)
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    agrees = np.sign(weighted) == sign
    total = (weighted * agrees).sum(0)
    divisor = (np.array(weights).reshape(-1, *[1] * vectors[0].ndim) * agrees).sum(0)
    found: Matrix = total / np.where(divisor == 0, 1, divisor) if normalize else total
    return np.where(undecided, np.nan, found)


def largest(vector: Matrix, density: float) -> Matrix:
    """Ties with the smallest that is kept are kept."""
    if density >= 1:
        return vector
    count = max(1, int(density * vector.size))
    threshold = np.sort(np.abs(vector), axis=None)[::-1][count - 1]
    return np.where(np.abs(vector) >= threshold, vector, 0)


def middle(vector: Matrix, density: float, gamma: float) -> Matrix:
    kept = int(density * vector.size)
    top = min(int(gamma * vector.size), vector.size - kept)
    ordered = np.sort(np.abs(vector), axis=None)[::-1]
    high = ordered[top - 1] if top else np.inf
    return np.where((np.abs(vector) >= ordered[top + kept - 1]) & (np.abs(vector) < high), vector, 0)


def model_stock(base: Matrix, models: Sequence[Matrix]) -> Matrix:
    vectors = [model - base for model in models]
    count = len(models)
    cosines = [
        np.vdot(vectors[i], vectors[j]) / (np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]))
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = np.mean(cosines)
    t = count * cosine / (1 + (count - 1) * cosine)
    found: Matrix = t * np.mean(models, axis=0) + (1 - t) * base
    return found


def sce(base: Matrix, models: Sequence[Matrix], topk: float) -> Matrix:
    vectors = np.stack([model - base for model in models])
    if topk < 1:
        variance = vectors.astype(np.float32).var(0)
        count = int(np.count_nonzero(variance) * topk)
        threshold = np.sort(variance, axis=None)[::-1][count - 1]
        vectors = vectors * (variance >= threshold)
    sign = np.where(vectors.sum(0) >= 0, 1, -1)
    squares = (vectors**2).reshape(len(models), -1).mean(1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else np.full(len(models), 1 / len(models))
    shares = weights.reshape(-1, *[1] * base.ndim) * (np.sign(vectors) == sign)
    found: Matrix = base + (vectors * shares).sum(0) / np.maximum(shares.sum(0), 1e-6)
    return found


def tsv(base: Matrix, models: Sequence[Matrix]) -> Matrix:
    rank = min(base.shape) // len(models)
    parts = [np.linalg.svd(model - base, full_matrices=False) for model in models]
    left = np.concatenate([u[:, :rank] for u, _, _ in parts], axis=1)
    right = np.concatenate([v[:rank] for _, _, v in parts])
    spectrum = np.concatenate([s[:rank] for _, s, _ in parts])
    return base + polar(left) @ np.diag(spectrum) @ polar(right)


def polar(matrix: Matrix) -> Matrix:
    """X (X'X)^-1/2 by eigenvectors, where there are more rows than columns; else of the transpose."""
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    found: Matrix = matrix @ (vectors / np.sqrt(values)) @ vectors.T
    return found


def iso(base: Matrix, models: Sequence[Matrix]) -> Matrix:
    total = np.sum([model - base for model in models], axis=0)
    u, s, v = np.linalg.svd(total, full_matrices=False)
    found: Matrix = base + s.mean() * (u @ v)
    return found


def bf16(values: Any) -> Matrix:
    """fp64 rounded to bfloat16, to nearest, ties to even: through fp64 bits, so that nothing is rounded twice."""
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    cut = np.uint64(45)  # 52 - 7 bits of the fraction
    half = (np.uint64(1) << (cut - np.uint64(1))) - np.uint64(1)
    rounded = np.where(np.isnan(values), bits, (bits + half + ((bits >> cut) & np.uint64(1))) >> cut << cut)
    return rounded.view(np.float64)


def karcher(models: Sequence[Matrix], steps: int = 10, tol: float = 1e-5) -> Matrix:
    """Karcher mean of the directions, on the vectors themselves, times the mean length."""
    lengths = [float(np.linalg.norm(model)) for model in models]
    units = [model / length for model, length in zip(models, lengths, strict=True)]
    mean = np.mean(units, axis=0)
    mean = mean / np.linalg.norm(mean)
    for _ in range(steps):
        angles = [float(np.arccos(np.clip((mean * unit).sum(), -1, 1))) for unit in units]
        logs = [
            angle / np.sin(angle) * (unit - np.cos(angle) * mean)
            for unit, angle in zip(units, angles, strict=True)
            if angle > tol
        ]
        tangent = np.sum(logs, axis=0) / len(units)
        step = float(np.linalg.norm(tangent))
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean = mean / np.linalg.norm(mean)
    found: Matrix = np.mean(lengths) * mean
    return found


def nearswap(base: Matrix, model: Matrix, t: float) -> Matrix:
    """The way of mergekit's documentation: a share of t / |difference|, at most all of it."""
    share = np.clip(t / np.maximum(np.abs(model - base), 1e-6), 0, 1)
    found: Matrix = share * model + (1 - share) * base
    return found


def ram(base: Matrix, models: Sequence[Matrix], epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Matrix:
    """Number by number: what one model alone changed is added whole, what several changed is averaged."""
    vectors = np.stack([model - base for model in models])
    changed = np.abs(vectors) > epsilon
    count = changed.sum(0)
    vectors = np.where(changed, vectors, 0)
    factors = []
    for one in changed:
        shared, alone = (one & (count > 1)).sum(), (one & (count == 1)).sum()
        factors.append(1 + r * min(shared / max(alone, 1e-5), alpha))
    enlarged = np.array(factors).reshape(-1, *[1] * base.ndim) * np.where(count == 1, vectors, 0)
    found: Matrix = base + enlarged.sum(0) + np.where(count > 1, vectors, 0).sum(0) / np.maximum(count, 1)
    return found


def arcee_fusion(base: Matrix, model: Matrix) -> Matrix:
    """NaN where the importance is the threshold's but for rounding: there, both answers are right."""
    shares = [np.exp(rows - rows.max(-1, keepdims=True)) for rows in (model, base)]
    p, q = (rows / rows.sum(-1, keepdims=True) + 1e-8 for rows in shares)
    importance = np.abs(model - base) * np.sum(p * np.log(p / q), axis=-1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    first, median, third = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (third - first)
    near = np.abs(importance - threshold) < 1e-6 * threshold
    return np.where(near & (model != base), np.nan, np.where(importance >= threshold, model, base))
