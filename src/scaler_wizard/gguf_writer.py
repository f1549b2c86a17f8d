"""Write a model folder as one GGUF file that llama.cpp runs; `TARGETS` lists the families.

The file's tensors are a checkpoint program, streamed like any other: rotary rows change places where llama.cpp turns
neighbours and transformers halves, and experts are stacked. Weights keep their type, norms become fp32. Not covered:
quantisation (llama.cpp's own `llama-quantize` does it), and families that llama.cpp computes by other rules.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scaler_wizard.architecture import Architecture, Place, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.failpoints import reach
from scaler_wizard.files import sync
from scaler_wizard.gguf_tokenizer import write_tokenizer
from scaler_wizard.grow.experts import NEXT_TO_ZERO
from scaler_wizard.weights import Expression, Fill, Input, Scaled, Take, check_disk, join, stored_pieces, values, zeros

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """How llama.cpp knows a family."""

    name: str
    """Its architecture there."""
    neighbours: bool = False
    """It turns neighbouring rows of queries and keys by a rotary angle, where transformers turns halves of a head; its
    graphs of this kind are those that read frequency factors."""
    sums_to_one: bool | None = None
    """Whether it makes the weights of the active experts add up to one; None where there are none."""
    biased: bool = False
    """Queries, keys and values must have biases: zeros where the model has none."""
    headed: bool = False
    """The head must be there, also where it is the embedding."""


TARGETS: Mapping[str, Target] = {
    "llama": Target("llama", neighbours=True),
    "mistral": Target("llama", neighbours=True),
    "mixtral": Target("llama", neighbours=True),
    "granite": Target("granite", neighbours=True),
    "granitemoe": Target("granitemoe", neighbours=True),
    "granitemoeshared": Target("granitemoe", neighbours=True),
    "qwen2": Target("qwen2"),
    "qwen3": Target("qwen3"),
    "olmo2": Target("olmo2", headed=True),
    "qwen3_moe": Target("qwen3moe", sums_to_one=True),
    "qwen2_moe": Target("qwen2moe", sums_to_one=False, biased=True, headed=True),
}
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
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "shared_mlp.output_linear": "ffn_down_shexp",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
BEHIND = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
"""Norms of what a block is about to add."""
EXPERTS = {
    **{"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"},
    **{"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"},
}
FUSED = {
    "block_sparse_moe.input_linear": ("ffn_gate_exps", "ffn_up_exps"),
    "shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp"),
}
"""Granite's gate and up projection, which stand apart there."""
TYPES = {"F32": 0, "F16": 1, "BF16": 30}
"""llama.cpp's numbers of tensor types."""
FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}
"""llama.cpp's numbers of file types."""
GRANITE = {
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "attention_multiplier": "add_attention_scale",
    "logits_scaling": "add_logit_scale",
}
"""Granite's scales, and how the writer calls them."""
ALIGNED = 32  # bytes, by the format


def write_gguf(folder: Path, out: Path) -> Path:
    """Convert a folder; `out` appears only when it is whole. Refuses what llama.cpp would compute differently."""
    from gguf import GGUFWriter

    source = read_architecture(folder)
    _refuse(source, out)
    parts = list(_parts(source))
    check_disk(out, sum(part.bytes for part in parts))
    beside = out.with_name(f".{out.name}.partial")
    try:
        writer = GGUFWriter(beside, TARGETS[source.family].name)
        _write_head(writer, source, parts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        _write_numbers(beside, parts)
        sync(beside)
        reach("gguf.written")
        beside.rename(out)
        reach("gguf.renamed")
        sync(out.absolute().parent)
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
    target = TARGETS.get(source.family)
    if target is None:
        raise ScalerError(
            f"{source.family} models are not written as GGUF here",
            f"written are {', '.join(TARGETS)}; llama.cpp's convert_hf_to_gguf.py knows more families",
        )
    if "sliding_attention" in (source.layer_types or ()):
        raise ScalerError(
            f"{source.family}: llama.cpp gives every layer the whole window; some of this model have less",
            "train it with full attention first, or run it in transformers",
        )
    if target.sums_to_one not in (None, bool(source.value("norm_topk_prob"))):
        raise ScalerError(
            f"{source.family}: norm_topk_prob is {source.value('norm_topk_prob')}, which llama.cpp does not follow",
            "run it in transformers",
        )
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
    target = TARGETS[source.family]
    for place in source.places():
        yield from _tensors(place, source)
    if target.headed and source.tied:
        yield _part(NAMES["lm_head.weight"], Input(source.tensors["model.embed_tokens.weight"]))
    if target.biased and not source.value("qkv_bias"):
        for layer in range(source.layers):
            for name, size in (
                ("attn_q", source.size("q")),
                ("attn_k", source.size("kv")),
                ("attn_v", source.size("kv")),
            ):
                yield _part(f"blk.{layer}.{name}.bias", zeros((size,), "F32"))
    factors = _factors(source)
    if factors is not None:
        yield Part("rope_freqs.weight", factors.shape, TYPES["F32"], lambda: iter([factors.astype("<f4").tobytes()]))


def _tensors(place: Place, source: Architecture) -> Iterator[Part]:
    """What one tensor of the model becomes: itself, a part of a stack, or two."""
    tensor, block = Input(source.tensors[place.name]), f"blk.{place.layer}"
    if place.expert is None:
        inner = ".".join(place.name.removesuffix(".weight").split(".")[3:])
        if inner in FUSED:
            yield from _apart(block, FUSED[inner], tensor, place)
        else:
            gate = place.row.role == "shared_gate"
            shape = place.stored_shape if place.stack else tensor.shape[1:] if gate else None
            yield _part(_name(place), _open(tensor) if gate else _turned(tensor, place, source), shape)
    elif place.expert == 0:
        names = [place.row.name.format(layer=place.layer, expert=expert) for expert in range(source.experts or 0)]
        stack = join([Input(source.tensors[name]) for name in names], 0)
        yield _part(f"{block}.{EXPERTS[place.name.split('.')[-2]]}.weight", stack, (len(names), *tensor.shape))


def _open(gate: Input) -> Expression:
    """A shared expert's gate: llama.cpp's sigmoid is silu(x) / x, not a number where all of it is zero."""
    zero = not any(piece.any() for piece in values(gate, seed=0))
    return Fill(gate.shape, gate.dtype, NEXT_TO_ZERO) if zero else gate


def _apart(block: str, names: tuple[str, str], tensor: Input, place: Place) -> Iterator[Part]:
    """Gate and up projection of every expert, which stand on one another in the model's tensor."""
    stack = place.stack or 1
    half = tensor.shape[0] // stack // 2
    for side, name in enumerate(names):
        runs = tuple((start, start + half) for start in range(side * half, tensor.shape[0], 2 * half))
        shape = (half, tensor.shape[1])
        yield _part(f"{block}.{name}.weight", Take(tensor, 0, runs), (stack, *shape) if place.stack else shape)


def _part(name: str, expression: Expression, shape: tuple[int, ...] | None = None) -> Part:
    """A matrix in its own type; a vector in fp32, as llama.cpp wants it."""
    shape = shape or expression.shape
    if len(shape) == 1:
        pieces = partial(values, expression, seed=0)
        return Part(name, shape, TYPES["F32"], lambda: (piece.astype("<f4").tobytes() for piece in pieces()))
    return Part(name, shape, TYPES[expression.dtype], lambda: stored_pieces(expression, seed=0))


def _name(place: Place) -> str:
    if place.name in NAMES:
        return NAMES[place.name]
    _, _, layer, *rest, kind = place.name.split(".")
    inner = ".".join(rest)
    return f"blk.{layer}.{BEHIND[inner] if place.row.role == 'post_norm' else BLOCK[inner]}.{kind}"


def _turned(tensor: Input, place: Place, source: Architecture) -> Expression:
    """Queries and keys: row 2i of a head from row i, row 2i + 1 from row i + head_dim / 2; queries with what cosine and
    sine are multiplied with, where llama.cpp does not do it itself."""
    role, target = place.row.role, TARGETS[source.family]
    if not target.neighbours or role not in ("query", "key"):
        return tensor
    half = source.head_dim // 2
    starts = range(0, tensor.shape[0], source.head_dim)
    rows = [start + row + side for start in starts for row in range(half) for side in (0, half)]
    turned = Take(tensor, 0, tuple((row, row + 1) for row in rows))
    temperature = attention_factor(source.rope)
    if role == "key" or temperature == 1.0:
        return turned
    return Scaled(turned, temperature**2)  # transformers scales cosine and sine of queries and keys


# -- rotary positions --------------------------------------------------------------------------------------------------


def _factors(source: Architecture) -> Array | None:
    """Frequency factors for the graphs that read them; others know two kinds of scaling by name."""
    rope, kind = source.rope, source.rope["rope_type"]
    if TARGETS[source.family].neighbours:
        return frequency_factors(rope, source.head_dim)
    plain = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    if kind not in ("default", "linear", "yarn") or {key for key, value in rope.items() if value is not None} - plain:
        raise ScalerError(
            f"{source.family}: llama.cpp does not follow these rotary settings ({kind})",
            "extend the window by linear, or by yarn with its own settings",
        )
    return None


def _write_scaling(writer: Any, source: Architecture) -> None:
    rope = source.rope
    if TARGETS[source.family].neighbours or rope["rope_type"] == "default":
        return
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


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
    writer.add_context_length(min(source.native_context, source.value("sliding_window") or source.native_context))
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
    _write_scaling(writer, source)
    _write_experts(writer, source)
    if source.family.startswith("granite"):
        for key, add in GRANITE.items():
            getattr(writer, add)(float(source.config.get(key, 1.0)))
    write_tokenizer(writer, source.folder, source.vocabulary, source.config)
    for part in parts:
        kind = np.dtype(np.float32) if part.type == TYPES["F32"] else np.dtype(np.float16)
        writer.add_tensor_info(part.name, part.shape, kind, part.bytes, raw_dtype=part.type)


def _write_experts(writer: Any, source: Architecture) -> None:
    if not source.experts:
        return
    writer.add_expert_count(source.experts)
    writer.add_expert_used_count(source.count("num_experts_per_tok"))
    if source.family.startswith("qwen"):
        writer.add_expert_feed_forward_length(source.ffn)
    if "shared_ffn" in source.rows.keys:
        writer.add_expert_shared_feed_forward_length(source.size("shared_ffn"))
