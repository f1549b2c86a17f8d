"""More heads, same function: in every family, with biases, norms and fused projections, whatever the group size."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    AddKvGroups,
    AddQueryHeads,
    GrowthOperator,
    IdentityBlocks,
    NewPart,
    SplitKvHeads,
    WidenFfn,
    grow_program,
    grown_size,
    new_parameters,
)
from scaler_wizard.weights import write
from tiny_models import EVERY, logits, make

WIDE_NORMS = ("olmo2", "flex_olmo")


def difference(folder: Path, *operators: GrowthOperator) -> float:
    source = read_architecture(folder)
    write(grow_program(source, operators, seed=1), folder / "grown", durable=False)
    assert read_architecture(folder / "grown").parameters == grown_size(source, operators)
    return float((logits(folder) - logits(folder / "grown")).abs().max())


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("operator", [AddKvGroups(groups=2), AddQueryHeads(per_group=2)])
def test_new_heads_keep_the_function_or_are_refused(tmp_path: Path, family: str, operator: GrowthOperator) -> None:
    make(tmp_path, family)
    if family in WIDE_NORMS:
        with pytest.raises(ScalerError, match="across heads"):
            difference(tmp_path, operator)
        return
    assert difference(tmp_path, operator) < 1e-4
    assert read_architecture(tmp_path / "grown").heads == 8


@pytest.mark.parametrize("family", EVERY)
def test_split_key_value_heads_keep_the_function(tmp_path: Path, family: str) -> None:
    assert difference(make(tmp_path, family), SplitKvHeads(heads=4)) < 1e-4
    assert read_architecture(tmp_path / "grown").kv_heads == 4


@given(kv=st.integers(1, 3), group=st.integers(1, 3), more=st.integers(1, 2), dim=st.sampled_from([4, 6]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_grouping_fits_where_the_configuration_allows_it(
    tmp_path: Path, kv: int, group: int, more: int, dim: int
) -> None:
    make(tmp_path, "mistral", num_attention_heads=kv * group, num_key_value_heads=kv, head_dim=dim)
    operators = [
        AddKvGroups(groups=more),
        AddQueryHeads(per_group=more),
        SplitKvHeads(heads=(kv + more) * (group + more)),
    ]
    assert difference(tmp_path, *operators, IdentityBlocks(blocks=1), WidenFfn(size=64)) < 1e-4


def test_new_heads_are_random_and_silent(tmp_path: Path) -> None:
    difference(make(tmp_path), AddQueryHeads(per_group=2))
    old, new = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "grown/model.safetensors")
    q, o = new["model.layers.0.self_attn.q_proj.weight"], new["model.layers.0.self_attn.o_proj.weight"]
    before = old["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(q[:16], before[:16]) and torch.equal(q[32:48], before[16:])
    assert not torch.equal(q[16:32], q[48:]) and abs(q[16:32].std() / before.std() - 1) < 0.2
    assert o[:, 16:32].abs().max() == 0 and o[:, 48:].abs().max() == 0


def test_new_heads_are_accounted_for(tmp_path: Path) -> None:
    source = read_architecture(make(tmp_path, "phi3"))
    new = new_parameters(source, [AddKvGroups(groups=2)]).tensors
    assert new["model.layers.0.self_attn.qkv_proj.weight"] == NewPart(rows=((32, 64), (80, 96), (112, 128)))
    assert new["model.layers.0.self_attn.o_proj.weight"] == NewPart(columns=((32, 64),))
    split = new_parameters(source, [SplitKvHeads(heads=4)]).tensors
    assert split["model.layers.0.self_attn.qkv_proj.weight"] == NewPart(rows=((40, 48), (56, 64), (72, 80), (88, 96)))


@pytest.mark.parametrize(
    ("family", "operator", "words"),
    [
        ("llama", AddKvGroups(groups=1), "heads divide"),
        ("olmo2", AddKvGroups(groups=2), "across heads"),
        ("olmo2", AddQueryHeads(per_group=1), "across heads"),
        ("llama", SplitKvHeads(heads=3), "choose from 4"),
        ("llama", SplitKvHeads(heads=8), "choose from 4"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_planned(
    tmp_path: Path, family: str, operator: GrowthOperator, words: str
) -> None:
    with pytest.raises(ScalerError, match=words):
        grown_size(read_architecture(make(tmp_path, family)), [operator])
