"""Adapters merge exactly, shrink with the error that was foretold, and are refused where they are no products."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from scaler_wizard.adapting import AdapterLineage, AdapterMerge, merge_adapters
from scaler_wizard.cli import app
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge import METHODS
from scaler_wizard.merge.recipe import read_merge
from scaler_wizard.merging import merge_models, prepare
from scaler_wizard.parents import named_parent
from tiny_models import load, make

Deltas = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("base") / "model")


def adapter(base: Path, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """An adapter whose every number matters, as PEFT saves it."""
    torch.manual_seed(seed)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return folder


def deltas(base: Path, folder: Path) -> Deltas:
    """What PEFT itself says that an adapter adds, in fp64."""
    model = PeftModel.from_pretrained(load(base), folder)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    for layer in layers.values():
        layer.double()
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


def distance(ours: Deltas, theirs: Deltas) -> float:
    assert ours.keys() == theirs.keys()
    lost = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    return float(np.sqrt(lost / sum(float(value.square().sum()) for value in theirs.values())))


def weighted(parts: list[tuple[float, Deltas]]) -> Deltas:
    names = {name for _, part in parts for name in part}
    return {name: sum(w * part[name] for w, part in parts if name in part) for name in names}  # type: ignore[misc]


def merge(folders: list[tuple[Path, float]], out: Path, **settings: Any) -> AdapterLineage:
    adapters = [{"adapter": str(folder), "weight": weight} for folder, weight in folders]
    return merge_adapters(AdapterMerge.read({"adapters": adapters, **settings}, "recipe"), out).lineage


def test_any_ranks_scales_and_signs_are_concatenated_exactly(base: Path, tmp_path: Path) -> None:
    one = adapter(base, tmp_path / "one", seed=1)
    two = adapter(
        base, tmp_path / "two", seed=2, r=8, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "up_proj"]
    )
    three = adapter(
        base, tmp_path / "three", seed=3, rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"down_proj": 5}
    )
    folders = [(one, 0.7), (two, -1.3), (three, 2.0)]
    lineage = merge(folders, tmp_path / "out")
    wanted = weighted([(weight, deltas(base, folder)) for folder, weight in folders])
    assert distance(deltas(base, tmp_path / "out"), wanted) <= 1e-6
    assert lineage.rank == 16 and lineage.predicted_error == 0.0


def test_opposite_weights_cancel_and_one_adapter_stays_itself(base: Path, tmp_path: Path) -> None:
    one = adapter(base, tmp_path / "one", seed=1, use_rslora=True)
    merge([(one, 1.0)], tmp_path / "same")
    assert distance(deltas(base, tmp_path / "same"), deltas(base, one)) <= 1e-6
    merge([(one, 1.0), (one, -1.0)], tmp_path / "none")
    largest = max(float(value.abs().max()) for value in deltas(base, tmp_path / "none").values())
    assert largest < 1e-7


def test_the_error_of_a_smaller_rank_is_the_one_that_was_foretold(base: Path, tmp_path: Path) -> None:
    folders = [(adapter(base, tmp_path / str(seed), seed=seed, r=6), 1.0) for seed in range(3)]
    wanted = weighted([(1.0, deltas(base, folder)) for folder, _ in folders])
    for rank in (2, 8, 14):
        lineage = merge(folders, tmp_path / f"rank-{rank}", rank=rank)
        made = distance(deltas(base, tmp_path / f"rank-{rank}"), wanted)
        assert lineage.rank == rank and abs(made / lineage.predicted_error - 1) <= 0.01
        for name, value in wanted.items():  # the best that any product of this rank can do
            left, spectrum, right = torch.linalg.svd(value, full_matrices=False)
            best = (left[:, :rank] * spectrum[:rank]) @ right[:rank]
            assert torch.allclose(deltas(base, tmp_path / f"rank-{rank}")[name], best, atol=1e-5)


def test_a_rank_can_be_chosen_by_its_error(base: Path, tmp_path: Path) -> None:
    folders = [(adapter(base, tmp_path / str(seed), seed=seed, r=6), 1.0) for seed in range(2)]
    lineage = merge(folders, tmp_path / "out", error=0.3)
    smaller = merge(folders, tmp_path / "smaller", rank=lineage.rank - 1)
    assert lineage.predicted_error <= 0.3 < smaller.predicted_error


def test_knots_of_everything_with_one_sign_is_the_mean(base: Path, tmp_path: Path) -> None:
    one = adapter(base, tmp_path / "one", seed=1)
    merge([(one, 1.0), (one, 3.0)], tmp_path / "out", method="knots")
    assert distance(deltas(base, tmp_path / "out"), deltas(base, one)) <= 1e-5


def test_knots_trims_and_elects_in_the_shared_basis(base: Path, tmp_path: Path) -> None:
    folders = [(adapter(base, tmp_path / str(seed), seed=seed), 1.0) for seed in range(2)]
    merge(folders, tmp_path / "out", method="knots", density=0.4)
    found = deltas(base, tmp_path / "out")
    changes = [deltas(base, folder) for folder, _ in folders]
    for name in found:
        left, spectrum, right = np.linalg.svd(
            np.concatenate([c[name].numpy() for c in changes], 1), full_matrices=False
        )
        rank = 8
        vectors = np.split(right[:rank], 2, axis=1)
        kept = []
        for vector in vectors:
            edge = np.sort(np.abs(vector), axis=None)[::-1][int(0.4 * vector.size) - 1]
            kept.append(np.where(np.abs(vector) >= edge, vector, 0))
        agrees = np.sign(kept) == np.where(np.sum(kept, 0) >= 0, 1, -1)
        mean = (np.stack(kept) * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
        assert np.allclose(found[name].numpy(), (left[:, :rank] * spectrum[:rank]) @ mean, atol=1e-5)


def test_a_model_with_its_adapter_takes_part_in_any_merge(base: Path, tmp_path: Path) -> None:
    folders = [adapter(base, tmp_path / str(seed), seed=seed) for seed in range(2)]
    models = [
        {"model": f"{base}+{folder}", "weight": weight} for folder, weight in zip(folders, (0.5, 2.0), strict=True)
    ]
    block = {"method": "task_arithmetic", "base": str(base), "models": models}
    done = merge_models(read_merge(block, "recipe", METHODS), tmp_path / "out")
    assert all("+" in model.fingerprint for model in done.lineage.models[1:])
    merged, plain = load_file(tmp_path / "out/model.safetensors"), load_file(base / "model.safetensors")
    wanted = weighted([(weight, deltas(base, folder)) for weight, folder in zip((0.5, 2.0), folders, strict=True)])
    for name, change in wanted.items():
        weight = name.removeprefix("base_model.model.") + ".weight"
        assert torch.allclose(merged[weight], plain[weight] + change.float(), atol=1e-5)
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged[untouched], plain[untouched])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias: all"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
    ],
)
def test_what_is_more_than_a_product_is_refused(
    base: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    one = adapter(base, tmp_path / "one", **settings)
    if "init_lora_weights" in settings:  # PEFT forgets it when it saves
        config = json.loads((one / "adapter_config.json").read_text())
        (one / "adapter_config.json").write_text(json.dumps(config | settings))
    with pytest.raises(ScalerError, match=said):
        merge([(one, 1.0)], tmp_path / "out")


def test_adapters_of_other_bases_are_refused(base: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "model", hidden_size=64)
    mine, theirs = adapter(base, tmp_path / "mine"), adapter(other, tmp_path / "theirs")
    with pytest.raises(ScalerError, match="belongs to"):
        merge([(mine, 1.0), (theirs, 1.0)], tmp_path / "out")
    config = json.loads((theirs / "adapter_config.json").read_text())
    (theirs / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    with pytest.raises(ScalerError, match=r"\[32, 48\] in .*mine, \[64, 48\] in .*theirs"):
        merge([(mine, 1.0), (theirs, 1.0)], tmp_path / "out")
    block = {"method": "linear", "models": [{"model": str(base)}, {"model": f"{base}+{theirs}"}]}
    with pytest.raises(ScalerError, match="another base") as refused:
        prepare(read_merge(block, "recipe", METHODS))
    assert "another base" in refused.value.cure


def test_a_base_of_the_same_shapes_with_other_weights_is_refused_and_a_copy_is_not(base: Path, tmp_path: Path) -> None:
    copy, other = shutil.copytree(base, tmp_path / "copy"), make(tmp_path / "other", seed=1)
    one = adapter(base, tmp_path / "one")
    named_parent(f"{copy}+{one}")
    with pytest.raises(ScalerError, match=f"made for {base}, whose .*weight is not that of {other}") as refused:
        named_parent(f"{other}+{one}")
    assert refused.value.cure == f"name its own base: {base}+{one}"
    config = json.loads((one / "adapter_config.json").read_text())
    (one / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/elsewhere"}))
    named_parent(f"{other}+{one}")  # whose base is not at hand cannot be told


def test_broken_numbers_in_an_adapter_are_refused(base: Path, tmp_path: Path) -> None:
    one = adapter(base, tmp_path / "one")
    weights = load_file(one / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("inf")
    save_file(weights, one / "adapter_model.safetensors")
    with pytest.raises(ScalerError, match="holds NaN or infinity"):
        merge([(one, 1.0)], tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one"]


def test_a_look_foretells_the_error_that_a_rank_then_makes(base: Path, tmp_path: Path) -> None:
    folders = [adapter(base, tmp_path / str(seed), seed=seed, r=6) for seed in range(2)]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"merge": {"adapters": [{"adapter": str(folder)} for folder in folders]}}))
    looked = CliRunner().invoke(app, ["merge", str(recipe)])
    assert looked.exit_code == 0 and "cosines" in looked.output, looked.output
    made = merge([(folder, 1.0) for folder in folders], tmp_path / "out", rank=8)
    said = next(line for line in looked.output.splitlines() if "error at rank 8" in line)
    assert f"{made.predicted_error:.2%}" in said and made.predicted_error > 0
    assert "rank of the sum" in looked.output and "12" in looked.output


def test_the_command_merges_adapters_as_well(base: Path, tmp_path: Path) -> None:
    folders = [adapter(base, tmp_path / str(seed), seed=seed) for seed in range(2)]
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": {"adapters": [{"adapter": str(folder)} for folder in folders], "rank": 4}}))
    answer = CliRunner().invoke(app, ["merge", str(file), "-o", str(tmp_path / "out")])
    assert answer.exit_code == 0 and "singular values left out" in answer.output
    file.write_text(json.dumps({"merge": {"adapters": [{"adapter": "x", "wieght": 1}]}}))
    answer = CliRunner().invoke(app, ["merge", str(file), "-o", str(tmp_path / "out2")])
    assert isinstance(answer.exception, ScalerError) and "did you mean weight" in str(answer.exception)
