"""A linear layer and its low-rank adapter as one function: fewer passes over large activations than PEFT's own.

y = x W' + b + s (x A') B', with the adapter's part added in place, forward and backward. Only for plain adapters
without dropout on frozen layers; every other kind keeps PEFT's forward pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import functional


class _LinearWithAdapter(torch.autograd.Function):  # type: ignore[misc]
    """x (rows, in), weight (out, in), bias (out,) or None, a (rank, in), b (out, rank) -> (rows, out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = x @ a.T
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_x = (grad @ weight).addmm_(grad_low, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_low.T @ x, (grad.T @ low).mul_(ctx.scale), None


def fuse_adapters(model: Any) -> int:
    """Let every plain adapter of a PEFT model compute in one function; returns how many do.

    The modules, their parameters and their names stay, so merging and saving are PEFT's.
    """
    from peft.tuners.lora import Linear

    found = 0
    for module in model.modules():
        if isinstance(module, Linear) and _plain(module):
            module.forward = partial(_forward, module, type(module).forward)
            found += 1
    return found


def _plain(module: Any) -> bool:
    adapters = module.active_adapters
    return (
        type(module.base_layer) is torch.nn.Linear
        and len(adapters) == 1
        and adapters[0] in module.lora_A
        and adapters[0] not in module.lora_variant
        and isinstance(module.lora_dropout[adapters[0]], torch.nn.Identity)
        and module.lora_B[adapters[0]].bias is None
        and not module.base_layer.weight.requires_grad
    )


def _forward(module: Any, otherwise: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if module.disable_adapters or module.merged or not _plain(module):
        found: torch.Tensor = otherwise(module, x, *args, **kwargs)
        return found
    name, base, kind = module.active_adapters[0], module.base_layer, x.device.type
    compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
    parts = [None if part is None else part.to(compute) for part in (base.weight, base.bias)]
    factors = [factor[name].weight.to(compute) for factor in (module.lora_A, module.lora_B)]
    with torch.autocast(kind, enabled=False):
        rows = x.to(compute).flatten(0, -2)
        found = _LinearWithAdapter.apply(rows, *parts, *factors, module.scaling[name])
    return found.unflatten(0, x.shape[:-1])
