"""Every cell of docs/reference/growth.md is what happens to a real model of that family; shapes may be anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import OPERATORS, GrowthOperator, grow_program, grown, grown_size, promise
from scaler_wizard.inspection import applies, trials
from scaler_wizard.weights import write
from tiny_models import CONFIGS, FAMILIES, load, logits, make


def possible(name: str, folder: Path) -> GrowthOperator | None:
    """The first of an operator's trials that the model allows."""
    view = read_architecture(folder)
    for trial in trials(name, view):
        try:
            grown(view, [trial])
        except ScalerError:
            continue
        return trial
    return None


def difference(folder: Path, *operators: GrowthOperator) -> float:
    source = read_architecture(folder)
    write(grow_program(source, operators, seed=1), folder / "grown", durable=False)
    model = load(folder / "grown", "float32")
    assert sum(parameter.numel() for parameter in model.parameters()) == grown_size(source, operators)
    after = logits(folder / "grown", dtype="float32")
    return float((logits(folder, dtype="float32") - after[..., : source.vocabulary]).abs().max())


def test_the_page_is_fresh() -> None:
    script = Path(__file__).parents[1] / "scripts" / "generate_growth.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_does_to_every_family_what_it_says(tmp_path: Path, name: str, family: str) -> None:
    folder = make(tmp_path, family)
    operator = possible(name, folder)
    said = applies(name, read_architecture(folder)).preserves
    assert said == (operator.preserves if operator else None)
    if operator is not None:
        limit = {"bitwise": 0.0, "exact": 1e-4, "no": float("inf")}[operator.preserves]
        assert difference(folder, operator) <= limit


SHAPES: dict[str, Any] = {
    "family": st.sampled_from(FAMILIES),
    "names": st.lists(st.sampled_from(list(OPERATORS)), min_size=1, max_size=3),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 3),
    "head_dim": st.sampled_from([4, 8, 12]),
    "per_head": st.sampled_from([4, 8, 12]),
    "ffn": st.integers(2, 40),
    "layers": st.integers(1, 4),
    "tied": st.booleans(),
    "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
    "epsilon": st.sampled_from([1e-6, 1e-3, 0.1]),
}


def check(folder: Path, *, family: str, names: list[str], **shape: Any) -> None:
    """Grow a random model of a random shape by a random chain of operators, and compare what the chain promises."""
    heads = shape["kv_heads"] * shape["group"]
    if CONFIGS[family][1].keys() & {"num_experts", "num_local_experts"}:  # torch's grouped products want 16 bytes
        shape |= {"per_head": 8, "ffn": -(-shape["ffn"] // 8) * 8}
    make(
        folder,
        family,
        dtype=shape["dtype"],
        hidden_size=heads * shape["per_head"],
        intermediate_size=shape["ffn"],
        moe_intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=heads,
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        tie_word_embeddings=shape["tied"],
        rms_norm_eps=shape["epsilon"],
    )
    operators: list[GrowthOperator] = []
    view = read_architecture(folder)
    for name in names:
        for trial in trials(name, grown(view, operators)):
            try:
                grown(view, [*operators, trial])
            except ScalerError:
                continue
            operators.append(trial)
            break
    after = grown(view, operators)
    if not operators or promise(operators) == "no" or (after.experts and (after.ffn % 8 or after.hidden % 8)):
        return
    program = grow_program(view, operators, seed=1)
    scale = max(1.0, float(logits(folder, dtype="float32").abs().max()))
    rescaled = shape["dtype"] != "float32" and promise(operators) == "exact"
    found = unrounded(folder, program) if rescaled else difference(folder, *operators)
    assert found <= (0.0 if promise(operators) == "bitwise" else 1e-4 * scale), [
        str(operator) for operator in operators
    ]


def unrounded(folder: Path, program: Any) -> float:
    """The same before weights are rounded to 16 bits, which is what an operator promises."""
    from scaler_wizard.architecture import Blueprint
    from scaler_wizard.layerwise import from_program, layerwise_model

    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        after = layerwise_model(Blueprint(program.config), from_program(program), torch.float32)(tokens).logits
    before = logits(folder, dtype="float32")
    return float((before - after[..., : before.shape[-1]]).abs().max())


@given(**SHAPES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chain_keeps_its_promise_in_any_shape(tmp_path: Path, **shape: Any) -> None:
    check(tmp_path, **shape)


@pytest.mark.slow
@given(**SHAPES)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chain_keeps_its_promise_in_very_many_shapes(tmp_path: Path, **shape: Any) -> None:
    check(tmp_path, **shape)
