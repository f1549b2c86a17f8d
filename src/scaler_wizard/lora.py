"""Low-rank adapters through PEFT: plain (LoRA, arXiv:2106.09685), weight-decomposed (DoRA, arXiv:2402.09353), begun in
the weights' own principal directions (PiSSA, arXiv:2404.02948) or in the text's (EVA, arXiv:2410.07170).

All with rank-stabilised scaling (arXiv:2312.03732), on every linear layer but the head. Ranks are the same everywhere,
or spread over the matrices by the spectrum of their gradients; then every adapter has the scale of the uniform rank,
since one that shrinks with the rank would let the matrices that matter most learn slowest (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from scaler_wizard.fused import fuse_adapters

Kind = Literal["lora", "dora", "pissa", "eva"]
ALPHA = 16
LARGEST_DIFFERENCE = 1e-3
MOST_TIMES = 4
"""A matrix gets at most this many times the uniform rank."""
OVERSAMPLED = 8
READ_ROWS = 2048
"""Tokens that the principal directions of a layer's input are found in."""


def add_lora(
    model: Any,
    *,
    rank: int,
    seed: int,
    kind: Kind = "lora",
    ranks: Mapping[str, int] | None = None,
    text: Sequence[torch.Tensor] = (),
) -> Any:
    """The model with adapters; only they learn, and the function is unchanged (up to rounding for pissa).

    `ranks` names matrices whose rank differs from `rank`. EVA reads `text`, (batch, tokens) ids each.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=ALPHA,
        use_rslora=True,
        target_modules="all-linear",
        lora_dropout=0.0,
        bias="none",
        use_dora=kind == "dora",
        init_lora_weights="pissa_niter_8" if kind == "pissa" else True,
        rank_pattern=dict(ranks or {}),
        alpha_pattern={name: ALPHA * math.sqrt(own / rank) for name, own in (ranks or {}).items()},
    )
    adapted = get_peft_model(model, settings)
    if kind == "eva":
        _begin_in_text(adapted, text)
    fuse_adapters(adapted)
    return adapted


@torch.no_grad()
def _begin_in_text(adapted: Any, text: Sequence[torch.Tensor]) -> None:
    """Let each adapter read along the principal directions of what its layer reads, found in one pass over the text."""
    from peft.tuners.lora import Linear

    def look(layer: Any, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        rows = inputs[0].detach().flatten(0, -2)[:READ_ROWS].float()
        for factor in layer.lora_A.values():
            found = min(len(factor.weight) + OVERSAMPLED, *rows.shape)  # more than are kept, for their precision
            directions = torch.svd_lowrank(rows, q=found, niter=4)[2].T[: len(factor.weight)]
            factor.weight[: len(directions)] = directions.to(factor.weight)

    hooks = [layer.register_forward_hook(look) for layer in adapted.modules() if isinstance(layer, Linear)]
    adapted(torch.cat(list(text)).to(adapted.device), use_cache=False)
    for hook in hooks:
        hook.remove()


def spectrum_ranks(model: Any, losses: Sequence[Any], *, rank: int) -> dict[str, int]:
    """Ranks by name that cost no more parameters than `rank` everywhere, where the gradient has most to say.

    `losses` are functions of the model; a direction of a matrix is worth the square of its singular value in the summed
    gradient times the matrix's own length, so that what counts is a change in proportion, for each of its in + out
    parameters; the best are taken until the budget is spent (the signal of LoRA-GA, arXiv:2407.05000). Leaves the model
    as it was.
    """
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for loss in losses:
        loss(model).backward()
    values = {
        name: torch.linalg.svdvals(layer.weight.grad.float()) * float(layer.weight.detach().float().norm())
        for name, layer in layers.items()
    }
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(before[name])
    costs = {name: sum(layer.weight.shape) for name, layer in layers.items()}
    return spread(values, costs, rank=rank)


def spread(values: Mapping[str, torch.Tensor], costs: Mapping[str, int], *, rank: int) -> dict[str, int]:
    """Water-fill the parameters of a uniform `rank`: every matrix gets at least 1, at most MOST_TIMES x `rank`.

    values are singular values by matrix, falling; costs the parameters of one rank.
    """
    ranks = dict.fromkeys(values, 1)
    left = (rank - 1) * sum(costs.values())
    worth = [
        (float(value) ** 2 / costs[name], name)
        for name, found in values.items()
        for value in found[1 : MOST_TIMES * rank]
    ]
    for _, name in sorted(worth, reverse=True):
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def adapter_ranks(model: Any) -> dict[str, int]:
    """Rank of the adapter at each matrix, by the matrix's name in the stock model; empty where there are none."""
    found = {name: getattr(layer, "r", None) for name, layer in model.named_modules()}
    return {
        name.removeprefix("base_model.model."): int(rank["default"])
        for name, rank in found.items()
        if isinstance(rank, dict) and "default" in rank
    }


@torch.no_grad()
def restart_lora(adapted: Any, *, seed: int) -> None:
    """Merge what plain adapters have learnt into the frozen weights, which must be in fp32, and begin them anew.

    Low ranks that follow each other add up to a higher one (ReLoRA, arXiv:2307.05695).
    """
    from peft.tuners.lora import Linear

    torch.manual_seed(seed)
    for layer in adapted.modules():
        if isinstance(layer, Linear):
            for name in layer.active_adapters:
                layer.base_layer.weight += layer.get_delta_weight(name)
                layer.reset_lora_parameters(name, True)


def moved_lora(adapted: Any, base: Any, *, rank: int, seed: int, kind: Kind) -> Any:
    """The same adapters on another copy of their base: what learnt on 4-bit weights is merged into the whole ones."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    found = add_lora(base, rank=rank, seed=seed, kind=kind)
    learnt = {name: tensor.to(base.device) for name, tensor in get_peft_model_state_dict(adapted).items()}
    set_peft_model_state_dict(found, learnt)
    return found


def save_lora(adapted: Any, folder: Path, *, base: str) -> None:
    """The adapters by themselves, as PEFT keeps them; `base` says what they belong to."""
    for settings in adapted.peft_config.values():
        settings.base_model_name_or_path = base
    adapted.save_pretrained(folder, save_embedding_layers=False)


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
