"""LoRA adapters in PEFT's folders: read exactly, put together exactly, made smaller with the error known beforehand.

An adapter adds s * B @ A to a matrix: A is (rank, columns), B is (rows, rank), s is alpha / rank, or alpha / sqrt(rank)
with rank-stabilised scaling (arXiv:2312.03732). Refused is what such a product does not hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scaler_wizard.architecture import Tensor, read_header
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.program import Parent
from scaler_wizard.weights import Input, LowRank, Sum
from scaler_wizard.weights.evaluate import Source, to_float

Matrix = npt.NDArray[np.float64]
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE_FIRST = "merge it into its model first (PEFT: merge_and_unload), and merge models"
UNCHANGED_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; PiSSA, OLoRA, LoftQ and others change it."""
NOT_HELD = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "fan_in_fan_out",
    "alora_invocation_tokens",
    "use_bdlora",
)
"""Keys of adapter_config.json that must be empty: they mean more than a product."""


@dataclass(frozen=True)
class Product:
    """What an adapter adds to one matrix: scale * b @ a, by its tensors."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that it is added to."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class Adapter:
    """One adapter's folder."""

    name: str
    config: Mapping[str, Any]
    products: Mapping[str, Product]
    """By the module that each is added to: `model.layers.0.self_attn.q_proj`."""


def read_adapter(folder: Path) -> Adapter:
    """Check an adapter's configuration against the header of its weights; reads no weight."""
    config = _config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise ScalerError(f"{folder}: no {WEIGHTS}", "save the adapter as safetensors: model.save_pretrained(FOLDER)")
    tensors = read_header(folder / WEIGHTS)
    modules = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    known = {f"{module}.lora_{side}.weight" for module in modules for side in "AB"}
    strange = sorted(tensors.keys() ^ known)
    if strange or not modules:
        what = f"{strange[0]:.120}: does not belong to pairs of lora_A and lora_B" if strange else "holds no LoRA"
        raise ScalerError(f"{folder.name}: {what}", MERGE_FIRST)
    products = {
        module.removeprefix(PREFIX): _product(folder, config, module, tensors) for module in sorted(modules, key=_order)
    }
    return Adapter(str(folder), config, products)


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScalerError(f"{file}: no such file", "name the folder of a PEFT adapter") from None
    except (UnicodeDecodeError, ValueError):
        raise ScalerError(f"{file}: not valid JSON", "save the adapter again") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ScalerError(f"{file.parent.name}: not a LoRA adapter", MERGE_FIRST)
    for key in NOT_HELD:
        if config.get(key):
            raise ScalerError(f"{file.parent.name}: {key}: more than a product of two matrices", MERGE_FIRST)
    if config.get("bias", "none") != "none":
        raise ScalerError(f"{file.parent.name}: bias: {config['bias']}: changes biases of the base", MERGE_FIRST)
    if config.get("init_lora_weights") not in UNCHANGED_BASE:
        raise ScalerError(
            f"{file.parent.name}: init_lora_weights: {config['init_lora_weights']}: belongs to a base that it changed",
            "save it with `path_initial_model_for_weight_conversion` of PEFT, which makes it an ordinary adapter",
        )
    return config


def _product(folder: Path, config: Mapping[str, Any], module: str, tensors: Mapping[str, Tensor]) -> Product:
    a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ScalerError(f"{folder.name}: {module}: {a.shape} and {b.shape} have no product", "save the adapter again")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, (int, float)):
        raise ScalerError(f"{folder.name}: lora_alpha: a number is needed (got {alpha!r:.40})", "mend the file")
    rank = a.shape[0]
    if rank != _by_pattern(config.get("rank_pattern"), module, config.get("r")):
        raise ScalerError(f"{folder.name}: {module}: rank {rank} in the weights, not in {CONFIG}", "mend the file")
    return Product(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: Any, module: str, otherwise: Any) -> Any:
    """PEFT's rule: the first pattern that the end of the module's name matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _order(module: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in module.split("."))


# -- on a model -----------------------------------------------------------------------------------------------------


def adapted(model: Parent, adapter: Adapter, name: str) -> Parent:
    """The model with the adapter added: still lazy, so it can take part in every merge."""
    tensors = dict(model.tensors)
    for module, product in adapter.products.items():
        weight = f"{module}.weight"
        if weight not in tensors or tensors[weight].shape != product.shape:
            has = list(tensors[weight].shape) if weight in tensors else "none"
            raise ScalerError(
                f"{adapter.name}: {weight}: {list(product.shape)} in the adapter, {has} in {model.name}",
                "this adapter belongs to another base",
            )
        old = tensors[weight]
        tensors[weight] = Sum((old, LowRank(Input(product.b), Input(product.a), product.scale, old.dtype)))
    return Parent(name, model.view, tensors, model.folder, Path(adapter.name) / WEIGHTS)


# -- together -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factors:
    """left @ right, in fp64: (rows, rank) and (rank, columns)."""

    left: Matrix
    right: Matrix

    @property
    def rank(self) -> int:
        """Columns of the left."""
        return int(self.left.shape[1])


Fused = Mapping[str, Factors]
"""What a merged adapter adds, by module."""


def modules_of(adapters: Sequence[Adapter]) -> Iterator[str]:
    """Every module that any of them changes; one shape each."""
    for module in sorted({module for adapter in adapters for module in adapter.products}, key=_order):
        first, *others = [adapter for adapter in adapters if module in adapter.products]
        for other in others:
            one, two = first.products[module].shape, other.products[module].shape
            if one != two:
                raise ScalerError(
                    f"{module}: {list(one)} in {first.name}, {list(two)} in {other.name}",
                    "these adapters belong to different bases",
                )
        yield module


def factors(adapter: Adapter, module: str, source: Source) -> Factors:
    """scale * B and A of one module; of rank 0 where the adapter leaves it alone."""
    product = adapter.products[module]
    return Factors(product.scale * _read(product.b, source), _read(product.a, source))


def _read(tensor: Tensor, source: Source) -> Matrix:
    values = to_float(source.raw(tensor, 0, tensor.elements), tensor.dtype).astype(np.float64).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise ScalerError(f"{tensor.file.parent.name}: {tensor.name}: holds NaN or infinity", "save the adapter again")
    return values


def concatenated(adapters: Sequence[Adapter], weights: Sequence[float], source: Source) -> Fused:
    """sum of w_i * s_i * B_i @ A_i, exactly, as one product whose rank is the sum of the ranks."""
    found = {}
    for module in modules_of(adapters):
        pairs = [
            (weight, factors(adapter, module, source))
            for adapter, weight in zip(adapters, weights, strict=True)
            if module in adapter.products
        ]
        left = np.concatenate([weight * part.left for weight, part in pairs], axis=1)
        found[module] = Factors(left, np.concatenate([part.right for _, part in pairs], axis=0))
    return found


def knots(adapters: Sequence[Adapter], weights: Sequence[float], density: float, source: Source) -> Fused:
    """KnOTS-TIES (arXiv:2410.19735): trim and elect signs in the basis that all adapters share.

    [D_1 ... D_n] = U S [V_1 ... V_n]; the V_i are trimmed and merged by TIES, and U S V is the merged change.
    """
    found = {}
    for module in modules_of(adapters):
        used = [(a, w) for a, w in zip(adapters, weights, strict=True) if module in a.products]
        parts = [factors(adapter, module, source) for adapter, _ in used]
        basis, _ = np.linalg.qr(np.concatenate([part.left for part in parts], axis=1))
        beside = np.concatenate([basis.T @ part.left @ part.right for part in parts], axis=1)
        left, spectrum, right = np.linalg.svd(beside, full_matrices=False)
        vectors = np.split(right, len(parts), axis=1)
        found[module] = Factors((basis @ left) * spectrum, _elected(vectors, [w for _, w in used], density))
    return found


def _elected(vectors: Sequence[Matrix], weights: Sequence[float], density: float) -> Matrix:
    """TIES of small matrices: keep the largest, elect signs, average what agrees."""
    trimmed = []
    for vector, weight in zip(vectors, weights, strict=True):
        kept = max(1, int(density * vector.size))
        edge = np.partition(np.abs(vector), vector.size - kept, axis=None)[vector.size - kept]
        trimmed.append(weight * np.where(np.abs(vector) >= edge, vector, 0))
    stacked = np.stack(trimmed)
    agrees = np.sign(stacked) == np.where(stacked.sum(axis=0) >= 0, 1, -1)
    divisor = np.tensordot(np.array(weights), agrees, 1)
    merged: Matrix = (stacked * agrees).sum(axis=0) / np.where(divisor == 0, 1, divisor)
    return merged


# -- smaller --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spectrum:
    """A product by its singular values: left and right have orthonormal columns and rows."""

    left: Matrix
    values: npt.NDArray[np.float64]
    right: Matrix

    def cut(self, rank: int) -> Factors:
        """The best product of a rank; the root of each value goes to each side."""
        root = np.sqrt(self.values[:rank])
        return Factors(self.left[:, :rank] * root, root[:, None] * self.right[:rank])


def spectrum(product: Factors) -> Spectrum:
    """Singular values of left @ right through two thin QRs and a small core: the big matrix is never made."""
    q_left, r_left = np.linalg.qr(product.left)
    q_right, r_right = np.linalg.qr(product.right.T)
    left, values, right = np.linalg.svd(r_left @ r_right.T)
    return Spectrum(q_left @ left, values, right @ q_right.T)


def predicted_error(spectra: Mapping[str, Spectrum], rank: int) -> float:
    """Relative Frobenius error of all modules together when each is cut to a rank (Eckart-Young)."""
    total = sum(float(np.square(one.values).sum()) for one in spectra.values())
    lost = sum(float(np.square(one.values[rank:]).sum()) for one in spectra.values())
    return math.sqrt(lost / total) if total else 0.0


def smallest_rank(spectra: Mapping[str, Spectrum], error: float) -> int:
    """The smallest rank whose predicted error is not above `error`."""
    most = max(len(one.values) for one in spectra.values())
    return next(rank for rank in range(1, most + 1) if rank == most or predicted_error(spectra, rank) <= error)


# -- how they get on ------------------------------------------------------------------------------------------------


def cosines(adapters: Sequence[Adapter], source: Source) -> npt.NDArray[np.float64]:
    """Cosines between the changes of all pairs: trace(A_i' B_i' B_j A_j), never making the big matrices."""
    count = len(adapters)
    inner = np.zeros((count, count))
    for module in modules_of(adapters):
        parts = [factors(one, module, source) if module in one.products else None for one in adapters]
        for i, first in enumerate(parts):
            for j, second in enumerate(parts):
                if first is not None and second is not None:
                    inner[i, j] += float(((first.left.T @ second.left) * (first.right @ second.right.T)).sum())
    lengths = np.sqrt(np.diag(inner))
    found: npt.NDArray[np.float64] = inner / np.maximum(np.outer(lengths, lengths), 1e-30)
    return found
