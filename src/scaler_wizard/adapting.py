"""Merge LoRA adapters of one base into one adapter (`scaler merge recipe.yaml -o OUT`, with `adapters:`).

merge:
  method: concatenate          # exact; `knots` trims and elects signs in a shared basis
  adapters:
    - {adapter: path/to/a, weight: 0.7}
    - {adapter: path/to/b, weight: -0.3}
  rank: 16                     # or `error: 0.05`; left out, nothing is lost and the ranks add up
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from scaler_wizard import __version__
from scaler_wizard.beside import beside, put, refuse_place, sweep
from scaler_wizard.errors import ScalerError
from scaler_wizard.files import file_hash
from scaler_wizard.merge.adapters import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    Adapter,
    Factors,
    Fused,
    Spectrum,
    concatenated,
    cosines,
    knots,
    predicted_error,
    read_adapter,
    smallest_rank,
    spectrum,
)
from scaler_wizard.record import Record, to_json
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.weights.evaluate import Source

RECORD = "merge.json"


class MergedAdapter(Record):
    """One of the adapters that are merged."""

    adapter: Annotated[str, Field(min_length=1)]
    """Its folder, as PEFT saves it."""
    weight: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0
    """Times what it adds."""


class AdapterMerge(Record):
    """How adapters become one."""

    method: Literal["concatenate", "knots"] = "concatenate"
    """concatenate: the exact weighted sum; knots: TIES in the basis that all share (arXiv:2410.19735)."""
    adapters: Annotated[tuple[MergedAdapter, ...], Field(min_length=1)]
    """The adapters, each with its `weight`."""
    density: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each adapter that `knots` keeps, the largest numbers."""
    rank: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Rank of the merged adapter; the sum of the ranks where neither this nor `error` is given."""
    error: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest relative error that may be made to get a small rank."""

    @model_validator(mode="after")
    def _one_size(self) -> AdapterMerge:
        if self.rank is not None and self.error is not None:
            raise ValueError("give rank or error, since each decides the other")
        if self.density < 1 and self.method != "knots":
            raise ValueError("density: concatenate keeps everything; choose method: knots")
        return self


class AdapterLineage(Record):
    """How an adapter was merged: written beside it as merge.json."""

    format: Literal[1] = 1
    """Version of this file format."""
    made_by: str
    """Program and version."""
    recipe: dict[str, Any]
    """The merge block, with every default filled in."""
    adapters: dict[str, str]
    """blake3 of each adapter's weights, by name."""
    cosines: tuple[tuple[float, ...], ...]
    """Between what the adapters add: near 1 they repeat each other, below 0 they undo each other."""
    rank: int
    """Largest rank of the merged adapter."""
    predicted_error: float
    """Relative Frobenius error of the change, from the singular values that were left out; 0 where nothing was."""
    files: dict[str, str]
    """blake3 of the weights and the configuration, by file name."""


@dataclass(frozen=True)
class MergedAdapters:
    """A merged adapter in its place."""

    folder: Path
    lineage: AdapterLineage

    def rows(self) -> list[tuple[str, str]]:
        """What happened, for a table."""
        return [
            ("adapter", str(self.folder)),
            ("rank", str(self.lineage.rank)),
            ("error", f"{self.lineage.predicted_error:.2%} of what the adapters add, by the singular values left out"),
            *_cosine_rows(self.lineage.cosines),
        ]


def load_adapters(path: Path) -> AdapterMerge | None:
    """The recipe of a file that merges adapters; None where it merges models."""
    block = load_yaml(path).get("merge")
    if not isinstance(block, dict) or "adapters" not in block:
        return None
    return AdapterMerge.read(block, f"{path.name}: merge")


def look_at_adapters(recipe: AdapterMerge) -> list[tuple[str, str]]:
    """How the adapters get on, and what every smaller rank would cost, for a table; nothing is written."""
    adapters = [read_adapter(Path(one.adapter)) for one in recipe.adapters]
    _one_base(adapters)
    source = Source(0)
    try:
        alike = cosines(adapters, source)
        spectra = {module: spectrum(part) for module, part in _whole(recipe, adapters, source).items()}
    finally:
        source.close()
    whole = max(len(one.values) for one in spectra.values())
    ranks = sorted({recipe.rank or whole, *(2**power for power in range(2, 20))} & set(range(1, whole + 1)))
    errors = [(f"error at rank {rank}", f"{predicted_error(spectra, rank):.2%}") for rank in ranks]
    return [("adapters", str(len(adapters))), ("rank of the sum", str(whole)), *_cosine_rows(alike), *errors]


def _cosine_rows(alike: Sequence[Sequence[float]] | npt.NDArray[np.float64]) -> list[tuple[str, str]]:
    """Of every pair, where there is one."""
    found = [value for place, row in enumerate(alike) for value in row[place + 1 :]]
    return [("cosines", ", ".join(f"{value:+.2f}" for value in found))] if found else []


def merge_adapters(recipe: AdapterMerge, out: Path, *, force: bool = False) -> MergedAdapters:
    """Merge adapters, and put the result at `out` once it is whole; `force` replaces a merged adapter."""
    refuse_place(out, RECORD, force=force)
    adapters = [read_adapter(Path(one.adapter)) for one in recipe.adapters]
    _one_base(adapters)
    source = Source(0)
    try:
        alike = cosines(adapters, source)
        fused, error = fuse(recipe, adapters, source)
    finally:
        source.close()
    with beside(out, "merging") as staging:
        save_adapter(staging, fused, adapters[0].config)
        sweep(staging, keep={CONFIG, WEIGHTS})
        lineage = AdapterLineage(
            made_by=f"scaler-wizard {__version__}",
            recipe=recipe.model_dump(mode="json"),
            adapters={one.adapter: file_hash(Path(one.adapter) / WEIGHTS) for one in recipe.adapters},
            cosines=tuple(tuple(float(value) for value in row) for row in alike),
            rank=max(part.rank for part in fused.values()),
            predicted_error=error,
            files={name: file_hash(staging / name) for name in (CONFIG, WEIGHTS)},
        )
        (staging / RECORD).write_text(to_json(lineage) + "\n", encoding="utf-8")
        put(staging, out)
    return MergedAdapters(out, lineage)


def fuse(recipe: AdapterMerge, adapters: list[Adapter], source: Source) -> tuple[Fused, float]:
    """What the merged adapter adds, and the error that its rank costs."""
    whole = _whole(recipe, adapters, source)
    if recipe.rank is None and recipe.error is None:
        return whole, 0.0
    spectra: Mapping[str, Spectrum] = {module: spectrum(part) for module, part in whole.items()}
    rank = recipe.rank if recipe.rank is not None else smallest_rank(spectra, recipe.error or 0.0)
    return {module: one.cut(rank) for module, one in spectra.items()}, predicted_error(spectra, rank)


def _whole(recipe: AdapterMerge, adapters: list[Adapter], source: Source) -> Fused:
    """What the merged adapter adds before anything is cut off."""
    weights = [one.weight for one in recipe.adapters]
    if recipe.method == "knots":
        return knots(adapters, weights, recipe.density, source)
    return concatenated(adapters, weights, source)


def _one_base(adapters: list[Adapter]) -> None:
    known = [(one.name, one.config.get("base_model_name_or_path")) for one in adapters]
    named = [(name, base) for name, base in known if base]
    for name, base in named[1:]:
        if base != named[0][1]:
            raise ScalerError(
                f"{named[0][0]} belongs to {named[0][1]}, {name} to {base}",
                "merge adapters of one base; where it is the same under two names, make them equal in "
                "adapter_config.json",
            )


def save_adapter(folder: Path, fused: Fused, like: Mapping[str, Any]) -> None:
    """A PEFT folder whose scale is 1 everywhere: alpha is the rank of each module."""
    from safetensors.numpy import save_file

    tensors = {}
    for module, part in fused.items():
        balanced = _balanced(part)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(balanced.right, np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(balanced.left, np.float32)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    ranks = {module: part.rank for module, part in fused.items()}
    rank = max(ranks.values())
    others = {module.replace(".", r"\."): own for module, own in ranks.items() if own != rank}
    config = dict(like) | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(fused),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _balanced(part: Factors) -> Factors:
    """The same product with sides of one size, so that neither loses small numbers in fp32."""
    left, right = np.linalg.norm(part.left), np.linalg.norm(part.right)
    if not left or not right:
        return part
    share = np.sqrt(right / left)
    return Factors(part.left * share, part.right / share)
