"""A proof passes where the function is kept, fails where it is not, and fails where it cannot run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaler_wizard.architecture import read_architecture
from scaler_wizard.grow import (
    GrowthOperator,
    HyperClone,
    IdentityBlocks,
    SplitKvHeads,
    WidenFfn,
    WidenHidden,
    grow_program,
    promise,
)
from scaler_wizard.prove import Check, _too_large, judge, prove
from scaler_wizard.record import from_json, to_json
from scaler_wizard.weights import write
from tiny_models import EVERY, make

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [40, 3, 20, 5, 60, 7], [9] * 8]


def grow(folder: Path, *operators: GrowthOperator) -> Path:
    write(grow_program(read_architecture(folder), operators), folder / "grown", durable=False)
    return folder / "grown"


def spoil(folder: Path, name: str, by: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] += by
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", EVERY)
def test_growth_that_keeps_the_function_is_proved(tmp_path: Path, family: str) -> None:
    operators = [WidenFfn(size=64), IdentityBlocks(blocks=1)]
    proof = prove(make(tmp_path, family), grow(tmp_path, *operators), PROMPTS, promised=promise(operators))
    assert proof.passed, proof.reason
    assert [check.way for check in proof.checks] == ["plain", "cached", "padded"]
    assert proof.largest_difference is not None and 0 < proof.largest_difference < 1e-4


@pytest.mark.parametrize("family", EVERY)
def test_equal_bits_are_proved(tmp_path: Path, family: str) -> None:
    proof = prove(make(tmp_path, family), grow(tmp_path, IdentityBlocks(blocks=2)), PROMPTS, promised="bitwise")
    assert proof.passed and all(check.bitwise for check in proof.checks)
    assert proof.largest_difference == 0.0


def test_badly_aligned_files_are_no_difference(tmp_path: Path) -> None:
    make(tmp_path, num_hidden_layers=1)
    grown = grow(tmp_path, IdentityBlocks(blocks=1))
    raw = (grown / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    shifted = (length + 8).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * 8 + raw[8 + length :]
    (grown / "model.safetensors").write_bytes(shifted)
    assert prove(tmp_path, grown, PROMPTS, promised="bitwise").passed


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight"])
def test_a_spoiled_weight_fails_the_proof(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    grown = grow(tmp_path, IdentityBlocks(blocks=1))
    spoil(grown, name, 0.5)
    for promised in ("bitwise", "exact"):
        proof = prove(tmp_path, grown, PROMPTS, promised=promised)  # type: ignore[arg-type]
        assert not proof.passed and proof.largest_difference is not None and proof.largest_difference > 1e-3


def test_a_small_difference_is_not_bitwise(tmp_path: Path) -> None:
    make(tmp_path)
    grown = grow(tmp_path, IdentityBlocks(blocks=1))
    spoil(grown, "model.norm.weight", 1e-6)
    assert not prove(tmp_path, grown, PROMPTS, promised="bitwise").passed
    assert prove(tmp_path, grown, PROMPTS, promised="exact").passed


def test_weights_that_are_missing_fail_the_proof(tmp_path: Path) -> None:
    make(tmp_path)
    grown = grow(tmp_path, IdentityBlocks(blocks=1))
    tensors = load_file(grown / "model.safetensors")
    del tensors["model.layers.3.mlp.down_proj.weight"]
    save_file(tensors, grown / "model.safetensors", metadata={"format": "pt"})
    proof = prove(tmp_path, grown, PROMPTS, promised="no")
    assert not proof.passed and "the weights lack it" in proof.reason and proof.checks == ()


def test_a_proof_that_cannot_run_has_failed(tmp_path: Path) -> None:
    make(tmp_path)
    assert not prove(tmp_path, tmp_path / "absent", PROMPTS, promised="no").passed
    assert not prove(tmp_path, tmp_path, [], promised="bitwise").passed
    assert not prove(tmp_path, tmp_path, [[1, 2]], promised="bitwise").passed


def test_logits_that_are_not_finite_fail_whatever_was_promised(tmp_path: Path) -> None:
    make(tmp_path)
    grown = grow(tmp_path, IdentityBlocks(blocks=1))
    spoil(grown, "model.norm.weight", float("nan"))
    proof = prove(tmp_path, grown, PROMPTS, promised="no")
    assert not proof.passed and math.isnan(proof.largest_difference or 0)
    assert "not finite" in proof.reason
    assert math.isnan(from_json(to_json(proof))["kl"])


def test_a_broken_cache_or_padding_is_found() -> None:
    good = Check(way="plain", positions=9, largest_difference=0.0, logit_scale=5.0, kl=0.0, bitwise=True)
    for way in ("cached", "padded"):
        bad = good.model_copy(update={"way": way, "largest_difference": 0.1, "bitwise": False})
        assert not judge([good, bad], "exact").passed


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    grown = grow(tmp_path, IdentityBlocks(blocks=1))
    prove(tmp_path, grown, PROMPTS, promised="bitwise")
    assert not (tmp_path / "ran").exists() and "auto_map" not in (grown / "config.json").read_text()
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("family", EVERY)
def test_layer_by_layer_is_the_same_computation(tmp_path: Path, family: str) -> None:
    operators = [WidenFfn(size=64), IdentityBlocks(blocks=1)]
    make(tmp_path, family)
    grown = grow(tmp_path, *operators)
    equal = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]
    whole = prove(tmp_path, grown, equal, promised="exact", layerwise=False)
    layers = prove(tmp_path, grown, equal, promised="exact", layerwise=True)
    assert layers.passed, layers.reason
    padded = [next(check for check in proof.checks if check.way == "padded") for proof in (whole, layers)]
    assert padded[0] == padded[1] and padded[0].largest_difference > 0


def test_layer_by_layer_finds_a_spoiled_weight(tmp_path: Path) -> None:
    make(tmp_path, "mixtral")
    grown = grow(tmp_path, IdentityBlocks(blocks=1))
    assert prove(tmp_path, grown, PROMPTS, promised="bitwise", layerwise=True).passed
    spoil(grown, "model.layers.1.block_sparse_moe.experts.2.w3.weight", 5.0)
    assert not prove(tmp_path, grown, PROMPTS, promised="exact", layerwise=True).passed


LONG = [[(7 * place + 3 * row) % 64 for place in range(48)] for row in range(6)]


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("operator", [WidenHidden(size=44), HyperClone(times=2), HyperClone(times=3)])
def test_rescaled_weights_in_16_bits_are_judged_unrounded_and_as_stored(
    tmp_path: Path, operator: GrowthOperator, layerwise: bool
) -> None:
    make(tmp_path, dtype="bfloat16", num_attention_heads=2, head_dim=16)
    program = grow_program(read_architecture(tmp_path), [operator])
    grown = grow(tmp_path, operator)
    proof = prove(tmp_path, grown, LONG, promised="exact", program=program, layerwise=layerwise)
    assert proof.passed, proof.reason
    assert "before its weights are rounded" in proof.reason and (proof.largest_difference or 1) < 1e-3
    stored = next(check for check in proof.checks if check.way == "stored")
    assert stored.own_kl is not None and 0 < stored.kl <= 1.5 * stored.own_kl
    assert not prove(tmp_path, grown, LONG, promised="exact", layerwise=layerwise).passed


def test_a_16_bit_model_further_from_its_base_than_the_base_itself_is_refused(tmp_path: Path) -> None:
    make(tmp_path, dtype="bfloat16")
    operator = WidenHidden(size=44)
    program = grow_program(read_architecture(tmp_path), [operator])
    grown = grow(tmp_path, operator)
    spoil(grown, "model.layers.1.mlp.down_proj.weight", 0.3)
    proof = prove(tmp_path, grown, LONG, promised="exact", program=program)
    assert not proof.passed and "of the base itself" in proof.reason


@pytest.mark.parametrize("operator", [IdentityBlocks(blocks=1), WidenFfn(size=64, split="zero"), SplitKvHeads(heads=4)])
def test_equal_bits_are_also_asked_of_the_stored_type(tmp_path: Path, operator: GrowthOperator) -> None:
    make(tmp_path, dtype="bfloat16")
    proof = prove(tmp_path, grow(tmp_path, operator), LONG, promised=operator.preserves)
    assert proof.passed and [check.way for check in proof.checks] == ["plain", "cached", "padded", "stored"]


def test_a_model_larger_than_the_free_memory_is_run_layer_by_layer(tmp_path: Path) -> None:
    assert _too_large(10**13, tmp_path) and not _too_large(10**6, tmp_path)


CHILD = """
import sys
from pathlib import Path
from scaler_wizard.prove import prove
proof = prove(Path(sys.argv[1]), Path(sys.argv[2]), [list(range(8))], promised="bitwise", layerwise=sys.argv[3] == "l")
peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]  # of this program alone
print(int(proof.passed), int(peak) // 1024)
"""


@pytest.mark.slow
def test_layer_by_layer_needs_the_memory_of_a_layer(tmp_path: Path) -> None:
    make(tmp_path, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, head_dim=64, vocab_size=512)
    grown = grow(tmp_path, IdentityBlocks(blocks=8))  # 640 MB in fp32
    peaks = {}
    for way in ("w", "l"):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(grown), way]
        passed, peaks[way] = map(
            int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        )
        assert passed == 1
    assert peaks["l"] < peaks["w"] - 350
