"""Mixtures of experts and larger vocabularies, grown from dense models, say the same in stock transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    DuplicateExperts,
    GrowthOperator,
    GrowVocabulary,
    IdentityBlocks,
    NewPart,
    SharedExpert,
    SplitIntoExperts,
    Upcycle,
    WidenFfn,
    WidenHidden,
    grow_program,
    grown_size,
    new_parameters,
)
from scaler_wizard.weights import write
from tiny_models import EVERY, load, logits, make

DENSE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
    ("llama", {"rms_norm_eps": 1e-2, "num_key_value_heads": 4, "head_dim": 12}),
    ("mistral", {}),
    ("mistral", {"sliding_window": None, "head_dim": 12}),
]


def difference(folder: Path, *operators: GrowthOperator) -> float:
    source = read_architecture(folder)
    write(grow_program(source, operators, seed=1), folder / "grown", durable=False)
    assert read_architecture(folder / "grown").parameters == grown_size(source, operators)
    model = load(folder / "grown")
    assert sum(parameter.numel() for parameter in model.parameters()) == grown_size(source, operators)
    return float((logits(folder) - logits(folder / "grown")[..., :64]).abs().max())


@pytest.mark.parametrize(("family", "changes"), DENSE)
@pytest.mark.parametrize(
    "operator", [Upcycle(), Upcycle(experts=3, active=1, router_noise=0), SplitIntoExperts(experts=4)]
)
def test_equal_and_cut_experts_keep_the_function(
    tmp_path: Path, family: str, changes: dict[str, Any], operator: GrowthOperator
) -> None:
    assert difference(make(tmp_path, family, **changes), operator) < 1e-4
    assert read_architecture(tmp_path / "grown").family == "mixtral"


@pytest.mark.parametrize(
    ("family", "mixture", "changes"),
    [
        ("qwen3", "qwen3_moe", {"attention_bias": True}),
        ("olmo2", "flex_olmo", {"tie_word_embeddings": True}),
        ("granite", "granitemoe", {"attention_multiplier": 0.2, "attention_bias": True}),
    ],
)
@pytest.mark.parametrize("operator", [Upcycle(experts=3), SplitIntoExperts(experts=4)])
def test_families_with_a_mixture_of_their_own_become_it(
    tmp_path: Path, family: str, mixture: str, changes: dict[str, Any], operator: GrowthOperator
) -> None:
    assert difference(make(tmp_path, family, **changes), operator, WidenHidden(size=48), DuplicateExperts()) < 9
    assert difference(tmp_path, operator, IdentityBlocks(blocks=1), WidenHidden(size=48)) < 1e-3
    assert difference(tmp_path, operator) < 1e-4
    assert read_architecture(tmp_path / "grown").family == mixture
    fresh = new_parameters(read_architecture(tmp_path), [operator]).tensors
    if mixture == "granitemoe" and isinstance(operator, Upcycle):
        assert fresh["model.layers.0.block_sparse_moe.output_linear.weight"] == NewPart(rows=((32, 96),))


@pytest.mark.parametrize(("family", "changes"), [*DENSE, ("qwen2", {}), ("qwen2", {"use_sliding_window": False})])
def test_a_shared_expert_keeps_the_function(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    assert difference(make(tmp_path, family, **changes), SharedExpert(experts=6, active=3, size=20)) < 1e-4
    assert read_architecture(tmp_path / "grown").family == "qwen2_moe"


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "tie_word_embeddings": True}])
def test_granite_keeps_its_block_as_a_shared_expert(tmp_path: Path, changes: dict[str, Any]) -> None:
    operator = SharedExpert(experts=6, active=3, size=24)
    assert difference(make(tmp_path, "granite", **changes), operator, IdentityBlocks(blocks=1)) < 1e-5
    assert difference(tmp_path, operator) < 1e-5
    new = load_file(tmp_path / "grown/model.safetensors")
    experts = new["model.layers.0.block_sparse_moe.input_linear.weight"]  # (experts, gate and up, hidden)
    assert experts.shape == (6, 48, 32) and not torch.equal(experts[0], experts[1])
    assert not torch.equal(experts[0, :24], experts[0, 24:])
    fresh = new_parameters(read_architecture(tmp_path), [operator]).tensors
    assert not any("shared_mlp" in name for name in fresh) and any("input_linear" in name for name in fresh)


def test_equal_experts_change_no_bit_in_bf16(tmp_path: Path) -> None:
    assert difference(make(tmp_path, dtype="bfloat16"), Upcycle()) == 0.0


def test_new_routed_experts_are_distinct_at_once(tmp_path: Path) -> None:
    difference(make(tmp_path), SharedExpert(size=20))
    new = load_file(tmp_path / "grown/model.safetensors")
    ups = [new[f"model.layers.0.mlp.experts.{expert}.up_proj.weight"] for expert in range(4)]
    assert all(not torch.equal(ups[0], other) for other in ups[1:])
    assert new["model.layers.0.mlp.gate.weight"].std() > 0.01


def test_duplicated_experts_hold_their_originals(tmp_path: Path) -> None:
    difference(make(tmp_path, "mixtral"), DuplicateExperts(times=3, router_noise=0.01))
    old, new = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "grown/model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
    assert all(torch.equal(new[name.format(expert)], old[name.format(expert % 4)]) for expert in range(12))
    router, before = (part["model.layers.1.block_sparse_moe.gate.weight"] for part in (new, old))
    assert torch.equal(router[:4], before)
    assert 0.005 < (router[4:8] - before).std() < 0.02 and not torch.equal(router[4:8], router[8:])
    parts = new_parameters(read_architecture(tmp_path), [DuplicateExperts()]).tensors
    assert parts["model.layers.1.block_sparse_moe.gate.weight"] == NewPart(rows=((4, 8),))
    assert parts[name.format(4)] == NewPart(whole=True) and name.format(3) not in parts


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_experts_compose_with_depth_and_width(tmp_path: Path, family: str) -> None:
    first = [WidenHidden(size=64), IdentityBlocks(blocks=1), WidenFfn(size=64)]
    assert difference(make(tmp_path, family), *first, Upcycle()) < 1e-3
    assert difference(tmp_path, Upcycle(), *first) < 1e-3
    assert difference(tmp_path, SharedExpert(size=16), *first[:2]) < 1e-3


@pytest.mark.parametrize("family", EVERY)
def test_a_larger_vocabulary_keeps_the_old_logits(tmp_path: Path, family: str) -> None:
    assert difference(make(tmp_path, family), GrowVocabulary(size=70)) < 1e-5
    assert read_architecture(tmp_path / "grown").vocabulary == 128
    embedding = load(tmp_path / "grown").get_input_embeddings().weight
    assert (embedding[64:] - embedding[:64].mean(0)).abs().max() < 0.1 * embedding[:64].std()
    assert not torch.equal(embedding[64], embedding[65])


@pytest.mark.parametrize(
    ("family", "operator", "words"),
    [
        ("gemma2", Upcycle(), "no stock mixture"),
        ("qwen2", Upcycle(), "no stock mixture"),
        ("llama-biased", Upcycle(), "biases"),
        ("qwen3", SharedExpert(size=8), "no stock mixture"),
        ("llama", Upcycle(experts=2, active=3), "cannot be active"),
        ("llama", SplitIntoExperts(experts=5), "do not divide"),
        ("llama", SharedExpert(experts=2, active=3, size=8), "cannot be active"),
        ("llama", DuplicateExperts(), "no experts"),
        ("llama", GrowVocabulary(size=64), "not above"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(tmp_path: Path, family: str, operator: GrowthOperator, words: str) -> None:
    with pytest.raises(ScalerError, match=words):
        grown_size(read_architecture(make(tmp_path, family)), [operator])
