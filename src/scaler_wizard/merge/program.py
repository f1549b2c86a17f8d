"""From a method and its models to the checkpoint program that writes the merged model; reads no weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scaler_wizard.architecture import Architecture, Blueprint, Place
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.method import MergedModel, Method, Tensors
from scaler_wizard.weights import Expression, Input, Program, stacks_of

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
Key = tuple[str, int | None, int | None]
"""A tensor by its row of the family, its layer and its expert."""


@dataclass(frozen=True)
class Parent:
    """One of the models: its configuration and its tensors, which an adapter may have changed already."""

    name: str
    """As the recipe names it."""
    view: Blueprint
    tensors: Mapping[str, Expression]
    folder: Path
    """Where its files are."""
    adapter: Path | None = None
    """Weights of the adapter that was added to it."""

    @cached_property
    def _names(self) -> dict[Key, str]:
        return {key_of(place): place.name for place in self.view.places()}

    def tensor(self, place: Place, first_layer: int) -> Expression:
        """The tensor for a place of the merged model, whose layer 0 is this model's `first_layer`."""
        row, layer, expert = key_of(place)
        if place.row.role == "head" and self.view.tied:  # the merged model has a head of its own
            return self.tensors[self._names[_embedding(self.view)]]
        return self.tensors[self._names[row, None if layer is None else layer + first_layer, expert]]


def parent(name: str, architecture: Architecture) -> Parent:
    """A model as it is on disk."""
    tensors = {key: Input(tensor) for key, tensor in architecture.tensors.items()}
    return Parent(name, Blueprint(architecture.config), tensors, architecture.folder)


def key_of(place: Place) -> Key:
    """Which tensor it is, whatever the model calls it."""
    return place.row.name, place.layer, place.expert


def _embedding(view: Blueprint) -> Key:
    return next(key_of(place) for place in view.places() if place.row.role == "embedding")


def merge_program(method: Method, parents: Mapping[str, Parent]) -> Program:
    """The program that writes the merged model; `parents` holds every model that the method names."""
    after = merged_view(method, parents)
    tensors = {one.name: method.merged(one) for one in placed(method, parents)}
    return Program(dict(after.config), tensors, seed=method.seed, stacks=stacks_of(after))


def placed(method: Method, parents: Mapping[str, Parent]) -> Iterator[Tensors]:
    """What comes together at each place of the merged model."""
    layers = layers_of(method, parents)
    for place in merged_view(method, parents).places():
        chosen = _chosen(method, parents, layers, place)
        yield Tensors(
            name=place.name,
            depth=0.0 if place.layer is None else layers[place.layer].depth,
            base=None if method.base is None else parents[method.base].tensor(place, chosen[0][1]),
            models=tuple(parents[model.model].tensor(place, first) for model, first in chosen),
            settings=tuple(model for model, _ in chosen),
            dtype=_dtype(method, parents, place),
        )


def leader(method: Method) -> str:
    """Whose configuration and type the merged model has."""
    return method.configuration or method.base or str(method.models[0].model)


def merged_view(method: Method, parents: Mapping[str, Parent]) -> Blueprint:
    """The configuration of the merged model; lists with one entry a layer follow the layers."""
    view = parents[leader(method)].view
    layers = layers_of(method, parents)
    changes: dict[str, object] = {"num_hidden_layers": len(layers)}
    if view.layer_types is not None:
        types = [parents[layer.model.model].view.layer_types or [] for layer in layers]
        changes["layer_types"] = [own[layer.number] for own, layer in zip(types, layers, strict=True)]
    if method.dtype is not None:
        changes |= {"dtype": method.dtype, "torch_dtype": None}
    return view.changed(**changes)


@dataclass(frozen=True)
class MergedLayer:
    """One layer of the merged model."""

    model: MergedModel
    """Where it comes from; the first of several where layers are mixed."""
    number: int
    """Which layer of that model."""
    depth: float
    """0 in the first layer of its run, 1 in the last."""


def layers_of(method: Method, parents: Mapping[str, Parent]) -> list[MergedLayer]:
    """The merged model's layers from the bottom to the top."""
    found = []
    for model in method.models if method.stacks else method.models[:1]:
        start, stop = run_of(model, parents)
        last = max(stop - start - 1, 1)
        found += [MergedLayer(model, layer, (layer - start) / last) for layer in range(start, stop)]
    return found


def run_of(model: MergedModel, parents: Mapping[str, Parent]) -> tuple[int, int]:
    """Layers of a model that are used."""
    depth = parents[model.model].view.layers
    start, stop = model.layers or (0, depth)
    if stop > depth:
        raise ScalerError(f"{model.model}: layers [{start}, {stop}], and it has {depth}", f"end at {depth} at most")
    return start, stop


def _chosen(
    method: Method, parents: Mapping[str, Parent], layers: list[MergedLayer], place: Place
) -> list[tuple[MergedModel, int]]:
    """The models that give a place, each with the layer that stands for the merged model's layer 0."""
    if not method.stacks:
        return [(model, run_of(model, parents)[0]) for model in method.models]
    if place.layer is not None:
        return [(layers[place.layer].model, layers[place.layer].number - place.layer)]
    return [(method.models[0 if place.row.role == "embedding" else -1], 0)]


def _dtype(method: Method, parents: Mapping[str, Parent], place: Place) -> str:
    """As asked for, or as the leader's; its tensors of one kind have one type."""
    if method.dtype is not None:
        return STORED[method.dtype]
    return parents[leader(method)].tensor(place, -(place.layer or 0)).dtype
