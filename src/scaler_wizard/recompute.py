"""Activations made again in the backward pass (arXiv:1604.06174), from each layer's input in a place of its own.

Torch's own way leaves small things on the heap between large ones at every layer, and what is freed around them cannot
be used again: a training took three times what it needed. Here a layer's first pass leaves nothing behind, and its
input stands in a place that is taken once and used at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

Forward = Callable[[torch.Tensor], torch.Tensor]


class _Again(torch.autograd.Function):  # type: ignore[misc]
    """hidden (1, tokens, hidden), a tensor that learns, the place for a copy of hidden, the layer -> its output."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, _: torch.Tensor, place: torch.Tensor, run: Forward) -> torch.Tensor:
        kind = hidden.device.type
        ctx.run = run
        ctx.cast = partial(
            torch.autocast, kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )
        ctx.save_for_backward(place.copy_(hidden))  # autograd refuses to go back once another pass has written here
        return run(place)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        hidden = place.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad(), ctx.cast():
            found = ctx.run(hidden)
        torch.autograd.backward(found, grad)
        return hidden.grad, None, None, None


class _Places:
    """One for the input of every layer, all taken when the first layer asks."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._taken: dict[int, torch.Tensor] = {}

    def of(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """A tensor like `hidden`; layers before the first one that asks need none."""
        held = self._taken.get(layer)
        if held is None or (held.shape, held.dtype) != (hidden.shape, hidden.dtype):
            self._taken.clear()
            self._taken = {one: torch.empty_like(hidden) for one in range(layer, self._layers)}
        return self._taken[layer]


def recompute(layers: Sequence[Any]) -> None:
    """From now on these layers of a transformers model keep only their input for the backward pass, while training.

    Layers with dropout, those that are looked into (`seen`), and those that take more than one tensor go torch's way.
    """
    places, learning = _Places(len(layers)), torch.empty(0, requires_grad=True)
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_pass, layer, number, places, learning)


def keep_activations(layers: Sequence[Any]) -> None:
    """Undo `recompute`; the places are given back."""
    for layer in layers:
        layer.gradient_checkpointing = False
        layer._gradient_checkpointing_func = None


def _pass(
    layer: torch.nn.Module, number: int, places: _Places, learning: torch.Tensor, run: Any, *inputs: Any
) -> torch.Tensor:
    hidden = inputs[0]
    if not torch.is_grad_enabled() or not (hidden.requires_grad or any(p.requires_grad for p in layer.parameters())):
        return run(*inputs)
    if len(inputs) > 1 or number in (run.keywords.get("seen") or ()) or _drops(layer):
        return checkpoint(run, *inputs, use_reentrant=False)
    found: torch.Tensor = _Again.apply(hidden, learning, places.of(number, hidden), run)
    return found


def _drops(layer: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in layer.modules())
