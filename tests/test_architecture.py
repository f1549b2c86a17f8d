"""A model's facts are read from its configuration and headers, and what does not fit is refused before any weight."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.architecture import read_architecture, read_header
from scaler_wizard.architecture.read import _from
from scaler_wizard.errors import ScalerError
from tiny_models import FAMILIES, load, make


def rewrite(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def header_file(file: Path, header: bytes, data: bytes = b"") -> Path:
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return file


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_exactly(tmp_path: Path, family: str) -> None:
    found = read_architecture(make(tmp_path, family))
    assert found.parameters == sum(parameter.numel() for parameter in load(tmp_path).parameters())
    assert found.parameters == sum(tensor.elements for tensor in found.tensors.values())
    assert (found.layers, found.hidden, found.heads, found.kv_heads, found.head_dim) == (3, 32, 4, 2, 8)
    assert (found.ffn, found.vocabulary, found.native_context, found.dtype) == (48, 64, 64, "float32")


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gemma3_text"])
def test_layer_types_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    make(tmp_path, family, num_hidden_layers=7)
    expected = json.loads((tmp_path / "config.json").read_text())["layer_types"]
    assert len(set(expected)) == 2
    rewrite(tmp_path, layer_types=None)
    assert read_architecture(tmp_path).layer_types == expected


def test_an_older_configuration_is_read_as_well(tmp_path: Path) -> None:
    make(tmp_path, num_key_value_heads=4)
    rewrite(
        tmp_path, num_key_value_heads=None, head_dim=None, rope_parameters=None, rope_theta=5000.0, rope_scaling=None
    )
    found = read_architecture(tmp_path)
    assert (found.kv_heads, found.head_dim) == (4, 8)
    assert found.rope == {"rope_type": "default", "rope_theta": 5000.0}


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    make(tmp_path)
    load(tmp_path).save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert read_architecture(tmp_path / "sharded").parameters == read_architecture(tmp_path).parameters


def test_references_to_code_are_dropped(tmp_path: Path) -> None:
    make(tmp_path)
    rewrite(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert "auto_map" not in read_architecture(tmp_path).config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"intermediate_size": 50}, "by config.json"),
        ({"num_hidden_layers": 4}, "the weights lack it"),
        ({"num_hidden_layers": 2}, "does not have"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    make(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ScalerError, match=words):
        read_architecture(tmp_path)


def test_the_supported_families_are_listed_when_one_is_not(tmp_path: Path) -> None:
    make(tmp_path)
    rewrite(tmp_path, model_type="mamba")
    with pytest.raises(ScalerError, match="llama, smollm3, mistral, qwen2"):
        read_architecture(tmp_path)


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ScalerError, match="truncated"):
        read_architecture(tmp_path)


def test_an_index_that_misses_or_escapes_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    names = {name: "model.safetensors" for name in read_architecture(tmp_path).tensors}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**names, "model.norm.weight": "absent.safetensors"}}))
    with pytest.raises(ScalerError, match="no such file"):
        read_architecture(tmp_path)
    index.write_text(json.dumps({"weight_map": {**names, "more": "model.safetensors"}}))
    with pytest.raises(ScalerError, match="is not in"):
        read_architecture(tmp_path)
    index.write_text(json.dumps({"weight_map": {**names, "more": f"../{tmp_path.name}/model.safetensors"}}))
    with pytest.raises(ScalerError, match="no such file"):
        read_architecture(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ScalerError, match="only safetensors"):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry(0, 8, [3])}, 8, "does not fill"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "overlap"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "gap"),
        ({"a": entry(0, 8, [2])}, 9, "longer"),
        ({"a": entry(0, 2, [2], "F8_E4M3")}, 2, "dequantise"),
        ({"a": entry(0, 2, [2], "I8")}, 2, "dequantise"),
        ({"a": entry(0, 8, [-2])}, 8, "no counts"),
        ({"a": entry(0, 4, [True])}, 4, "no counts"),
        ({"a": entry(0, 2**70, [2**68])}, 8, "no counts"),
        ({"a": {"dtype": "F32"}}, 0, "entry is not"),
        ([1], 0, "not a mapping"),
    ],
)
def test_a_false_header_is_refused(tmp_path: Path, header: Any, data: int, words: str) -> None:
    file = header_file(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(data))
    with pytest.raises(ScalerError, match=words):
        read_header(file)


def test_header_bombs_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(ScalerError, match="at most"):
        read_header(file)
    header_file(file, b'{"a":' * 100_000)
    with pytest.raises(ScalerError, match="not valid JSON"):
        read_header(file)
    header_file(file, b'{"a":' * 9_000)
    with pytest.raises(ScalerError, match="not valid JSON"):
        read_header(file)
    header_file(file, b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}')
    with pytest.raises(ScalerError, match="twice"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":{' + b"{" * 200_002, "at most 200000"),
        (b'{"a":{"shape":[' + b"1," * 200_000 + b"1]}}", "far more values"),
        (b'{"__metadata__":{"a":"' + b"1," * 200_000 + b'"}}', "far more values"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}', "not valid JSON"),
        (b'{"a":{"dtype":["F32"],"shape":[0],"data_offsets":[0,0]}}', "weights of type"),
        (b'{"a":{"dtype":"F32","shape":[0,1,1,1,1,1,1,1,1],"data_offsets":[0,0]}}', "9 axes"),
        (b'{"\\u001b[2J":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "unprintable"),
    ],
)
def test_headers_made_to_exhaust_or_to_deceive_are_refused(tmp_path: Path, header: bytes, words: str) -> None:
    with pytest.raises(ScalerError, match=words) as refusal:
        read_header(header_file(tmp_path / "x.safetensors", header))
    assert len(str(refusal.value)) < 400 and "\x1b" not in str(refusal.value)


def test_a_name_among_very_many_that_appears_twice_is_found(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(30_000)] + ["t29999"]
    header = "{" + ",".join(f'"{name}":{json.dumps(entry(0, 0, [0]))}' for name in names) + "}"
    with pytest.raises(ScalerError, match="'t29999' appears twice"):
        read_header(header_file(tmp_path / "x.safetensors", header.encode()))


def test_an_index_without_an_entry_for_a_tensor_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    names = {name: "model.safetensors" for name in read_architecture(tmp_path).tensors if "norm.weight" not in name}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ScalerError, match=r"no entry for model\.layers\.0\.input_layernorm"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 3}, {"num_attention_heads": 64, "head_dim": None}])
def test_heads_that_do_not_fit_together_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    make(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ScalerError, match=r"config\.json"):
        read_architecture(tmp_path)


def tokenizer(folder: Path, vocabulary: dict[str, int], *, added: int | None = None) -> None:
    tokens = [] if added is None else [{"id": added, "content": "<image>", "special": True}]
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens, "model": model}, indent=2))


@pytest.mark.parametrize("rows", [1, 9, 10, 64, 99, 100, 49152, 128000])
def test_numbers_from_one_on_are_found(rows: int) -> None:
    pattern = re.compile(_from(rows))
    near = [*range(1, 1200), *range(rows - 30, rows + 30), rows * 10, rows * 10 - 1, rows // 10]
    assert all(bool(pattern.fullmatch(b"%d" % number)) == (number >= rows) for number in near if number >= 0)


def test_a_tokenizer_with_tokens_that_the_embedding_lacks_is_refused(tmp_path: Path) -> None:
    make(tmp_path)  # 64 rows
    tokenizer(tmp_path, {"a": 0, "b": 64})
    with pytest.raises(ScalerError, match="tokens up to 64, the embedding has 64 rows"):
        read_architecture(tmp_path)


def test_an_added_token_or_a_word_that_looks_like_a_number_is_no_reason_to_refuse(tmp_path: Path) -> None:
    make(tmp_path)
    for added in (None, 64):
        tokenizer(tmp_path, {"a": 0, 'b": 900, ': 63}, added=added)
        assert read_architecture(tmp_path).vocabulary == 64
