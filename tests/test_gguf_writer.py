"""What is exported loads in llama.cpp itself and goes on exactly as in stock transformers; the rest is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from scaler_wizard.architecture import read_architecture
from scaler_wizard.context.rope import METHODS, extended_config
from scaler_wizard.errors import ScalerError
from scaler_wizard.fetch import cache_folder
from scaler_wizard.gguf_writer import attention_factor, frequency_factors, write_gguf
from scaler_wizard.grow import (
    AddKvGroups,
    AddQueryHeads,
    GrowthOperator,
    HyperClone,
    IdentityBlocks,
    SplitIntoExperts,
    SplitKvHeads,
    Upcycle,
    WidenFfn,
    WidenHidden,
    grow_program,
)
from scaler_wizard.models import resolve
from scaler_wizard.weights import copy_companions, write
from tiny_models import load, make

STATIC = tuple(method for method in METHODS if method not in ("dynamic", "longrope"))  # longrope needs factors
SCRIPT = Path(__file__).with_name("continue.mjs")
KINGS = "And the king said unto"
GROWTHS: dict[str, list[GrowthOperator]] = {
    "identity-blocks": [IdentityBlocks(blocks=2)],
    "ffn-zero": [WidenFfn(size=480, split="zero")],
    "ffn-pairs": [WidenFfn(size=480)],
    "kv-groups": [AddKvGroups(groups=2)],
    "query-heads": [AddQueryHeads(per_group=2)],
    "kv-split": [SplitKvHeads(heads=4)],
    "hidden": [WidenHidden(size=192)],
    "clone": [HyperClone(times=2)],
    "experts": [Upcycle(experts=3)],
    "cut-experts": [SplitIntoExperts(experts=2)],
    "all": [WidenHidden(size=192), WidenFfn(size=480), IdentityBlocks(blocks=1), Upcycle()],
}


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """node-llama-cpp with its prebuilt binaries, installed once into the cache."""
    folder = cache_folder() / "node-llama-cpp-3"
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("npm and node are not installed, so llama.cpp itself was NOT asked")
    if not (folder / "node_modules" / "node-llama-cpp").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--ignore-scripts", "--prefix", str(folder), "node-llama-cpp@3"]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        if said.returncode:
            pytest.skip(f"node-llama-cpp cannot be installed here, so llama.cpp was NOT asked: {said.stderr[-200:]}")
    return folder


def llama_cpp(node_modules: Path, prompt: str, *files: Path, tokens: int = 24) -> list[str]:
    """Greedy continuations by llama.cpp."""
    command = ["node", str(SCRIPT), str(node_modules), str(tokens), prompt, *map(str, files)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert said.returncode == 0, said.stderr
    return [json.loads(line)["text"] for line in said.stdout.splitlines()]


def transformers(folder: Path, prompt: str, *, tokens: int = 24) -> str:
    """The same by stock transformers, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    out = load(folder, "float32").generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def grow(source: Path, out: Path, operators: list[GrowthOperator]) -> Path:
    write(grow_program(read_architecture(source), operators, seed=1), out, durable=False)
    copy_companions(source, out)
    return out


@pytest.mark.e2e
def test_every_exact_growth_goes_on_as_the_base_does_in_llama_cpp_and_in_transformers(
    tmp_path: Path, node_modules: Path
) -> None:
    base = resolve("embedded").folder
    folders = [base, *(grow(base, tmp_path / name, operators) for name, operators in GROWTHS.items())]
    files = [write_gguf(folder, tmp_path / f"{folder.name}.gguf") for folder in folders]
    expected = transformers(base, KINGS)
    assert len(expected.split()) > 4
    assert {folder.name: transformers(folder, KINGS) for folder in folders} == {f.name: expected for f in folders}
    said = llama_cpp(node_modules, KINGS, *files)
    assert dict(zip([file.stem for file in files], said, strict=True)) == {file.stem: expected for file in files}


@pytest.mark.e2e
@pytest.mark.parametrize("method", STATIC)
def test_a_longer_window_goes_on_the_same_in_both(tmp_path: Path, node_modules: Path, method: str) -> None:
    base = resolve("embedded").folder
    shutil.copytree(base, tmp_path / "long")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "long/config.json").write_text(json.dumps(extended_config(config, 512, method)))
    prompt = (KINGS + " the people, and the people said unto the king. ") * 6
    said = llama_cpp(node_modules, prompt, write_gguf(tmp_path / "long", tmp_path / "long.gguf"))
    assert said == [transformers(tmp_path / "long", prompt)] and said != [transformers(base, prompt)]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_real_model_goes_on_the_same_before_and_after_growth(tmp_path: Path, node_modules: Path) -> None:
    base = resolve("smollm2").folder
    grown = grow(base, tmp_path / "grown", [IdentityBlocks(blocks=3), AddKvGroups(groups=1), WidenFfn(size=2048)])
    files = [write_gguf(folder, tmp_path / f"{folder.name}.gguf") for folder in (base, grown)]
    prompt = "The capital of France is"
    expected = transformers(base, prompt, tokens=12)
    assert expected == transformers(grown, prompt, tokens=12) and "Paris" in expected
    assert llama_cpp(node_modules, prompt, *files, tokens=12) == [expected, expected]


@pytest.mark.parametrize("method", STATIC)
def test_rotary_factors_are_those_of_transformers(tmp_path: Path, method: str) -> None:
    make(tmp_path, head_dim=16, hidden_size=64)
    config = extended_config(json.loads((tmp_path / "config.json").read_text()), 512, method)
    (tmp_path / "config.json").write_text(json.dumps(config))
    rotary = load(tmp_path).model.rotary_emb
    rope = config["rope_parameters"]
    factors = frequency_factors(rope, 16)
    inverse = float(rope["rope_theta"]) ** (-np.arange(0, 16, 2) / 16)
    assert np.allclose(inverse / (1 if factors is None else factors), rotary.inv_freq.numpy(), rtol=1e-5)
    assert attention_factor(rope) == pytest.approx(rotary.attention_scaling)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gemma2", {}, "gemma2 models"),
        ("llama", {"attention_bias": True}, "biases"),
        ("llama", {}, "tokenizer"),
    ],
)
def test_what_llama_cpp_would_not_compute_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], words: str
) -> None:
    make(tmp_path / "model", family, **changes)
    with pytest.raises(ScalerError, match=words):
        write_gguf(tmp_path / "model", tmp_path / "x.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_scaling_that_follows_the_length_is_refused() -> None:
    with pytest.raises(ScalerError, match="dynamic"):
        frequency_factors({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 16)
