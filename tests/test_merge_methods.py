"""Every merge method computes what its paper says: against references in fp64, and the same bytes always."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import merge_references as reference
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge import METHODS, Method
from scaler_wizard.merge.recipe import read_merge
from scaler_wizard.merge.threshold import kth_largest
from scaler_wizard.merging import merge_models, prepare
from scaler_wizard.weights import write
from tiny_models import FAMILIES, load, make

Matrix = reference.Matrix
Reference = Callable[[Matrix, list[Matrix], str], Matrix]
LARGEST_SHARE = 0.0005
"""Of elements that may differ from the rounded fp64 reference."""
FP64_NOISE = 1e-12
"""Of a number: fp64 cannot tell on which side of a midpoint of bfloat16 the exact sum lies; both roundings will do."""
BIG = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": 256, "head_dim": 24}


def tuned(source: Path, folder: Path, seed: int, *, size: float = 0.05) -> Path:
    """The model with normal noise on every weight, as a fine-tune would change it."""
    model = load(source)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += (torch.randn(parameter.shape, generator=generator) * size).to(parameter.dtype)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base in bfloat16 and three fine-tunes."""
    root = tmp_path_factory.mktemp("family")
    base = make(root / "base", dtype="bfloat16", **BIG)
    return {"base": base} | {name: tuned(base, root / name, number + 1) for number, name in enumerate("abc")}


def recipe(family: dict[str, Path], method: str, each: Sequence[dict[str, Any]], **general: Any) -> Method:
    """A merge of the first models of the family."""
    models = [{"model": str(family[name]), **own} for name, own in zip("abc", each, strict=False)]
    if METHODS[method].base_is == "needed" or general.pop("from_base", False):
        general["base"] = str(family["base"])
    return read_merge({"method": method, "models": models, **general}, "recipe", METHODS)


def tensors(folder: Path) -> dict[str, Matrix]:
    return {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}


def merged(family: dict[str, Path], out: Path, method: Method, **options: Any) -> dict[str, Matrix]:
    write(prepare(method).program, out, durable=False, **options)
    return tensors(out)


WEIGHTS = [0.6, 0.4, 0.3]
EACH = [{"weight": weight} for weight in WEIGHTS]
TRIMMED = [{"weight": weight, "density": 0.3} for weight in WEIGHTS]
EVEN = [{"weight": 0.5, "density": 0.3}] * 3
MASKED = [{"weight": weight, "density": 0.4, "gamma": 0.02} for weight in WEIGHTS]


def vectors(base: Matrix, models: list[Matrix]) -> list[Matrix]:
    return [model - base for model in models]


def plain_sum(base: Matrix, models: list[Matrix], scale: float = 1.0) -> Matrix:
    return base + scale * sum(w * v for w, v in zip(WEIGHTS, vectors(base, models), strict=True))


def ties(weights: Sequence[float], *, scale: float = 1.0, normalize: bool = True) -> Reference:
    def found(base: Matrix, models: list[Matrix], name: str) -> Matrix:
        trimmed = [reference.largest(vector, 0.3) for vector in vectors(base, models)]
        return base + scale * reference.elect(trimmed, weights, normalize=normalize)

    return found


def crumbs(base: Matrix, models: list[Matrix]) -> list[Matrix]:
    return [reference.middle(vector, 0.4, 0.02) for vector in vectors(base, models)]


def spectral(method: Callable[[Matrix, Sequence[Matrix]], Matrix]) -> Reference:
    def found(base: Matrix, models: list[Matrix], name: str) -> Matrix:
        table = base.ndim < 2 or "embed" in name or "lm_head" in name
        return np.mean(models, axis=0) if table else method(base, models)

    return found


def by_row(base: Matrix, models: list[Matrix], name: str) -> Matrix:
    a, b = vectors(base, models)
    if base.ndim < 2:
        return base + reference.slerp(a, b, 0.4, 1 - 1e-12)
    return base + reference.slerp_rows(a, b, 0.4)


def stock_by_row(base: Matrix, models: list[Matrix], name: str) -> Matrix:
    if base.ndim < 2:
        return reference.model_stock(base, models)
    rows = [reference.model_stock(base[row], [model[row] for model in models]) for row in range(len(base))]
    return np.stack(rows)


CASES: dict[str, tuple[str, Sequence[dict[str, Any]], dict[str, Any], Reference]] = {
    "linear": ("linear", EACH, {}, lambda base, models, name: reference.linear(models, WEIGHTS)),
    "slerp": ("slerp", [{}, {}], {"t": 0.3}, lambda base, models, name: reference.slerp(*models, 0.3)),
    "nuslerp": (
        "nuslerp",
        EACH[:2],
        {},
        lambda base, models, name: reference.slerp(*models, 0.4, 1 - 1e-12),
    ),
    "nuslerp of task vectors by row": ("nuslerp", EACH[:2], {"from_base": True, "row_wise": True}, by_row),
    "multislerp": ("multislerp", EACH, {}, lambda base, models, name: reference.multislerp(models, WEIGHTS)),
    "multislerp of task vectors": (
        "multislerp",
        EACH,
        {"from_base": True},
        lambda base, models, name: base + reference.multislerp(vectors(base, models), WEIGHTS),
    ),
    "karcher": ("karcher", [{}] * 3, {}, lambda base, models, name: reference.karcher(models)),
    "nearswap": ("nearswap", [{}], {"t": 0.03}, lambda base, models, name: reference.nearswap(base, models[0], 0.03)),
    "task arithmetic": (
        "task_arithmetic",
        EACH,
        {"scale": 0.7},
        lambda base, models, name: plain_sum(base, models, 0.7),
    ),
    "ties": ("ties", TRIMMED, {}, ties(WEIGHTS)),
    "ties with equal weights": ("ties", EVEN, {"scale": 0.9}, ties([0.5] * 3, scale=0.9)),
    "ties without normalising": ("ties", TRIMMED, {"normalize": False}, ties(WEIGHTS, normalize=False)),
    "breadcrumbs": (
        "breadcrumbs",
        MASKED,
        {},
        lambda base, models, name: base + sum(w * v for w, v in zip(WEIGHTS, crumbs(base, models), strict=True)),
    ),
    "breadcrumbs ties": (
        "breadcrumbs_ties",
        MASKED,
        {},
        lambda base, models, name: base + reference.elect(crumbs(base, models), WEIGHTS, normalize=False),
    ),
    "model stock": ("model_stock", [{}] * 3, {}, lambda base, models, name: reference.model_stock(base, models)),
    "model stock by row": ("model_stock", [{}] * 3, {"filter_wise": True}, stock_by_row),
    "sce": ("sce", [{}] * 3, {}, lambda base, models, name: reference.sce(base, models, 1.0)),
    "sce of a part": (
        "sce",
        [{}] * 3,
        {"select_topk": 0.4},
        lambda base, models, name: reference.sce(base, models, 0.4),
    ),
    "ram": ("ram", [{}] * 3, {"epsilon": 0.04}, lambda base, models, name: reference.ram(base, models, 0.04)),
    "ram plus": (
        "ramplus_tl",
        [{}] * 3,
        {"epsilon": 0.04, "r": 0.3, "alpha": 0.8},
        lambda base, models, name: reference.ram(base, models, 0.04, 0.3, 0.8),
    ),
    "arcee fusion": ("arcee_fusion", [{}], {}, lambda base, models, name: reference.arcee_fusion(base, models[0])),
    "tsv": ("tsv", [{}] * 2, {}, spectral(reference.tsv)),
    "iso-c": ("iso_c", [{}] * 3, {}, spectral(reference.iso)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_method_is_its_fp64_reference_rounded_once(family: dict[str, Path], tmp_path: Path, case: str) -> None:
    method, each, general, expected = CASES[case]
    found = merged(family, tmp_path / "out", recipe(family, method, each, **general))
    base, models = tensors(family["base"]), [tensors(family[name]) for name in "abc"[: len(each)]]
    differ = undecided = 0
    for name, ours in found.items():
        exact = expected(base[name], [model[name] for model in models], name)
        either = [ours == reference.bf16(exact * factor) for factor in (1 - FP64_NOISE, 1 + FP64_NOISE)]
        undecided += np.count_nonzero(np.isnan(exact))
        differ += np.count_nonzero(~(either[0] | either[1]) & ~np.isnan(exact))
    elements = sum(value.size for value in base.values())
    assert differ <= LARGEST_SHARE * elements
    assert undecided <= 0.002 * elements  # two weighted changes that cancel


def exact_ties(base: float, changes: Sequence[float], scale: Fraction) -> tuple[Fraction, bool]:
    """The merged number without any rounding, and whether the weighted changes cancel exactly."""
    pairs = [(Fraction(str(weight)), Fraction(float(change))) for weight, change in zip(WEIGHTS, changes, strict=True)]
    total = sum(weight * change for weight, change in pairs)
    agreeing = [(weight, change) for weight, change in pairs if change * (1 if total >= 0 else -1) > 0]
    weights = sum(weight for weight, _ in agreeing) or Fraction(1)
    merged = Fraction(float(base)) + scale * sum(weight * change for weight, change in agreeing) / weights
    return merged, total == 0


def is_between_two(value: Fraction) -> bool:
    """Whether a number lies exactly halfway between two neighbours in bfloat16 (or is 0, where only signs differ)."""
    if value == 0:
        return True
    steps = 2 * abs(value) / Fraction(2) ** (math.frexp(float(value))[1] - 8)
    return steps.denominator == 1 and steps.numerator % 2 == 1


def test_decimal_weights_differ_from_fp64_only_where_exact_arithmetic_finds_a_tie(
    family: dict[str, Path], tmp_path: Path
) -> None:
    found = merged(family, tmp_path / "out", recipe(family, "ties", TRIMMED, scale=0.9))
    base, models = tensors(family["base"]), [tensors(family[name]) for name in "abc"]
    differ = decided = 0
    for name, ours in found.items():
        trimmed = [reference.largest(vector, 0.3) for vector in vectors(base[name], [one[name] for one in models])]
        whole = base[name] + 0.9 * reference.elect(trimmed, WEIGHTS, normalize=True)
        for place in zip(*np.nonzero(ours != torch.from_numpy(whole).bfloat16().double().numpy()), strict=True):
            value, cancels = exact_ties(base[name][place], [one[place] for one in trimmed], Fraction("0.9"))
            differ += 1
            decided += not (cancels or is_between_two(value))
    assert differ > 0 and decided == 0


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_keeps_its_share_and_makes_it_as_much_larger(family: dict[str, Path], tmp_path: Path, method: str) -> None:
    each = [{"weight": 1.0, "density": 0.25}, {"weight": 0.0, "density": 0.25}]
    found = merged(family, tmp_path / "out", recipe(family, method, each, dtype="float32", seed=5))
    base, model = tensors(family["base"]), tensors(family["a"])
    kept = size = 0
    for name, value in found.items():
        vector = model[name] - base[name]
        mask = np.abs(value - base[name]) > 1e-9
        assert np.allclose(value - base[name], 4 * vector * mask, rtol=1e-4, atol=1e-6)
        kept, size = kept + np.count_nonzero(mask), size + np.count_nonzero(vector)
    assert abs(kept / size - 0.25) < 5 * np.sqrt(0.25 * 0.75 / size)


def test_models_and_seeds_have_their_own_chance(family: dict[str, Path], tmp_path: Path) -> None:
    same = {**family, "b": family["a"]}
    each = [{"weight": 1.0, "density": 0.5}, {"weight": -1.0, "density": 0.5}]
    block = recipe(family, "dare_linear", each, dtype="float32").model_dump(mode="json")
    block["models"][1]["model"] = os.path.relpath(same["b"])  # the same model under another name
    found = merged(family, tmp_path / "one", read_merge(block, "recipe", METHODS))
    base = tensors(family["base"])
    changed = sum(np.count_nonzero(found[name] != base[name]) for name in base)
    assert 0.4 < changed / sum(value.size for value in base.values()) < 0.6  # kept by one and not by the other
    other = merged(family, tmp_path / "two", read_merge({**block, "seed": 1}, "recipe", METHODS))
    assert any(not np.array_equal(found[name], other[name]) for name in base)


def test_della_keeps_large_changes_more_often(family: dict[str, Path], tmp_path: Path) -> None:
    each = [{"weight": 1.0, "density": 0.5, "epsilon": 0.4}]
    found = merged(family, tmp_path / "out", recipe(family, "della_linear", each, dtype="float32", normalize=False))
    base, model = tensors(family["base"]), tensors(family["a"])
    kept: list[list[float]] = [[], []]
    for name in (name for name in base if base[name].ndim == 2):
        vector = model[name] - base[name]
        order = np.argsort(np.argsort(np.abs(vector), axis=1, kind="stable"), axis=1, kind="stable")
        chance = 0.1 + 0.8 * order / (vector.shape[1] - 1)
        mask = np.abs(found[name] - base[name]) > 1e-9
        assert np.allclose(found[name] - base[name], vector * mask / chance, rtol=1e-4, atol=1e-6)
        half = vector.shape[1] // 2
        kept[0].append(mask[order < half].mean())
        kept[1].append(mask[order >= half].mean())
    assert abs(np.mean(kept[0]) - 0.3) < 0.02 and abs(np.mean(kept[1]) - 0.7) < 0.02


REQUIRED = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.02}}
"""Settings without a default, by method."""


def plain(family: dict[str, Path], name: str) -> dict[str, Any]:
    """The method's block for as many models of the family as it takes; what can be trimmed is."""
    kind = METHODS[name]
    trimmed = {"density": 0.4} if name.startswith(("ties", "dare", "della", "breadcrumbs")) else {}
    block = {"method": name, "models": [{"model": str(family[one]), **trimmed} for one in "ab"[: kind.most]]}
    return block | ({"base": str(family["base"])} if kind.base_is == "needed" else {}) | REQUIRED.get(name, {})


@pytest.mark.parametrize("method", METHODS)
def test_processes_and_shards_change_no_bit(
    family: dict[str, Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler_wizard.weights.stream.SHARED_BYTES", 0)
    chosen = prepare(read_merge(plain(family, method), "recipe", METHODS)).program
    write(chosen, tmp_path / "one", durable=False)
    write(chosen, tmp_path / "three", durable=False, processes=3, shard_bytes=60_000)
    one = load_file(tmp_path / "one/model.safetensors")
    three = {
        name: value for file in (tmp_path / "three").glob("*.safetensors") for name, value in load_file(file).items()
    }
    assert len(list((tmp_path / "three").glob("*.safetensors"))) > 2
    assert one.keys() == three.keys() and all(torch.equal(one[name], three[name]) for name in one)


MERGE_ALL = """
import sys
from pathlib import Path
from scaler_wizard.merging import merge_models
for file in map(Path, sys.argv[2:]):
    found = merge_models(file, Path(sys.argv[1]) / file.stem)
    print(found.lineage.files["model.safetensors"], "torch" in sys.modules, "transformers" in sys.modules)
"""


def test_the_hash_seed_changes_no_bit_and_nothing_heavy_is_loaded(family: dict[str, Path], tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.yaml" for name in METHODS]
    for file in files:
        file.write_text(json.dumps({"merge": plain(family, file.stem)}))
    said = [
        subprocess.run(
            [sys.executable, "-c", MERGE_ALL, str(tmp_path / seed), *map(str, files)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for seed in ("0", "1", "5")
    ]
    assert said[0] == said[1] == said[2] and len(said[0]) == len(METHODS)
    assert all(line.endswith("False False") for line in said[0])
    assert len(set(said[0])) > len(METHODS) // 2  # the methods do not all write the same


def test_weights_follow_layers_and_parts(family: dict[str, Path], tmp_path: Path) -> None:
    ramp = {"weight": [{"filter": "mlp", "value": [0.0, 1.0]}, {"filter": "norm", "value": 0.5}, {"value": 1.0}]}
    rest = {"weight": [{"filter": "mlp", "value": [1.0, 0.0]}, {"filter": "norm", "value": 0.5}, {"value": 0.0}]}
    found = merged(family, tmp_path / "out", recipe(family, "linear", [ramp, rest]))
    a, b = tensors(family["a"]), tensors(family["b"])
    name = "model.layers.{}.mlp.up_proj.weight"
    assert np.array_equal(found[name.format(0)], b[name.format(0)])
    assert np.array_equal(found[name.format(2)], a[name.format(2)])
    assert np.array_equal(found[name.format(1)], reference.bf16((a[name.format(1)] + b[name.format(1)]) / 2))
    assert np.array_equal(
        found["model.norm.weight"], reference.bf16((a["model.norm.weight"] + b["model.norm.weight"]) / 2)
    )
    assert np.array_equal(found["lm_head.weight"], a["lm_head.weight"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_type_can_be_written(family: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    merge_models(recipe(family, "linear", EACH, dtype=dtype), tmp_path / "out")
    assert load(tmp_path / "out").dtype == getattr(torch, dtype)


def test_layers_of_two_models_are_stacked_and_lists_follow(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "qwen2", seed=1)
    two = make(tmp_path / "two", "qwen2", seed=2)
    slices = [{"model": str(one), "layers": [0, 2]}, {"model": str(two), "layers": [1, 3], "scale": 0.5}]
    merge_models(read_merge({"method": "passthrough", "models": slices}, "recipe", METHODS), tmp_path / "out")
    found, a, b = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", one, two))
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(found[name.format(1)], a[name.format(1)])
    assert torch.equal(found[name.format(2)], b[name.format(1)] * 0.5)
    assert torch.equal(found["model.norm.weight"], b["model.norm.weight"] * 0.5)
    config = load(tmp_path / "out").config
    assert config.num_hidden_layers == 4
    assert config.layer_types == ["full_attention", *["sliding_attention"] * 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200_000), st.sampled_from(["normal", "ties", "zeros", "uneven"]))
def test_the_kth_largest_is_exact_without_sorting(seed: int, rank: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal(200_000).astype(np.float32)
    if kind == "ties":
        values = np.round(values * 4) / 4
    if kind == "zeros":
        values[random.random(values.size) < 0.8] = 0
    if kind == "uneven":
        values[:100_000] *= 1000  # the sample misses this half
    sample = values[100_000::4] if kind == "uneven" else values[::4]

    def each(find: Any) -> Any:
        return (find([chunk.copy().reshape(-1, 10)]) for chunk in values.reshape(10, -1))

    (found,) = kth_largest(each, [sample], [(0, rank)], values.size)
    assert found == np.sort(np.abs(values))[::-1][rank - 1]


def test_numbers_that_are_not_finite_stop_the_merge_and_leave_nothing(family: dict[str, Path], tmp_path: Path) -> None:
    broken = tuned(family["base"], tmp_path / "broken", 9)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][17, 3] = float("nan")  # where no sample looks
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    method = recipe({**family, "b": broken}, "ties", EVEN[:2])
    with pytest.raises(ScalerError, match=r"broken: model.layers.1.mlp.up_proj.weight: holds NaN"):
        merge_models(method, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_models_of_every_family_merge_and_load(tmp_path: Path, kind: str) -> None:
    base = make(tmp_path / "base", kind)
    one, two = (tuned(base, tmp_path / name, seed, size=0.02) for seed, name in enumerate(("one", "two")))
    block = {"method": "linear", "models": [{"model": str(one)}, {"model": str(two)}]}
    merge_models(read_merge(block, "recipe", METHODS), tmp_path / "out")
    found = [dict(load(folder).named_parameters()) for folder in (tmp_path / "out", one, two)]
    for name, value in found[0].items():
        assert torch.allclose(value, (found[1][name] + found[2][name]) / 2, atol=1e-6), name
