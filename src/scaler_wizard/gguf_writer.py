"""Write a model folder as one GGUF file that llama.cpp runs: Llama, Mistral and Mixtral models with a byte-level BPE.

The file's tensors are a checkpoint program, streamed like any other: rotary rows change places, since llama.cpp turns
neighbours where transformers turns halves, and experts are stacked. Weights keep their type, norms become fp32. Not
covered: quantisation (llama.cpp's own `llama-quantize` does it), SentencePiece tokenizers, other families.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scaler_wizard.architecture import Architecture, Place, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.weights import Expression, Input, Scaled, Take, check_disk, join, stored_pieces, values

Array = npt.NDArray[np.float64]
FAMILIES = ("llama", "mistral", "mixtral")
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
EXPERTS = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
TYPES = {"F32": 0, "F16": 1, "BF16": 30}
"""llama.cpp's numbers of tensor types."""
FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}
"""llama.cpp's numbers of file types."""
ALIGNED = 32  # bytes, by the format
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text."""


def write_gguf(folder: Path, out: Path) -> Path:
    """Convert a folder; `out` appears only when it is whole. Refuses what llama.cpp would compute differently."""
    from gguf import GGUFWriter

    source = read_architecture(folder)
    _refuse(source, out)
    parts = list(_parts(source))
    check_disk(out, sum(part.bytes for part in parts))
    beside = out.with_name(f".{out.name}.partial")
    try:
        writer = GGUFWriter(beside, "llama")
        _write_head(writer, source, parts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        _write_numbers(beside, parts)
        beside.rename(out)
    finally:
        beside.unlink(missing_ok=True)
    return out


def _write_numbers(file: Path, parts: list[Part]) -> None:
    with file.open("ab") as stream:
        for part in parts:
            stream.write(bytes(-stream.tell() % ALIGNED))
            for piece in part.pieces():
                stream.write(piece)
        stream.write(bytes(-stream.tell() % ALIGNED))
        stream.flush()
        os.fsync(stream.fileno())


def _refuse(source: Architecture, out: Path) -> None:
    if source.family not in FAMILIES:
        raise ScalerError(
            f"{source.family} models are not written as GGUF here",
            f"written are {', '.join(FAMILIES)}; llama.cpp's convert_hf_to_gguf.py knows more families",
        )
    if source.value("attention_bias") or source.value("mlp_bias"):
        raise ScalerError("models with biases are not written as GGUF here", "use llama.cpp's convert_hf_to_gguf.py")
    if not (source.folder / "tokenizer.json").is_file():
        raise ScalerError(
            f"{source.folder}: no tokenizer.json", "llama.cpp needs the tokenizer: put it into the folder"
        )
    if out.exists():
        raise ScalerError(f"{out}: is there already", "name a file that does not exist yet")


# -- tensors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One tensor of the file."""

    name: str
    """llama.cpp's name."""
    shape: tuple[int, ...]
    type: int
    pieces: Callable[[], Iterator[bytes]]

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * (4 if self.type == TYPES["F32"] else 2)


def _parts(source: Architecture) -> Iterator[Part]:
    for place in source.places():
        tensor = Input(source.tensors[place.name])
        if place.expert is None:
            yield _part(_name(place.name), _turned(tensor, place, source))
        elif place.expert == 0:
            names = [place.row.name.format(layer=place.layer, expert=expert) for expert in range(source.experts or 0)]
            stack = join([Input(source.tensors[name]) for name in names], 0)
            name = f"blk.{place.layer}.{EXPERTS[place.name.split('.')[-2]]}.weight"
            yield _part(name, stack, (len(names), *tensor.shape))
    factors = frequency_factors(source.rope, source.head_dim)
    if factors is not None:
        yield Part("rope_freqs.weight", factors.shape, TYPES["F32"], lambda: iter([factors.astype("<f4").tobytes()]))


def _part(name: str, expression: Expression, shape: tuple[int, ...] | None = None) -> Part:
    """A matrix in its own type; a vector in fp32, as llama.cpp wants it."""
    if len(expression.shape) == 1:
        return Part(
            name,
            expression.shape,
            TYPES["F32"],
            lambda: (piece.astype("<f4").tobytes() for piece in values(expression, seed=0)),
        )
    return Part(name, shape or expression.shape, TYPES[expression.dtype], lambda: stored_pieces(expression, seed=0))


def _name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *rest = name.removesuffix(".weight").split(".")
    return f"blk.{layer}.{BLOCK['.'.join(rest)]}.weight"


def _turned(tensor: Input, place: Place, source: Architecture) -> Expression:
    """Queries and keys: row 2i of a head from row i, row 2i + 1 from row i + head_dim / 2."""
    if place.row.role not in ("query", "key"):
        return tensor
    half = source.head_dim // 2
    starts = range(0, tensor.shape[0], source.head_dim)
    rows = [start + row + side for start in starts for row in range(half) for side in (0, half)]
    turned = Take(tensor, 0, tuple((row, row + 1) for row in rows))
    temperature = attention_factor(source.rope)
    if place.row.role == "key" or temperature == 1.0:
        return turned
    return Scaled(turned, temperature**2)  # transformers scales cosine and sine of queries and keys


# -- rotary positions --------------------------------------------------------------------------------------------------


def attention_factor(rope: Mapping[str, Any]) -> float:
    """What cosine and sine are multiplied with (YaRN, arXiv:2309.00071; LongRoPE, arXiv:2402.13753)."""
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)
    if rope["rope_type"] == "yarn":
        return 0.1 * math.log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0
    if rope["rope_type"] == "longrope":
        raise ScalerError("longrope without attention_factor is not written as GGUF here", "write the factor down")
    return 1.0


def frequency_factors(rope: Mapping[str, Any], head_dim: int) -> Array | None:
    """What each rotary frequency is divided by (head_dim / 2 numbers); None where by nothing.

    With i < d/2, b = rope_theta, inverse frequencies are b^(-2i/d); formulas as in transformers' modeling_rope_utils.
    """
    steps = np.arange(head_dim // 2)
    inverse = float(rope["rope_theta"]) ** (-2 * steps / head_dim)
    match rope["rope_type"]:
        case "default":
            return None
        case "linear":
            return np.full(steps.size, float(rope["factor"]))
        case "yarn":
            scaled = _yarn(rope, inverse, head_dim)
        case "llama3":
            scaled = _llama3(rope, inverse)
        case "longrope" if list(rope["short_factor"]) == list(rope["long_factor"]):
            return np.array(rope["long_factor"], float)
        case other:
            raise ScalerError(
                f"rotary scaling {other} changes with the length; llama.cpp does not follow it",
                "extend the window by yarn, llama3 or linear instead",
            )
    factors: Array = inverse / scaled
    return factors


def _yarn(rope: Mapping[str, Any], inverse: Array, head_dim: int) -> Array:
    base, window = math.log(float(rope["rope_theta"])), rope["original_max_position_embeddings"]

    def turns(number: float) -> float:
        return head_dim * math.log(window / (number * 2 * math.pi)) / (2 * base)

    low, high = turns(rope.get("beta_fast") or 32), turns(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(inverse.size) - low) / max(high - low, 0.001), 0, 1)
    scaled: Array = inverse / rope["factor"] * ramp + inverse * (1 - ramp)
    return scaled


def _llama3(rope: Mapping[str, Any], inverse: Array) -> Array:
    low, high, window = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    smooth = np.clip((window * inverse / (2 * math.pi) - low) / (high - low), 0, 1)
    scaled: Array = (1 - smooth) * inverse / rope["factor"] + smooth * inverse
    return scaled


# -- head of the file --------------------------------------------------------------------------------------------------


def _write_head(writer: Any, source: Architecture, parts: list[Part]) -> None:
    """Sizes, tokenizer, and where the tensors are."""
    writer.add_name(source.folder.resolve().name)
    writer.add_file_type(FILE_TYPES[source.dtype])
    writer.add_vocab_size(source.vocabulary)
    writer.add_context_length(source.native_context)
    writer.add_embedding_length(source.hidden)
    writer.add_block_count(source.layers)
    writer.add_feed_forward_length(source.ffn)
    writer.add_head_count(source.heads)
    writer.add_head_count_kv(source.kv_heads)
    writer.add_key_length(source.head_dim)
    writer.add_value_length(source.head_dim)
    writer.add_layer_norm_rms_eps(source.value("rms_norm_eps"))
    writer.add_rope_dimension_count(source.head_dim)
    writer.add_rope_freq_base(float(source.rope["rope_theta"]))
    if source.experts:
        writer.add_expert_count(source.experts)
        writer.add_expert_used_count(source.count("num_experts_per_tok"))
    _write_tokenizer(writer, source)
    for part in parts:
        kind = np.dtype(np.float32) if part.type == TYPES["F32"] else np.dtype(np.float16)
        writer.add_tensor_info(part.name, part.shape, kind, part.bytes, raw_dtype=part.type)


def _write_tokenizer(writer: Any, source: Architecture) -> None:
    data = json.loads((source.folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = data["model"]
    names = {number: token for token, number in model["vocab"].items()}
    special = {token["id"]: token for token in data.get("added_tokens", [])}
    names |= {number: token["content"] for number, token in special.items()}
    rows = range(source.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(data))
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in rows])
    writer.add_token_types([_token_type(number, names, special) for number in rows])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    for key, add in (("bos_token_id", "add_bos_token_id"), ("eos_token_id", "add_eos_token_id")):
        number = source.config.get(key)
        if isinstance(number, int):
            getattr(writer, add)(number)
    writer.add_add_bos_token(False)
    template = source.folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _token_type(number: int, names: Mapping[int, str], special: Mapping[int, Any]) -> int:
    """llama.cpp's kinds: 1 normal, 3 control, 4 added by a user, 5 unused."""
    if number not in names:
        return 5
    if number not in special:
        return 1
    return 3 if special[number]["special"] else 4


def _pre_tokenizer(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is cut before merging; it knows them by name only."""
    pre = data.get("pre_tokenizer") or {}
    steps = [step["type"] for step in pre.get("pretokenizers", [pre])] if pre else []
    patterns = [step["pattern"].get("Regex") for step in pre.get("pretokenizers", []) if step["type"] == "Split"]
    if data["model"]["type"] == "BPE" and not data["model"].get("byte_fallback"):
        if steps == ["Digits", "ByteLevel"] and pre["pretokenizers"][0]["individual_digits"]:
            return "smollm"
        if steps == ["ByteLevel"]:
            return "gpt-2"
        if patterns == [LLAMA3_PATTERN]:
            return "llama-bpe"
    raise ScalerError("this model's tokenizer has no counterpart here", "use llama.cpp's convert_hf_to_gguf.py")
