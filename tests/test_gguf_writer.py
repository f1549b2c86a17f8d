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
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from scaler_wizard.architecture import read_architecture
from scaler_wizard.context.rope import METHODS, extended_config
from scaler_wizard.errors import ScalerError
from scaler_wizard.fetch import cache_folder
from scaler_wizard.gguf_writer import TARGETS, attention_factor, frequency_factors, write_gguf
from scaler_wizard.grow import (
    AddKvGroups,
    AddQueryHeads,
    GrowthOperator,
    GrowVocabulary,
    HyperClone,
    IdentityBlocks,
    SharedExpert,
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
    "shared-expert": [SharedExpert(experts=4, size=64)],
    "vocabulary": [GrowVocabulary(size=1088)],
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


CUT = "\ufffd"
"""Stands for a character that the last token has left unfinished."""
KINDS: dict[str, dict[str, Any]] = {
    **{family: {} for family in TARGETS},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": None},
    "qwen2_moe": {"norm_topk_prob": False, "tie_word_embeddings": True},
    "olmo2": {"tie_word_embeddings": True},
    "qwen3_moe": {"tie_word_embeddings": True},
    "granitemoe": {"tie_word_embeddings": True},
    "granite": {"attention_multiplier": 0.2, "logits_scaling": 2.0, "attention_bias": True, "mlp_bias": True},
    "llama-biased": {"tie_word_embeddings": False},
}


@pytest.mark.e2e
def test_every_family_that_is_written_goes_on_the_same_in_llama_cpp(tmp_path: Path, node_modules: Path) -> None:
    base = resolve("embedded").folder
    tokens = json.loads((base / "config.json").read_text())
    ends = {key: tokens[key] for key in ("bos_token_id", "eos_token_id")}
    for seed, (kind, changes) in enumerate(KINDS.items()):
        make(tmp_path / kind, kind, seed=seed, vocab_size=1024, max_position_embeddings=128, **ends, **changes)
        copy_companions(base, tmp_path / kind)
    files = [write_gguf(tmp_path / kind, tmp_path / f"{kind}.gguf") for kind in KINDS]
    said = dict(zip(KINDS, llama_cpp(node_modules, KINGS, *files, tokens=12), strict=True))
    expected = {kind: transformers(tmp_path / kind, KINGS, tokens=12).rstrip(CUT) for kind in KINDS}
    assert {kind: text[: len(expected[kind])] for kind, text in said.items()} == expected  # it ends whole characters
    assert len(set(expected.values())) == len(KINDS) and min(map(len, expected.values())) > 8


@pytest.mark.e2e
@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_other_graphs_know_two_kinds_of_scaling(tmp_path: Path, node_modules: Path, rope: dict[str, Any]) -> None:
    base = resolve("embedded").folder
    plain, scaled = {"rope_type": "default", "rope_theta": 1e4}, rope | {"rope_theta": 1e4}
    if rope["rope_type"] == "yarn":
        scaled |= {"original_max_position_embeddings": 32}
    texts = []
    for name, settings in (("plain", plain), ("scaled", scaled)):
        make(tmp_path / name, "qwen3", vocab_size=1024, max_position_embeddings=128, rope_parameters=settings)
        copy_companions(base, tmp_path / name)
        texts.append(transformers(tmp_path / name, KINGS * 3, tokens=12).rstrip(CUT))
    (said,) = llama_cpp(node_modules, KINGS * 3, write_gguf(tmp_path / "scaled", tmp_path / "x.gguf"), tokens=12)
    assert said.startswith(texts[1]) and texts[0] != texts[1] and len(texts[1]) > 8


SPACED = "And the king said unto him,  What is thy petition?\n\tIt shall be granted \u2014 na\u00efve \u4f60."


@pytest.mark.e2e
@pytest.mark.parametrize("style", ["prepended", "metaspace", "gemma"])
def test_a_sentencepiece_tokenizer_cuts_text_the_same_in_llama_cpp(
    tmp_path: Path, node_modules: Path, style: str
) -> None:
    tokenizer = sentencepiece(style)
    make(tmp_path / "model", vocab_size=tokenizer.get_vocab_size(), bos_token_id=1, eos_token_id=2)
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    asked = [str(SCRIPT), str(node_modules), "1", SPACED, str(write_gguf(tmp_path / "model", tmp_path / "x.gguf"))]
    said = subprocess.run(["node", *asked], capture_output=True, text=True, check=True, timeout=280).stdout
    assert json.loads(said)["prompt"] == tokenizer.encode(SPACED).ids
    assert len(tokenizer.encode("petition").ids) < 8


def sentencepiece(style: str) -> Tokenizer:
    """A small BPE with byte fallback, trained on a verse, as Llama 2, Mistral or Gemma write it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if style == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        marks = [normalizers.Replace(" ", "\u2581")]
        marks = [normalizers.Prepend("\u2581"), *marks] if style == "prepended" else marks
        tokenizer.normalizer = normalizers.Sequence(marks)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    verse = [(KINGS + " the people, What is thy petition? and it shall be granted thee;") for _ in range(9)]
    tokenizer.train_from_iterator(verse, trainers.BpeTrainer(vocab_size=340, special_tokens=special))
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]  # bytes are no added tokens
    return Tokenizer.from_str(json.dumps(data))


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
        ("qwen2", {}, "less"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
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


def test_a_gate_of_zeros_is_written_next_to_zero(tmp_path: Path) -> None:
    base = resolve("embedded").folder
    grow(base, tmp_path / "grown", [SharedExpert(experts=2, size=16)])
    weights = load_file(tmp_path / "grown/model.safetensors")
    gates = [name for name in weights if "shared_expert_gate" in name]
    save_file(weights | {name: torch.zeros_like(weights[name]) for name in gates}, tmp_path / "grown/model.safetensors")
    written = GGUFReader(write_gguf(tmp_path / "grown", tmp_path / "x.gguf"))
    found = [tensor.data for tensor in written.tensors if "ffn_gate_inp_shexp" in tensor.name]
    assert len(found) == len(gates) == 4 and all((gate > 0).all() and (gate < 1e-9).all() for gate in found)


def test_a_scaling_that_follows_the_length_is_refused() -> None:
    with pytest.raises(ScalerError, match="dynamic"):
        frequency_factors({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 16)
