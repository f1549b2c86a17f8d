"""Low-rank adapters (LoRA, arXiv:2106.09685) through PEFT, with rank-stabilised scaling (arXiv:2312.03732)."""

from __future__ import annotations

from typing import Any

import torch

from scaler_wizard.fused import fuse_adapters

LARGEST_DIFFERENCE = 1e-3


def add_lora(model: Any, *, rank: int, seed: int) -> Any:
    """The model with adapters on every linear layer except the head; only they learn. The function is unchanged."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank, lora_alpha=16, use_rslora=True, target_modules="all-linear", lora_dropout=0.0, bias="none"
    )
    adapted = get_peft_model(model, settings)
    fuse_adapters(adapted)
    return adapted


@torch.no_grad()
def merge_lora(adapted: Any, probe: torch.Tensor) -> Any:
    """The stock model with the adapters merged in; the logits on `probe` (batch, tokens) must stay what they were.

    Raises AssertionError where merging changed the function by more than LARGEST_DIFFERENCE in fp32.
    """
    before = adapted(probe).logits
    model = adapted.merge_and_unload()
    difference = float((model(probe).logits - before).abs().max())
    assert difference <= LARGEST_DIFFERENCE, f"merging the adapters changed a logit by {difference}"
    return model
