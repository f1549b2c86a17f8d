"""Wider models say the same: any width by zero lanes, whole multiples by cloning, in every family."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    AddKvGroups,
    GrowthOperator,
    HyperClone,
    IdentityBlocks,
    NewPart,
    WidenFfn,
    WidenHidden,
    grow_program,
    grown_size,
    new_parameters,
)
from scaler_wizard.weights import write
from tiny_models import EVERY, load, logits, make


def difference(folder: Path, *operators: GrowthOperator) -> float:
    source = read_architecture(folder)
    write(grow_program(source, operators, seed=1), folder / "grown", durable=False)
    assert read_architecture(folder / "grown").parameters == grown_size(source, operators)
    return float((logits(folder) - logits(folder / "grown")).abs().max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", EVERY)
def test_zero_lanes_keep_the_function_at_any_width(tmp_path: Path, family: str, tied: bool) -> None:
    assert difference(make(tmp_path, family, tie_word_embeddings=tied), WidenHidden(size=44)) < 1e-4
    grown = read_architecture(tmp_path / "grown")
    assert (grown.hidden, grown.head_dim, grown.tied) == (44, 8, tied)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "olmo2"])
def test_epsilon_is_corrected_where_it_matters(tmp_path: Path, family: str, epsilon: float) -> None:
    assert difference(make(tmp_path, family, rms_norm_eps=epsilon), WidenHidden(size=96)) < 1e-4


def test_four_times_the_width_is_exact_in_bf16_scales(tmp_path: Path) -> None:
    difference(make(tmp_path, dtype="bfloat16"), WidenHidden(size=128))
    old, new = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "grown/model.safetensors")
    assert torch.equal(new["model.norm.weight"][:32] * 2, old["model.norm.weight"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", EVERY)
def test_clones_keep_the_function_and_the_tie(tmp_path: Path, family: str, tied: bool) -> None:
    assert difference(make(tmp_path, family, tie_word_embeddings=tied), HyperClone(times=2)) < 1e-4
    assert read_architecture(tmp_path / "grown").tied == tied


@pytest.mark.parametrize("times", [2, 3, 4])
@pytest.mark.parametrize("noise", [None, 0.0, 10.0])
def test_any_number_of_clones_with_any_noise_keeps_the_function(
    tmp_path: Path, times: int, noise: float | None
) -> None:
    assert difference(make(tmp_path, "phi3"), HyperClone(times=times, noise_db=noise)) < 1e-4


def test_clones_without_noise_are_exact_copies_in_bf16(tmp_path: Path) -> None:
    difference(make(tmp_path, dtype="bfloat16"), HyperClone(times=2, noise_db=None))
    old, new = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "grown/model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(new[name] * 2, old[name].repeat(2, 2))


def test_noise_is_as_loud_as_asked_and_clones_part(tmp_path: Path) -> None:
    difference(make(tmp_path, hidden_size=64), HyperClone(times=2, noise_db=10))
    old, new = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "grown/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    noise = new[name] - old[name].repeat(2, 2) / 2
    assert abs(float(noise.std() / (old[name].std() / 2)) - 10**-0.5) < 0.02
    assert torch.allclose(noise[:, :64], -noise[:, 64:], atol=1e-6) and not torch.equal(noise[:48], noise[48:])
    model = load(tmp_path / "grown")
    model(torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
    gradient = model.model.layers[0].mlp.up_proj.weight.grad
    assert gradient is not None and not torch.allclose(gradient[:48], gradient[48:], rtol=0.01)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2"])
def test_widths_heads_neurons_and_depth_compose_in_one_pass(tmp_path: Path, family: str) -> None:
    operators = [WidenHidden(size=64), AddKvGroups(groups=2), WidenFfn(size=96), IdentityBlocks(blocks=2)]
    assert difference(make(tmp_path, family), *operators) < 1e-3
    assert difference(tmp_path, *reversed(operators)) < 1e-3
    assert difference(tmp_path, HyperClone(times=2), WidenHidden(size=80)) < 1e-3


def test_new_lanes_and_clones_are_accounted_for(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path, "phi3"))
    lanes = new_parameters(source, [WidenHidden(size=40)]).tensors
    assert lanes["model.layers.0.self_attn.o_proj.weight"] == NewPart(rows=((32, 40),))
    assert lanes["model.layers.0.self_attn.qkv_proj.weight"] == NewPart(columns=((32, 40),))
    clones = new_parameters(source, [HyperClone(times=2)]).tensors
    assert clones["model.layers.0.mlp.gate_up_proj.weight"] == NewPart(rows=((48, 96), (144, 192)), columns=((32, 64),))


@pytest.mark.parametrize(
    ("family", "operator", "words"),
    [("llama", WidenHidden(size=32), "not above"), ("llama", WidenHidden(size=33), "name 36")],
)
def test_widths_that_cannot_be_are_refused(tmp_path: Path, family: str, operator: GrowthOperator, words: str) -> None:
    with pytest.raises(ScalerError, match=words):
        grown_size(read_architecture(make(tmp_path, family)), [operator])
