"""The model families that can be grown, as data: one row a tensor, with its role and what each of its axes counts.

An axis is a tuple of segments, so that fused projections are rows like any other: ("q", "kv", "kv") is Phi-3's
`qkv_proj`. Whether a tensor reads or writes the residual stream follows from where "hidden" stands in its axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NOT_ROTARY: Mapping[str, str] = {
    **dict.fromkeys(
        ("bloom", "mpt"), "ALiBi: distance is a fixed penalty in attention, with no frequencies to stretch"
    ),
    **dict.fromkeys(
        ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "xglm", "ctrl"),
        "a table of absolute positions: nothing stands beyond its last row",
    ),
    **dict.fromkeys(("t5", "mt5"), "relative position buckets, with no frequencies to stretch"),
    **dict.fromkeys(("mamba", "mamba2", "rwkv"), "no positions at all: it is recurrent"),
}
"""Why the window of these architectures cannot be stretched."""

Role = Literal[
    "embedding",  # token -> residual stream
    "head",  # residual stream -> logits
    "norm",  # normalises the residual stream before a block reads it
    "final_norm",  # normalises it before the head
    "post_norm",  # normalises what a block is about to add to the residual stream
    "query_norm",  # normalises queries
    "key_norm",  # normalises keys
    "query",
    "key",
    "value",
    "query_key_value",
    "attention_out",
    "ffn_in",
    "ffn_out",
    "router",
    "shared_gate",
]
Segment = Literal[
    "vocabulary", "hidden", "q", "kv", "head_dim", "ffn", "shared_ffn", "expert_ffn", "experts", "one"
]  # q = heads * head_dim, kv = kv_heads * head_dim
Axis = tuple[Segment, ...]

BLOCK = "model.layers.{layer}."
EXPERT = "{expert}"


@dataclass(frozen=True)
class Row:
    """One tensor of a family (of every layer, and of every expert, where its name says so)."""

    name: str
    role: Role
    axes: tuple[Axis, ...]
    """What each axis counts."""
    when: str | None = None
    """Key of config.json that must be true for the tensor to exist; None: always there."""
    stacked: bool = False
    """In the file, the matrices of all experts are one tensor with a leading axis; here, they stand on one another."""


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers."""

    model_type: str
    model_class: str
    rows: tuple[Row, ...]
    defaults: Mapping[str, Any]
    """What transformers assumes where config.json says nothing."""
    keys: Mapping[Segment, str] = field(default_factory=lambda: {"ffn": "intermediate_size"})
    """Which key of config.json counts which feed-forward segment."""
    experts: str | None = None
    """Key of config.json that counts the experts; None for dense families."""
    norm_offset: float = 0.0
    """Gemma stores a norm's scale less one."""
    scales_embeddings: bool = False
    """Gemma multiplies embeddings by the root of the hidden size."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of keys in config.json, and ours for them."""
    lists: tuple[str, ...] = ()
    """Keys of config.json, beside `layer_types`, that hold one entry a layer."""
    layer_types: Literal["none", "window_after", "alternate", "every"] = "none"
    """How layer types follow from config.json where it has no `layer_types` list."""
    heads_divide_hidden: bool = False
    """Its configuration refuses a hidden size that the number of heads does not divide."""
    explicit_head_dim: bool = True
    """Its configuration keeps a `head_dim` that differs from hidden / heads."""


def _rows(*tables: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(row for table in tables for row in table)


ENDS = (
    Row("model.embed_tokens.weight", "embedding", (("vocabulary",), ("hidden",))),
    Row("model.norm.weight", "final_norm", (("hidden",),)),
    Row("lm_head.weight", "head", (("vocabulary",), ("hidden",)), when="untied"),
)
PRE_NORMS = (
    Row(BLOCK + "input_layernorm.weight", "norm", (("hidden",),)),
    Row(BLOCK + "post_attention_layernorm.weight", "norm", (("hidden",),)),
)
OLMO2_NORMS = (
    Row(BLOCK + "post_attention_layernorm.weight", "post_norm", (("hidden",),)),
    Row(BLOCK + "post_feedforward_layernorm.weight", "post_norm", (("hidden",),)),
)
GEMMA_NORMS = (
    Row(BLOCK + "input_layernorm.weight", "norm", (("hidden",),)),
    Row(BLOCK + "post_attention_layernorm.weight", "post_norm", (("hidden",),)),
    Row(BLOCK + "pre_feedforward_layernorm.weight", "norm", (("hidden",),)),
    Row(BLOCK + "post_feedforward_layernorm.weight", "post_norm", (("hidden",),)),
)
ATTENTION = (
    Row(BLOCK + "self_attn.q_proj.weight", "query", (("q",), ("hidden",))),
    Row(BLOCK + "self_attn.k_proj.weight", "key", (("kv",), ("hidden",))),
    Row(BLOCK + "self_attn.v_proj.weight", "value", (("kv",), ("hidden",))),
    Row(BLOCK + "self_attn.o_proj.weight", "attention_out", (("hidden",), ("q",))),
)
FUSED_ATTENTION = (
    Row(BLOCK + "self_attn.qkv_proj.weight", "query_key_value", (("q", "kv", "kv"), ("hidden",))),
    Row(BLOCK + "self_attn.o_proj.weight", "attention_out", (("hidden",), ("q",))),
)
HEAD_NORMS = (
    Row(BLOCK + "self_attn.q_norm.weight", "query_norm", (("head_dim",),)),
    Row(BLOCK + "self_attn.k_norm.weight", "key_norm", (("head_dim",),)),
)
WIDE_HEAD_NORMS = (
    Row(BLOCK + "self_attn.q_norm.weight", "query_norm", (("q",),)),
    Row(BLOCK + "self_attn.k_norm.weight", "key_norm", (("kv",),)),
)
FFN = (
    Row(BLOCK + "mlp.gate_proj.weight", "ffn_in", (("ffn",), ("hidden",))),
    Row(BLOCK + "mlp.up_proj.weight", "ffn_in", (("ffn",), ("hidden",))),
    Row(BLOCK + "mlp.down_proj.weight", "ffn_out", (("hidden",), ("ffn",))),
)
FUSED_FFN = (
    Row(BLOCK + "mlp.gate_up_proj.weight", "ffn_in", (("ffn", "ffn"), ("hidden",))),
    Row(BLOCK + "mlp.down_proj.weight", "ffn_out", (("hidden",), ("ffn",))),
)
FFN_BIASES = (
    Row(BLOCK + "mlp.gate_proj.bias", "ffn_in", (("ffn",),), when="mlp_bias"),
    Row(BLOCK + "mlp.up_proj.bias", "ffn_in", (("ffn",),), when="mlp_bias"),
    Row(BLOCK + "mlp.down_proj.bias", "ffn_out", (("hidden",),), when="mlp_bias"),
)
MIXTRAL_EXPERTS = (
    Row(BLOCK + "block_sparse_moe.gate.weight", "router", (("experts",), ("hidden",))),
    Row(BLOCK + "block_sparse_moe.experts.{expert}.w1.weight", "ffn_in", (("ffn",), ("hidden",))),
    Row(BLOCK + "block_sparse_moe.experts.{expert}.w3.weight", "ffn_in", (("ffn",), ("hidden",))),
    Row(BLOCK + "block_sparse_moe.experts.{expert}.w2.weight", "ffn_out", (("hidden",), ("ffn",))),
)
EXPERTS = (
    Row(BLOCK + "mlp.gate.weight", "router", (("experts",), ("hidden",))),
    Row(BLOCK + "mlp.experts.{expert}.gate_proj.weight", "ffn_in", (("ffn",), ("hidden",))),
    Row(BLOCK + "mlp.experts.{expert}.up_proj.weight", "ffn_in", (("ffn",), ("hidden",))),
    Row(BLOCK + "mlp.experts.{expert}.down_proj.weight", "ffn_out", (("hidden",), ("ffn",))),
)
STACKED_EXPERTS = (
    Row(BLOCK + "block_sparse_moe.router.layer.weight", "router", (("experts",), ("hidden",))),
    Row(BLOCK + "block_sparse_moe.input_linear.weight", "ffn_in", (("ffn", "ffn"), ("hidden",)), stacked=True),
    Row(BLOCK + "block_sparse_moe.output_linear.weight", "ffn_out", (("hidden",), ("ffn",)), stacked=True),
)
GRANITE_SHARED = (
    Row(BLOCK + "shared_mlp.input_linear.weight", "ffn_in", (("shared_ffn", "shared_ffn"), ("hidden",))),
    Row(BLOCK + "shared_mlp.output_linear.weight", "ffn_out", (("hidden",), ("shared_ffn",))),
)
SHARED_EXPERTS = (
    Row(BLOCK + "mlp.gate.weight", "router", (("experts",), ("hidden",))),
    Row(BLOCK + "mlp.experts.{expert}.gate_proj.weight", "ffn_in", (("expert_ffn",), ("hidden",))),
    Row(BLOCK + "mlp.experts.{expert}.up_proj.weight", "ffn_in", (("expert_ffn",), ("hidden",))),
    Row(BLOCK + "mlp.experts.{expert}.down_proj.weight", "ffn_out", (("hidden",), ("expert_ffn",))),
    Row(BLOCK + "mlp.shared_expert.gate_proj.weight", "ffn_in", (("shared_ffn",), ("hidden",))),
    Row(BLOCK + "mlp.shared_expert.up_proj.weight", "ffn_in", (("shared_ffn",), ("hidden",))),
    Row(BLOCK + "mlp.shared_expert.down_proj.weight", "ffn_out", (("hidden",), ("shared_ffn",))),
    Row(BLOCK + "mlp.shared_expert_gate.weight", "shared_gate", (("one",), ("hidden",))),
)


def _attention_biases(when: str | None, *, out: bool) -> tuple[Row, ...]:
    rows = (
        Row(BLOCK + "self_attn.q_proj.bias", "query", (("q",),), when),
        Row(BLOCK + "self_attn.k_proj.bias", "key", (("kv",),), when),
        Row(BLOCK + "self_attn.v_proj.bias", "value", (("kv",),), when),
        Row(BLOCK + "self_attn.o_proj.bias", "attention_out", (("hidden",),), when),
    )
    return rows if out else rows[:3]


BIASES = _attention_biases("attention_bias", out=True)
COMMON: Mapping[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
}
LONG = {**COMMON, "max_position_embeddings": 131072}
GEMMA = {**COMMON, "head_dim": 256, "tie_word_embeddings": True, "max_position_embeddings": 8192}
QWEN = {**COMMON, "max_position_embeddings": 32768, "use_sliding_window": False, "max_window_layers": 28}

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, BIASES, FFN, FFN_BIASES),
            COMMON,
            heads_divide_hidden=True,
        ),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, BIASES, FFN, FFN_BIASES),
            {**COMMON, "num_key_value_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 32768},
            lists=("no_rope_layers",),
        ),
        Family("mistral", "MistralForCausalLM", _rows(ENDS, PRE_NORMS, ATTENTION, FFN), LONG),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, _attention_biases(None, out=False), FFN),
            QWEN,
            layer_types="window_after",
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, BIASES, HEAD_NORMS, FFN),
            {**QWEN, "head_dim": 128},
            layer_types="window_after",
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            _rows(ENDS, GEMMA_NORMS, ATTENTION, BIASES, FFN),
            {**GEMMA, "final_logit_softcapping": 30.0},
            norm_offset=1.0,
            scales_embeddings=True,
            layer_types="alternate",
            heads_divide_hidden=True,
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            _rows(ENDS, GEMMA_NORMS, ATTENTION, BIASES, HEAD_NORMS, FFN),
            {**GEMMA, "max_position_embeddings": 131072},
            norm_offset=1.0,
            scales_embeddings=True,
            layer_types="every",
            heads_divide_hidden=True,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            _rows(ENDS, PRE_NORMS, FUSED_ATTENTION, FUSED_FFN),
            {**COMMON, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        ),
        Family(
            "olmo2",
            "Olmo2ForCausalLM",
            _rows(ENDS, OLMO2_NORMS, ATTENTION, BIASES, WIDE_HEAD_NORMS, FFN),
            {**COMMON, "rms_norm_eps": 1e-5},
        ),
        Family(
            "granite",
            "GraniteForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, BIASES, FFN, FFN_BIASES),
            COMMON,
        ),
        Family(
            "mixtral",
            "MixtralForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, MIXTRAL_EXPERTS),
            {**LONG, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2},
            experts="num_local_experts",
        ),
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, BIASES, HEAD_NORMS, EXPERTS),
            {
                **QWEN,
                "num_key_value_heads": 4,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "norm_topk_prob": False,
            },
            keys={"ffn": "moe_intermediate_size"},
            experts="num_experts",
            aliases={"num_local_experts": "num_experts"},
        ),
        Family(
            "flex_olmo",
            "FlexOlmoForCausalLM",
            _rows(ENDS, OLMO2_NORMS, ATTENTION, BIASES, WIDE_HEAD_NORMS, EXPERTS),
            {
                **COMMON,
                "max_position_embeddings": 4096,
                "num_experts": 7,
                "num_experts_per_tok": 5,
                "norm_topk_prob": False,
            },
            experts="num_experts",
        ),
        Family(
            "granitemoe",
            "GraniteMoeForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, BIASES, STACKED_EXPERTS),
            {**COMMON, "num_local_experts": 8, "num_experts_per_tok": 2},
            experts="num_local_experts",
        ),
        Family(
            "granitemoeshared",
            "GraniteMoeSharedForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, BIASES, STACKED_EXPERTS, GRANITE_SHARED),
            {**COMMON, "num_local_experts": 8, "num_experts_per_tok": 2},
            keys={"ffn": "intermediate_size", "shared_ffn": "shared_intermediate_size"},
            experts="num_local_experts",
        ),
        Family(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            _rows(ENDS, PRE_NORMS, ATTENTION, _attention_biases("qkv_bias", out=False), SHARED_EXPERTS),
            {**QWEN, "num_experts": 60, "num_experts_per_tok": 4, "qkv_bias": True, "norm_topk_prob": False},
            keys={"expert_ffn": "moe_intermediate_size", "shared_ffn": "shared_expert_intermediate_size"},
            experts="num_experts",
            layer_types="window_after",
        ),
    )
}
