"""Tiny random models of every family, saved as real folders, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {"sliding_window": 8}),
    "gemma3_text": ("Gemma3TextConfig", {"sliding_window": 8}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True},
    ),
    "flex_olmo": ("FlexOlmoConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoeConfig", {"num_local_experts": 4, "residual_multiplier": 0.5}),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        {"num_local_experts": 4, "shared_intermediate_size": 40, "residual_multiplier": 0.5},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 40,
        },
    ),
}
FAMILIES = tuple(CONFIGS)
FEW = ("llama-biased", "gemma3_text", "phi3", "olmo2", "granitemoe")
"""Between them: biases, offsets and windows, fused projections, norms behind blocks, stacked experts."""
SELDOM = (pytest.mark.slow, pytest.mark.thorough)
EVERY = [family if family in FEW else pytest.param(family, marks=SELDOM) for family in FAMILIES]
"""All families for `parametrize`; most of them only where slow or thorough tests run."""


def make(folder: Path, family: str = "llama", *, dtype: str = "float32", seed: int = 0, **changes: Any) -> Path:
    """Save a random model whose every tensor matters (norms and biases too), and return its folder."""
    name, own = CONFIGS[family]
    config = getattr(transformers, name)(**{**SMALL, **own, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * 0.3
        parameter.data = noise if parameter.dim() > 1 else parameter.data + noise
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: str = "auto") -> PreTrainedModel:
    """The model of a folder, as anyone would load it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()


def logits(folder: Path, *, length: int = 16, dtype: str = "auto") -> torch.Tensor:
    """Logits (2, length, vocabulary) on fixed random tokens, in fp32."""
    tokens = torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return load(folder, dtype)(tokens).logits.float()
