"""Stretched windows are what transformers computes, stay one function with a cache, and fold into plain weights."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from scaler_wizard.architecture import Blueprint, read_architecture
from scaler_wizard.context.fold import fold_program, static_factors
from scaler_wizard.context.frequencies import FORMULAS, frequencies
from scaler_wizard.context.rope import (
    GLOBAL,
    LOCAL,
    METHODS,
    cautions,
    extended_config,
    native_window,
    positions,
    rope_of,
    rope_sets,
)
from scaler_wizard.errors import ScalerError
from scaler_wizard.weights import copy_companions, write
from tiny_models import logits, make

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "yarn": {"beta_fast": 14.4, "beta_slow": 1.48, "attention_factor": 1.339, "truncate": 0.0},
    "llama3": {"low_freq_factor": 2.0, "high_freq_factor": 8.0},
    "ntk": {"alpha": 5.0},
    "longrope": {"long_factor": [1 + i / 10 for i in range(32)], "short_factor": [1.0] * 32},
    "searched": {"beta_fast": 14.4, "beta_slow": 1.48, "temperature": 1.339},
}
NEEDED = {"longrope": {"long_factor": [1 + i / 10 for i in range(32)]}}
WAYS = [(method, {}) for method in METHODS] + [(method, options) for method, options in OPTIONS.items()]


def theirs(config: dict[str, Any], length: int | None = None) -> tuple[np.ndarray, float]:
    """Frequencies and scale of transformers' own rotary module, after a text of `length` tokens."""
    module = LlamaRotaryEmbedding(transformers.LlamaConfig(**copy.deepcopy(config)))
    if length is not None:
        module(torch.zeros(1, 1), torch.arange(length)[None])
    return module.inv_freq.numpy(), float(module.attention_scaling)


@pytest.mark.parametrize(("method", "options"), WAYS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("factor", [2, 4, 7.5])
@pytest.mark.parametrize("inside", [True, False])
def test_every_method_means_the_same_to_us_and_to_transformers(
    method: str, options: dict[str, Any], factor: float, inside: bool
) -> None:
    config = extended_config(CONFIG, int(2048 * factor), method, **(options or NEEDED.get(method, {})))
    length = 2048 if inside else int(2048 * factor)
    inverse, scale = theirs(config, length)
    base = positions(config)
    ours = frequencies(base.rope, width=base.width, window=base.window, length=length)
    np.testing.assert_allclose(ours.inverse, inverse, rtol=2e-6)
    assert ours.scale == pytest.approx(scale, rel=1e-9)


@pytest.mark.parametrize("kind", sorted(FORMULAS.keys() - {"default"}))
def test_settings_as_others_write_them_are_understood(kind: str) -> None:
    keys: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 512}
    own = {
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "longrope": {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
        "yarn": {"mscale": 0.7, "mscale_all_dim": 1.3},
    }
    rope = {"rope_type": kind, "rope_theta": 5e5, **keys, **own.get(kind, {})}
    config = transformers.LlamaConfig(**{**CONFIG, "rope_parameters": copy.deepcopy(rope)})
    inverse, scale = ROPE_INIT_FUNCTIONS[kind](config, seq_len=2048)
    ours = frequencies(rope, width=64, window=2048, length=2048)
    np.testing.assert_allclose(ours.inverse, inverse.numpy(), rtol=2e-6)
    assert ours.scale == pytest.approx(scale)


def test_a_type_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ScalerError, match="rope_type 'spiral'"):
        frequencies({"rope_type": "spiral", "rope_theta": 1e4}, width=8, window=64)


def test_searched_is_yarn_without_rounded_edges() -> None:
    yarn = extended_config(CONFIG, 8192, "yarn", beta_fast=14.4, beta_slow=1.48, attention_factor=1.339, truncate=0)
    searched = extended_config(CONFIG, 8192, "searched", beta_fast=14.4, beta_slow=1.48, temperature=1.339)
    (inverse, scale), (theirs_inverse, theirs_scale) = theirs(searched, 8192), theirs(yarn, 8192)
    np.testing.assert_allclose(inverse, theirs_inverse, rtol=2e-6)
    assert scale == theirs_scale


# -- traps of transformers 5 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["yarn", "llama3", "longrope", "searched"])
def test_the_native_window_stands_inside_the_rotary_settings(method: str) -> None:
    config = extended_config(CONFIG, 8192, method, **NEEDED.get(method, {}))
    assert config["rope_parameters"]["original_max_position_embeddings"] == 2048
    outside = {key: value for key, value in config["rope_parameters"].items() if key[:8] != "original"}
    lost = {**config, "rope_parameters": outside, "original_max_position_embeddings": None}
    del lost["original_max_position_embeddings"]
    assert transformers.LlamaConfig(**lost).rope_parameters["original_max_position_embeddings"] == 8192, "the trap"


def test_longrope_with_factors_of_one_changes_nothing_only_if_its_attention_factor_is_written(tmp_path: Path) -> None:
    before = logits(make(tmp_path))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    ones = {"long_factor": [1.0] * 4, "attention_factor": 1.0}
    extended = extended_config(config, 128, "longrope", **ones)
    file.write_text(json.dumps(extended))
    assert torch.equal(logits(tmp_path), before)
    del extended["rope_parameters"]["attention_factor"]
    file.write_text(json.dumps(extended))
    assert (logits(tmp_path) - before).abs().max() > 1e-3, "the trap"


def test_dynamic_keeps_max_position_embeddings_at_the_native_window() -> None:
    config = extended_config(CONFIG, 8192, "dynamic")
    assert config["max_position_embeddings"] == 2048
    assert theirs(config, 8192)[0][-1] < theirs(config, 2048)[0][-1]
    wrong = config | {"max_position_embeddings": 8192}
    np.testing.assert_array_equal(theirs(wrong, 8192)[0], theirs(CONFIG)[0])  # the trap: nothing is scaled


# -- caches ------------------------------------------------------------------------------------------------------------


def cache_difference(folder: Path, length: int = 120) -> float:
    """Largest difference of the last logits between one pass and a pass in two pieces with a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = model(ids).logits[0, -1]
        cache = model(ids[:, :50], use_cache=True).past_key_values
        again = model(ids[:, 50:], past_key_values=cache, use_cache=True).logits[0, -1]
    return float((whole - again).abs().max())


@pytest.mark.parametrize(
    ("method", "options", "consistent"),
    [
        ("yarn", {}, True),
        ("llama3", {}, True),
        ("ntk", {}, True),
        ("linear", {}, True),
        ("searched", {}, True),
        ("longrope", {"long_factor": [1.0, 1.5, 2.0, 4.0]}, True),
        ("longrope", {"long_factor": [1.0, 1.5, 2.0, 4.0], "short_factor": [1.0] * 4}, False),
        ("dynamic", {}, False),
    ],
)
def test_only_methods_that_do_not_follow_the_length_agree_with_their_cache(
    tmp_path: Path, method: str, options: dict[str, Any], consistent: bool
) -> None:
    make(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(extended_config(json.loads(file.read_text()), 128, method, **options)))
    difference = cache_difference(tmp_path)
    assert difference < 1e-4 if consistent else difference > 1e-2


def test_dynamic_and_too_large_factors_come_with_a_caution() -> None:
    view = Blueprint(CONFIG)
    assert not cautions(view, 4096, "yarn")
    assert "keys in a cache go stale" in cautions(view, 4096, "dynamic")[0]
    (told,) = cautions(view, 2048 * 16, "yarn")
    assert "16x is above the 8x" in told and "16384 tokens" in told


# -- bases that are scaled, have two sets, or slide -----------------------------------------------------------------


def test_a_base_that_is_scaled_already_keeps_its_scaling() -> None:
    llama31 = CONFIG | {
        "max_position_embeddings": 16384,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
    }
    with pytest.raises(ScalerError, match="would lose that scaling"):
        extended_config(llama31, 32768, "yarn")
    before, after = theirs(llama31)[0], theirs(extended_config(llama31, 32768, "searched"), 32768)[0]
    assert after[0] == pytest.approx(before[0])
    assert after[-1] == pytest.approx(before[-1] / 2)


def test_every_rung_is_computed_from_the_base() -> None:
    first = extended_config(CONFIG, 4096, "searched")
    second = extended_config(first, 8192, "searched", base=CONFIG)
    assert second == extended_config(CONFIG, 8192, "searched")
    assert native_window(second) == 2048


def test_gemma_3_stretches_its_global_layers_only(tmp_path: Path) -> None:
    make(tmp_path, "gemma3_text", max_position_embeddings=64, num_hidden_layers=6)
    config = json.loads((tmp_path / "config.json").read_text())
    extended = extended_config(config, 256, "searched")
    (tmp_path / "config.json").write_text(json.dumps(extended))
    before = Gemma3RotaryEmbedding(transformers.Gemma3TextConfig(**config))
    after = Gemma3RotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    assert torch.equal(before.sliding_attention_inv_freq, after.sliding_attention_inv_freq)
    assert after.full_attention_inv_freq[-1] == before.full_attention_inv_freq[-1] / 4
    assert after.full_attention_attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_old_gemma_3_files_are_read_with_both_sets() -> None:
    old = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    sets = rope_sets({**old, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert sets[GLOBAL] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    assert sets[LOCAL] == {"rope_type": "default", "rope_theta": 1e4}


def test_old_rope_scaling_is_read() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert rope_of(old) == {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}


def test_a_model_that_slides_everywhere_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "mistral")
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ScalerError, match="looks back over 8 tokens only"):
        extended_config(config, 128)
    assert extended_config({**config, "sliding_window": None}, 128)["max_position_embeddings"] == 128


def test_one_set_for_sliding_and_global_layers_is_said_aloud(tmp_path: Path) -> None:
    make(tmp_path, "gemma2")
    assert "sliding layers are stretched" in cautions(read_architecture(tmp_path), 128, "yarn")[0]


@pytest.mark.parametrize(("family", "reason"), [("gpt2", "absolute positions"), ("bloom", "ALiBi")])
def test_models_without_rotary_positions_are_refused_with_the_reason(tmp_path: Path, family: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ScalerError, match=reason):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("method", "options", "wrong"),
    [
        ("spiral", {}, "spiral: no such method"),
        ("yarn", {"betafast": 3}, "betafast: no such option"),
        ("longrope", {"long_factor": [1.0]}, "1 numbers; this model needs 32"),
        ("searched", {"beta_fast": 1.0, "beta_slow": 2.0}, "must be below"),
    ],
)
def test_slips_are_two_lines(method: str, options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ScalerError, match=wrong):
        extended_config(CONFIG, 4096, method, **options)


# -- the form for every runtime --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama-biased", {}),
        ("qwen2", {"use_sliding_window": False}),
        ("qwen3", {"use_sliding_window": False}),
        ("gemma2", {}),
        ("gemma3_text", {"num_hidden_layers": 6}),
        ("phi3", {}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("olmo2", {}),
        ("granite", {}),
        ("mixtral", {}),
        ("qwen2_moe", {}),
    ],
)
def test_folding_the_scale_into_the_weights_keeps_the_function(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    make(tmp_path, family, **changes)
    file = tmp_path / "config.json"
    config = extended_config(json.loads(file.read_text()), 256, "yarn" if family != "phi3" else "searched")
    file.write_text(json.dumps(config))
    before = logits(tmp_path, length=100)
    write(fold_program(read_architecture(tmp_path)), tmp_path / "folded", durable=False)
    copy_companions(tmp_path, tmp_path / "folded")
    folded = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert static_factors(folded)[1] == 1.0 < static_factors(config)[1]
    assert static_factors(folded)[0] == pytest.approx(static_factors(config)[0])
    assert (logits(tmp_path / "folded", length=100) - before).abs().max() < 2e-4 * before.abs().max()


def test_phi_3_is_written_in_the_only_form_that_it_understands(tmp_path: Path) -> None:
    make(tmp_path, "phi3")
    config = json.loads((tmp_path / "config.json").read_text())
    extended = extended_config(config, 256, "yarn")
    assert extended["rope_parameters"]["rope_type"] == "longrope"
    (tmp_path / "config.json").write_text(json.dumps(extended))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.rope_parameters["original_max_position_embeddings"] == 64
    yarn = frequencies(rope_of(extended_config({**config, "model_type": "llama"}, 256)), width=8, window=256)
    inverse, scale = ROPE_INIT_FUNCTIONS["longrope"](loaded, seq_len=256)
    np.testing.assert_allclose(inverse.numpy(), yarn.inverse, rtol=2e-6)
    assert scale == pytest.approx(yarn.scale)


def test_a_scheme_that_follows_the_length_cannot_be_folded(tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match="no fixed factors"):
        static_factors(extended_config(CONFIG, 8192, "dynamic"))
