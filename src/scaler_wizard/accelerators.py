"""What only a GPU gives: moments in 8 bits, frozen weights in 4, Liger's fused layers; elsewhere refused with its cure.

Each is asked for by name in a recipe and imported where it is used. Not covered: GPUs that are not NVIDIA's.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from scaler_wizard.errors import ScalerError

PACKAGES = {"optimizer": "bitsandbytes", "lora_base": "bitsandbytes", "kernels": "liger_kernel"}
"""What a wish other than the default needs."""
PLAIN = {"optimizer": "adamw", "lora_base": "whole", "kernels": "torch"}


class Wishes(Protocol):
    """The fields of a recipe or a plan that may need a GPU."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lora_base(self) -> str: ...
    @property
    def kernels(self) -> str: ...


def gpu_wishes(said: Wishes) -> list[str]:
    """Names of the fields that ask for what only a GPU gives."""
    return [name for name, plain in PLAIN.items() if getattr(said, name) != plain]


def refuse_without_gpu(wish: str, *, has_gpu: bool) -> None:
    """Raise ScalerError where the machine or an installed package lacks for this field."""
    if not has_gpu:
        raise ScalerError(
            f"heal.{wish}: needs an NVIDIA GPU, and none answers on this machine",
            f"leave it out (that is {PLAIN[wish]}), or run where `scaler doctor` finds a GPU",
        )
    if find_spec(PACKAGES[wish]) is None:
        raise ScalerError(f"heal.{wish}: {PACKAGES[wish]} is not installed", 'pip install "scaler-wizard[gpu]"')


def small_moments(groups: list[dict[str, Any]], *, betas: tuple[float, float]) -> Any:
    """AdamW whose moments take 8 bits, in blocks (arXiv:2110.02861)."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=0.0, betas=betas)


def load_in_four_bits(folder: Path) -> Any:
    """The model of a folder with its linear layers in 4-bit normal floats (arXiv:2305.14314), frozen, on the GPU."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from scaler_wizard.untrusted.folder import inert

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with inert(folder) as view:
        return AutoModelForCausalLM.from_pretrained(
            str(view),
            quantization_config=how,
            dtype=torch.float32,
            device_map={"": 0},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )


def use_liger(model: Any) -> None:
    """Liger's norms, rotary and gated layers instead of the model's own; the loss stays ours."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
