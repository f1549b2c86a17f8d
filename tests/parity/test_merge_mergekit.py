"""Our merges against mergekit's, from the very same YAML, in fp32 so that rounding hides nothing.

mergekit lives in an environment of its own; its interpreter is named by SCALER_MERGEKIT_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))
from scaler_wizard.merging import merge_models
from tiny_models import load, make

pytestmark = pytest.mark.slow
VARIABLE = "SCALER_MERGEKIT_PYTHON"
THEIRS = """
import sys, yaml
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for file in sys.argv[1:]:
    config = MergeConfiguration.model_validate(yaml.safe_load(Path(file).read_text()))
    run_merge(config, str(Path(file).with_suffix(".theirs")), MergeOptions(quiet=True, copy_tokenizer=False))
"""
WEIGHTED: list[dict[str, Any]] = [{"weight": 0.6}, {"weight": 0.4}]
TRIMMED: list[dict[str, Any]] = [{"weight": 0.6, "density": 0.3}, {"weight": [0.2, 0.9], "density": 0.5}]
FILTERED: list[dict[str, Any]] = [
    {"weight": [{"filter": "mlp", "value": [0, 1]}, {"filter": "norm", "value": 0.2}, {"value": 0.7}]},
    {"weight": 0.5},
]
SAME: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str | None]] = {
    "linear": ("linear", WEIGHTED, {}, None),
    "linear by layer and part": ("linear", FILTERED, {}, None),
    "slerp": ("slerp", [{}, {}], {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.3}]}, "a"),
    "nuslerp": ("nuslerp", WEIGHTED, {}, None),
    "nuslerp by row": ("nuslerp", WEIGHTED, {"nuslerp_flatten": False}, "base"),
    "multislerp": ("multislerp", WEIGHTED, {}, None),
    "multislerp of task vectors": ("multislerp", WEIGHTED, {}, "base"),
    "karcher": ("karcher", [{}, {}], {}, None),
    "karcher in three steps": ("karcher", [{}, {}], {"max_iter": 3, "tol": 1e-4}, None),
    "nearswap": ("nearswap", [{}], {"t": 0.02}, "base"),
    "task arithmetic": ("task_arithmetic", WEIGHTED, {"lambda": 0.7}, "base"),
    "ties": ("ties", TRIMMED, {"lambda": 1.3}, "base"),
    "ties without normalising": ("ties", TRIMMED, {"normalize": False, "int8_mask": True}, "base"),
    "breadcrumbs": ("breadcrumbs", TRIMMED, {"gamma": 0.05}, "base"),
    "breadcrumbs ties": ("breadcrumbs_ties", TRIMMED, {"gamma": 0.05}, "base"),
    "model stock": ("model_stock", [{}, {}], {}, "base"),
    "model stock by row": ("model_stock", [{}, {}], {"filter_wise": True}, "base"),
    "passthrough": ("passthrough", [{}], {"scale": [{"filter": "o_proj", "value": 0}, {"value": 0.9}]}, None),
    "ram": ("ram", [{}, {}], {"epsilon": 0.03}, "base"),
    "ram plus": ("ramplus_tl", [{}, {}], {"epsilon": 0.03, "r": 0.3, "alpha": 0.8}, "base"),
    "sce": ("sce", [{}, {}], {}, "base"),
    "sce of a part": ("sce", [{}, {}], {"select_topk": 0.4}, "base"),
}
CHANCE: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str | None]] = {
    "dare_linear": ("dare_linear", [{"weight": 1, "density": 0.3}], {}, "base"),
    "dare_ties": ("dare_ties", [{"weight": 1, "density": 0.3}], {}, "base"),
    "della": ("della", [{"weight": 1, "density": 0.5, "epsilon": 0.2}], {}, "base"),
    "della_linear": ("della_linear", [{"weight": 1, "density": 0.5, "epsilon": 0.2}], {}, "base"),
}
NEARLY: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str | None]] = {
    "arcee_fusion": ("arcee_fusion", [{}], {}, "base"),
}
"""Its divergences of rows are sums of nearly cancelling fp32 numbers, so what stands at the threshold may differ."""
Runs = dict[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("family")
    folders = {"base": make(root / "base", hidden_size=64, intermediate_size=96)}
    for number, name in enumerate("ab"):
        model, generator = load(folders["base"]), torch.Generator().manual_seed(number + 1)
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
        model.save_pretrained(root / name)
        folders[name] = root / name
    return folders


@pytest.fixture(scope="module")
def runs(family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every case merged by both: (ours, theirs)."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"not compared with mergekit: {VARIABLE} names no interpreter that has it")
    root = tmp_path_factory.mktemp("merges")
    files = {name: recipe(root / f"{number}.yaml", family, *case) for number, (name, case) in enumerate(cases())}
    subprocess.run([python, "-c", THEIRS, *map(str, files.values())], check=True, timeout=600)
    found = {}
    for name, file in files.items():
        merge_models(file, file.with_suffix(".ours"))
        found[name] = (weights(file.with_suffix(".ours")), weights(file.with_suffix(".theirs")))
    return found


def cases() -> list[tuple[str, tuple[str, list[dict[str, Any]], dict[str, Any], str | None]]]:
    return [*SAME.items(), *CHANCE.items(), *NEARLY.items()]


def recipe(
    file: Path,
    family: dict[str, Path],
    method: str,
    each: list[dict[str, Any]],
    general: dict[str, Any],
    base: str | None,
) -> Path:
    models = [{"model": str(family[name]), "parameters": own} for name, own in zip("ab", each, strict=False)]
    data: dict[str, Any] = {"merge_method": method, "models": models, "parameters": general, "dtype": "float32"}
    if base:
        data["base_model"] = str(family[base])
    file.write_text(json.dumps(data))
    return file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("case", SAME)
def test_the_same_yaml_gives_the_same_numbers(runs: Runs, case: str) -> None:
    ours, theirs = runs[case]
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=2e-6), name


@pytest.mark.parametrize("case", CHANCE)
def test_as_many_changes_are_kept_and_as_much_enlarged(runs: Runs, family: dict[str, Path], case: str) -> None:
    base = weights(family["base"])
    kept, length = [], []
    for merged in runs[case]:
        change = torch.cat([(merged[name] - base[name]).flatten() for name in base])
        kept.append(float((change.abs() > 1e-9).float().mean()))
        length.append(float(change.abs().sum()))
    assert abs(kept[0] - kept[1]) < 0.01
    assert abs(length[0] / length[1] - 1) < 0.02


@pytest.mark.parametrize("case", NEARLY)
def test_all_but_a_thousandth_is_the_same(runs: Runs, case: str) -> None:
    ours, theirs = runs[case]
    apart = sum(int((~torch.isclose(ours[name], theirs[name], rtol=1e-5, atol=2e-6)).sum()) for name in ours)
    assert apart <= 0.001 * sum(one.numel() for one in ours.values())
