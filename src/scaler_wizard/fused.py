"""Linear layers with their low-rank adapters, and gated layers of such, as one function each: fewer passes over large
activations than PEFT's own, and about half as much kept for the backward pass.

y = x W' + b + s (x A') B', with the adapter's part added in place, forward and backward; layers that read the same x
share its copy in the type that they compute in. A gated layer (SwiGLU) keeps its two halves and makes their product
again. Only for plain adapters without dropout on frozen layers; every other kind keeps PEFT's forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch.nn import functional


@dataclass(frozen=True)
class _Layer:
    """A frozen layer and its adapter, in the type that they compute in; a and b still reach what learns."""

    weight: torch.Tensor
    """(out, in)"""
    bias: torch.Tensor | None
    """(out,)"""
    a: torch.Tensor
    """(rank, in)"""
    b: torch.Tensor
    """(out, rank)"""
    scale: float


class _LinearWithAdapter(torch.autograd.Function):  # type: ignore[misc]
    """x (rows, in), its copy to compute with, weight, bias or None, a, b -> (rows, out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        copied: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = copied @ a.T
        ctx.save_for_backward(copied, low, weight, a, b)
        ctx.scale, ctx.dtype = scale, x.dtype
        return functional.linear(copied, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_x = (grad @ weight).addmm_(grad_low, a).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, grad_low.T @ x, (grad.T @ low).mul_(ctx.scale), None


class _GatedDown(torch.autograd.Function):  # type: ignore[misc]
    """gate and up (rows, in), weight, bias or None, a, b -> (rows, out): the down projection of silu(gate) up."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        x = functional.silu(gate).mul_(up)
        low = x @ a.T
        ctx.save_for_backward(gate, up, low, weight, a, b)
        ctx.scale = scale
        return functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, low, weight, a, b = ctx.saved_tensors
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_x = (grad @ weight).addmm_(grad_low, a)
        opened = functional.silu(gate)
        grad_a = grad_low.T @ (opened * up)
        grad_up = opened.mul_(grad_x)
        grad_gate = torch.ops.aten.silu_backward(grad_x.mul_(up), gate)
        return grad_gate, grad_up, None, None, grad_a, (grad.T @ low).mul_(ctx.scale), None


def fuse_adapters(model: Any) -> int:
    """Let every plain adapter of a PEFT model compute in one function; returns how many do.

    The modules, their parameters and their names stay, so merging and saving are PEFT's.
    """
    from peft.tuners.lora import Linear

    found, copies = 0, _Copies()
    for module in list(model.modules()):
        if isinstance(module, Linear) and _plain(module):
            module.forward = partial(_forward, module, type(module).forward, copies)
            found += 1
    for module in list(model.modules()):
        if _is_gated(module):
            module.forward = partial(_gated, module, type(module).forward)
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


def _is_gated(module: Any) -> bool:
    """A feed-forward part of exactly three linear layers, down(silu(gate) up), whose last has a plain adapter."""
    from peft.tuners.lora import Linear
    from transformers.activations import SiLUActivation

    names = {name for name, _ in module.named_children()}
    return (
        names == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and isinstance(module.act_fn, (torch.nn.SiLU, SiLUActivation))
        and isinstance(module.down_proj, Linear)
        and _plain(module.down_proj)
    )


class _Copies:
    """The last input in the type to compute in: what reads the same input shares one copy."""

    def __init__(self) -> None:
        self._of: Any = lambda: None
        self._version, self._copy = 0, torch.empty(0)

    def of(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x (..., in) -> (rows, in), without a gradient of its own."""
        if x.is_inference():  # such a tensor does not say whether it has changed
            return x.to(dtype).flatten(0, -2)
        if self._of() is not x or self._version != x._version or self._copy.dtype != dtype:
            self._copy = x.detach().to(dtype).flatten(0, -2)
            self._of, self._version = ref(x), x._version
        return self._copy


def _forward(module: Any, otherwise: Any, copies: _Copies, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if module.disable_adapters or module.merged or not _plain(module):
        found: torch.Tensor = otherwise(module, x, *args, **kwargs)
        return found
    layer, kind = _layer(module, x), x.device.type
    copied = copies.of(x, layer.weight.dtype)
    with torch.autocast(kind, enabled=False):
        found = _LinearWithAdapter.apply(
            x.flatten(0, -2), copied, layer.weight, layer.bias, layer.a, layer.b, layer.scale
        )
    return found.unflatten(0, x.shape[:-1])


def _gated(module: Any, otherwise: Any, x: torch.Tensor) -> torch.Tensor:
    down = module.down_proj
    if not hasattr(down, "lora_A") or down.disable_adapters or down.merged or not _plain(down):
        found: torch.Tensor = otherwise(module, x)
        return found
    layer = _layer(down, x)
    gate, up = (part(x).to(layer.weight.dtype).flatten(0, -2) for part in (module.gate_proj, module.up_proj))
    with torch.autocast(x.device.type, enabled=False):
        found = _GatedDown.apply(gate, up, layer.weight, layer.bias, layer.a, layer.b, layer.scale)
    return found.unflatten(0, x.shape[:-1])


def _layer(module: Any, x: torch.Tensor) -> _Layer:
    """In autocast's type where that is on, else in the frozen layer's."""
    name, base, kind = module.active_adapters[0], module.base_layer, x.device.type
    compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
    bias = None if base.bias is None else base.bias.to(compute)
    a, b = (factor[name].weight.to(compute) for factor in (module.lora_A, module.lora_B))
    return _Layer(base.weight.to(compute), bias, a, b, module.scaling[name])
