"""Deeper and wider models say the same as before, in every family, and the account of what is new is right."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from safetensors.torch import load_file

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    OPERATORS,
    GrowthOperator,
    IdentityBlocks,
    NewPart,
    Operator,
    WidenFfn,
    grow_program,
    grown_size,
    new_parameters,
    promise,
)
from scaler_wizard.weights import write
from tiny_models import EVERY, load, logits, make


def difference(folder: Path, *operators: GrowthOperator) -> float:
    """Largest change of a logit in fp32; also checks that sizes are predicted and that stock transformers loads it."""
    source = read_architecture(folder)
    write(grow_program(source, operators, seed=1), folder / "grown", durable=False)
    model = load(folder / "grown")
    assert sum(parameter.numel() for parameter in model.parameters()) == grown_size(source, operators)
    assert read_architecture(folder / "grown").parameters == grown_size(source, operators)
    return float((logits(folder) - logits(folder / "grown")).abs().max())


@pytest.mark.parametrize("family", EVERY)
def test_identity_blocks_change_no_bit(tmp_path: Path, family: str) -> None:
    assert difference(make(tmp_path, family), IdentityBlocks(blocks=2)) == 0.0


@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_any_number_of_blocks_fits(tmp_path: Path, blocks: int) -> None:
    assert difference(make(tmp_path, "gemma2"), IdentityBlocks(blocks=blocks)) == 0.0
    assert read_architecture(tmp_path / "grown").layers == 3 + blocks


def test_identity_blocks_change_no_bit_in_bf16(tmp_path: Path) -> None:
    assert difference(make(tmp_path, dtype="bfloat16"), IdentityBlocks(blocks=2)) == 0.0


@pytest.mark.parametrize("split", ["pairs", "zero", "net2net"])
@pytest.mark.parametrize("family", EVERY)
def test_wider_feed_forward_blocks_keep_the_function(tmp_path: Path, family: str, split: str) -> None:
    assert difference(make(tmp_path, family), WidenFfn.model_validate({"size": 80, "split": split})) < 1e-3


@given(
    ffn=st.integers(4, 40),
    more=st.integers(1, 40),
    blocks=st.integers(1, 4),
    tied=st.booleans(),
    family=st.sampled_from(["llama", "llama-biased", "phi3", "olmo2"]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_operators_compose_in_any_shape(
    tmp_path: Path, ffn: int, more: int, blocks: int, tied: bool, family: str
) -> None:
    make(tmp_path, family, intermediate_size=ffn, tie_word_embeddings=tied)
    pairs, deeper = WidenFfn(size=ffn + 2 * more), IdentityBlocks(blocks=blocks)
    wider = WidenFfn(size=ffn + 3 * more, split="zero")
    assert difference(tmp_path, pairs, deeper, wider) < 1e-3
    assert difference(tmp_path, deeper, pairs) < 1e-3


def test_new_neurons_differ_and_learn_at_once(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path))
    write(grow_program(source, [WidenFfn(size=64)], seed=1), tmp_path / "grown")
    model = load(tmp_path / "grown")
    model(torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
    down = model.model.layers[1].mlp.down_proj.weight
    up = model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(down[:, 48:56], -down[:, 56:]) and torch.equal(up[48:56], up[56:])
    assert up.grad is not None and torch.allclose(up.grad[48:56], -up.grad[56:], atol=1e-6)
    assert up.grad[48:56].abs().max() > 0


def test_what_is_new_is_told(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path, "phi3"))
    new = new_parameters(source, [WidenFfn(size=64, split="zero"), IdentityBlocks(blocks=1)]).tensors
    assert new["model.layers.0.mlp.down_proj.weight"] == NewPart(columns=((48, 64),))
    assert new["model.layers.2.mlp.gate_up_proj.weight"] == NewPart(rows=((48, 64), (112, 128)))
    assert new["model.layers.3.self_attn.qkv_proj.weight"] == NewPart(whole=True)
    assert "model.embed_tokens.weight" not in new and "model.layers.0.self_attn.o_proj.weight" not in new


def test_what_is_not_new_is_as_it_was(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path, "phi3"))
    operators = [WidenFfn(size=64), WidenFfn(size=96, split="zero")]
    write(grow_program(source, operators, seed=1), tmp_path / "grown")
    old, new = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "grown/model.safetensors")
    for name, part in new_parameters(source, operators).tensors.items():
        keep = torch.ones(new[name].shape, dtype=torch.bool)
        for start, stop in part.rows:
            keep[start:stop] = False
        for start, stop in part.columns:
            keep[:, start:stop] = False
        assert torch.equal(new[name][keep], old[name].flatten()), name


def test_what_cannot_be_done_is_refused_with_a_cure(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path))
    for operator, words in [
        (WidenFfn(size=48), "not above"),
        (WidenFfn(size=51), "even number"),
        (WidenFfn(size=200, split="net2net"), "doubles"),
    ]:
        with pytest.raises(ScalerError, match=words):
            grown_size(source, [operator])


def test_a_chain_promises_what_its_weakest_member_does() -> None:
    assert promise([IdentityBlocks(blocks=1)]) == "bitwise"
    assert promise([IdentityBlocks(blocks=1), WidenFfn(size=64)]) == "exact"


def test_every_operator_has_a_row_and_survives_json() -> None:
    adapter: TypeAdapter[GrowthOperator] = TypeAdapter(Operator)
    names = {schema["properties"]["op"]["const"] for schema in adapter.json_schema()["$defs"].values()}
    assert names == set(OPERATORS)
    assert adapter.validate_python({"op": "widen_ffn", "size": 64}) == WidenFfn(size=64)
    for operator in OPERATORS.values():
        assert operator.title and operator.paper and operator.trains_first
