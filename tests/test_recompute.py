from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaler_wizard.attention import by_piece
from scaler_wizard.recompute import keep_activations, recompute
from tiny_models import load, make

PIECES = (5, 7, 4)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load(make(tmp_path)).train()


def loss_of(model: Any, seed: int = 0, **more: Any) -> torch.Tensor:
    ids = torch.randint(0, 64, (1, sum(PIECES)), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(length) for length in PIECES])[None]
    logits = model(input_ids=ids, position_ids=positions, pieces=PIECES, use_cache=False, **more).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])


def gradients(model: Any, **more: Any) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    with by_piece(model):
        loss_of(model, **more).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("seen", [(), (1,)])
def test_gradients_are_those_of_kept_activations_whatever_learns(model: Any, first: int, seen: tuple[int, ...]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers" in name and int(name.split("layers.")[1][0]) >= first)
    plain = gradients(model)
    recompute(model.model.layers)
    again = gradients(model, **({"seen": dict.fromkeys(seen)} if seen else {}))
    keep_activations(model.model.layers)
    assert sum(found is not None for found in plain.values()) > 0
    for name, found in plain.items():
        assert (found is None) == (again[name] is None), name
        if found is not None:
            torch.testing.assert_close(again[name], found, rtol=1e-5, atol=1e-7)


def test_in_bfloat16_a_layer_computes_the_same_again(model: Any) -> None:
    found = []
    for again in (False, True):
        if again:
            recompute(model.model.layers)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(gradients(model))
    for name, gradient in found[0].items():
        other = found[1][name]
        assert gradient is not None and other is not None and torch.equal(other, gradient), name


def test_what_a_layer_is_seen_to_compare_carries_gradients(model: Any) -> None:
    found = []
    for again in (False, True):
        if again:
            recompute(model.model.layers)
        model.zero_grad()
        seen: dict[int, Any] = {1: None}
        with by_piece(model):
            (loss_of(model, seen=seen) + seen[1].query.square().mean()).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-7)


def test_layers_below_what_learns_take_no_place(model: Any) -> None:
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    recompute(model.model.layers)
    gradients(model)
    places = model.model.layers[0]._gradient_checkpointing_func.args[2]
    assert sorted(places._taken) == [len(model.model.layers) - 1]


def test_a_pass_that_another_one_has_overwritten_is_refused(model: Any) -> None:
    recompute(model.model.layers)
    with by_piece(model):
        first = loss_of(model, seed=1)
        loss_of(model, seed=2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            first.backward()


def test_a_layer_that_drops_at_random_drops_the_same_again(model: Any) -> None:
    layer = model.model.layers[1]
    layer.mlp.act_fn = torch.nn.Sequential(layer.mlp.act_fn, torch.nn.Dropout(0.5))
    found = []
    for again in (False, True):
        if again:
            recompute(model.model.layers)
        torch.manual_seed(7)
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7)
