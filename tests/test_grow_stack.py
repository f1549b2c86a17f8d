"""Stacked models hold the layers that they say, load in stock transformers, and promise nothing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    DuplicateLayers,
    GrowthOperator,
    StackLayers,
    grow_program,
    grown_size,
    new_parameters,
    promise,
)
from scaler_wizard.weights import write
from tiny_models import EVERY, load, logits, make


def order(folder: Path, operator: GrowthOperator) -> list[int]:
    """Which old layer each new one is, found by its weights."""
    write(grow_program(read_architecture(folder), [operator]), folder / "grown", durable=False)
    old, new = load_file(folder / "model.safetensors"), load_file(folder / "grown/model.safetensors")
    name = "model.layers.{}.self_attn.o_proj.weight"
    olds = [old[name.format(layer)] for layer in range(read_architecture(folder).layers)]
    news = [new[name.format(layer)] for layer in range(read_architecture(folder / "grown").layers)]
    return [next(i for i, tensor in enumerate(olds) if torch.equal(tensor, found)) for found in news]


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (StackLayers(layers=6, method="solar"), [0, 1, 2, 1, 2, 3]),
        (StackLayers(layers=8, method="solar"), [0, 1, 2, 3, 0, 1, 2, 3]),
        (StackLayers(layers=8, method="g_stack"), [0, 1, 2, 3, 0, 1, 2, 3]),
        (StackLayers(layers=6, method="midas"), [0, 1, 2, 1, 2, 3]),
        (StackLayers(layers=5, method="midas"), [0, 1, 1, 2, 3]),
        (DuplicateLayers(layers=(2, 0, 2)), [0, 0, 1, 2, 2, 2, 3]),
    ],
)
def test_layers_stand_in_the_order_of_the_method(tmp_path: Path, operator: GrowthOperator, expected: list[int]) -> None:
    assert order(make(tmp_path, num_hidden_layers=4), operator) == expected


@pytest.mark.parametrize("family", EVERY)
def test_a_stacked_model_loads_and_is_finite(tmp_path: Path, family: str) -> None:
    source = read_architecture(make(tmp_path, family, num_hidden_layers=4))
    operators = [StackLayers(layers=7, method="midas")]
    write(grow_program(source, operators), tmp_path / "grown", durable=False)
    model = load(tmp_path / "grown")
    assert sum(parameter.numel() for parameter in model.parameters()) == grown_size(source, operators)
    assert logits(tmp_path / "grown").isfinite().all() and promise(operators) == "no"


def test_window_types_follow_their_layers(tmp_path: Path) -> None:
    make(tmp_path, "gemma2", num_hidden_layers=4)
    order(tmp_path, StackLayers(layers=6, method="solar"))
    types = read_architecture(tmp_path).layer_types
    assert types is not None
    assert read_architecture(tmp_path / "grown").layer_types == [types[layer] for layer in (0, 1, 2, 1, 2, 3)]


def test_only_the_second_copies_are_new(tmp_path: Path) -> None:
    new = new_parameters(read_architecture(make(tmp_path)), [DuplicateLayers(layers=(1,))]).tensors
    assert {name.split(".")[2] for name in new} == {"2"}


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (StackLayers(layers=3), "name 4 to 6"),
        (StackLayers(layers=7), "name 4 to 6"),
        (StackLayers(layers=7, method="g_stack"), "name 9"),
        (DuplicateLayers(layers=(3,)), "no layer 3"),
    ],
)
def test_what_cannot_be_stacked_is_refused(tmp_path: Path, operator: GrowthOperator, words: str) -> None:
    with pytest.raises(ScalerError, match=words):
        grown_size(read_architecture(make(tmp_path)), [operator])
