"""A size in, a growth out: it hits the size, keeps the function, and says why."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from scaler_wizard.architecture import FAMILIES, Blueprint
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import grown_size
from scaler_wizard.target import (
    TOLERANCE,
    USABLE,
    cache_bytes,
    inference_bytes,
    parse_target,
    solve,
    target_size,
)

SIZES: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 1024,
    "shared_intermediate_size": 1024,
    "num_experts": 4,
    "num_local_experts": 4,
    "head_dim": 64,
}


def model(family: str = "llama", **changes: Any) -> Blueprint:
    return Blueprint({"model_type": family} | SIZES | changes)


@pytest.mark.parametrize("times", [1.02, 1.1, 1.3, 1.5, 2.0, 2.6, 4.0, 10.0, 60.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reaches_every_size_within_two_percent_and_keeps_its_function(family: str, times: float) -> None:
    base = model(family)
    wanted = round(base.parameters * times)

    solution = solve(base, wanted)

    assert grown_size(base, solution.operators) == solution.parameters
    assert abs(solution.parameters / wanted - 1) <= TOLERANCE
    assert solution.preserves in ("bitwise", "exact")
    assert all(option.preserves != "no" for option in solution.alternatives)


def test_a_little_growth_is_identity_blocks_since_they_keep_every_bit() -> None:
    base = model()
    solution = solve(base, round(base.parameters * 1.2))
    assert [operator.op for operator in solution.operators] == ["identity_blocks"]
    assert solution.preserves == "bitwise"


def test_half_as_much_again_grows_depth_and_width_of_the_blocks_in_proportion() -> None:
    base = model()
    view = solve(base, 200_000_000).view
    depth, width = view.layers / base.layers, view.ffn / base.ffn
    assert depth > 1.1 and width > 1.1
    assert 0.85 < depth / width < 1.18
    assert view.ffn % 64 == 0
    assert view.hidden == base.hidden


def test_large_factors_widen_the_stream_with_heads_that_divide_it() -> None:
    base = model()
    view = solve(base, 4 * base.parameters).view
    assert view.hidden > base.hidden and view.layers > base.layers and view.ffn > base.ffn
    assert view.hidden % view.heads == 0 == view.heads % view.kv_heads


def test_alternatives_differ_and_carry_their_costs() -> None:
    solution = solve(model(), 200_000_000, context=4096)
    titles = [solution.title, *(option.title for option in solution.alternatives)]
    assert len(set(titles)) == len(titles) >= 3
    for option in (solution, *solution.alternatives):
        assert any("arithmetic per token" in reason for reason in option.reasons)
        assert any("4096 tokens" in reason for reason in option.reasons)


def test_a_mixture_is_offered_where_it_keeps_tokens_cheap() -> None:
    base = model()
    mixtures = [option for option in solve(base, 3 * base.parameters).alternatives if option.view.experts]
    assert mixtures and mixtures[0].view.count("num_experts_per_tok") < (mixtures[0].view.experts or 0)


def test_only_allowed_operators_are_used() -> None:
    base = model()
    solution = solve(base, 2 * base.parameters, allow=["widen_ffn"])
    assert {operator.op for operator in solution.operators} == {"widen_ffn"}
    assert not solution.alternatives


def test_stacking_is_used_only_when_it_is_named() -> None:
    base = model()
    solution = solve(base, round(1.5 * base.parameters), allow=["stack_layers", "widen_ffn"])
    assert solution.operators[0].op == "stack_layers"
    assert solution.preserves == "no"
    assert any("healed" in reason for reason in solution.reasons)


def test_an_operator_that_does_not_exist_is_refused_with_the_names_that_do() -> None:
    with pytest.raises(ScalerError, match="identity_blocks"):
        solve(model(), 200_000_000, allow=["lego"])


def test_a_model_too_small_for_the_size_gets_the_closest_and_is_told_so() -> None:
    base = model(hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8, vocab_size=16)
    base = base.changed(num_attention_heads=2, num_key_value_heads=1)
    solution = solve(base, base.parameters + 1)
    assert abs(solution.error) > TOLERANCE
    assert any("closest" in reason for reason in solution.reasons)


def test_shrinking_and_absurd_growth_are_refused() -> None:
    base = model()
    for size in (base.parameters, base.parameters - 1, 65 * base.parameters):
        with pytest.raises(ScalerError) as refusal:
            solve(base, size)
        assert refusal.value.cure


@pytest.mark.parametrize(
    ("text", "parameters"),
    [("1.5x", 4_500_000_000), ("200M", 200_000_000), ("3B -> 7B", 7_000_000_000), ("3.2B→2x", 6_000_000_000)],
)
def test_sizes_are_read_as_people_write_them(text: str, parameters: int) -> None:
    assert parse_target(text, 3_000_000_000) == parameters


def test_the_wrong_base_in_an_arrow_is_noticed() -> None:
    with pytest.raises(ScalerError, match="1B"):
        parse_target("1B -> 7B", 3_000_000_000)


@pytest.mark.parametrize("text", ["huge", "x", "fit 12 GB of VRAM at lunch", "-> 7B", ""])
def test_what_is_no_size_is_refused_in_two_lines(text: str) -> None:
    with pytest.raises(ScalerError):
        target_size(text, model())


def test_the_largest_model_that_fits_leaves_room_and_little_of_it() -> None:
    base, budget = model(), 2 * 2**30
    size = target_size("fit 2 GB of VRAM at 16K context", base)
    used = inference_bytes(solve(base, size).view, 16384)
    assert 0.85 * USABLE * budget < used <= USABLE * budget


def test_a_longer_context_leaves_less_room_for_parameters() -> None:
    assert target_size("fit 2G at 32K", model()) < target_size("fit 2G at 4K", model())


def test_memory_too_small_for_the_model_itself_is_refused() -> None:
    with pytest.raises(ScalerError, match="the model itself needs"):
        target_size("fit 100M of VRAM", model())


def test_sliding_windows_bound_the_cache() -> None:
    mixed = model("gemma2", sliding_window=1024)
    full = cache_bytes(mixed.changed(layer_types=["full_attention"] * 30), 8192)
    assert cache_bytes(mixed, 8192) == full * (8192 + 1024) // (2 * 8192)


def test_no_torch_is_loaded() -> None:
    code = "import sys, scaler_wizard.target; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
