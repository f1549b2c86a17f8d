"""Whom a merge brings together: its parents by name, from disk, or, in a run, the run's own models.

In a run `grown` is the model that the run has made so far and `base` the one that it began with, grown in the same way,
so that every new number stands at the same place in both. Other parents may have the size of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scaler_wizard.architecture import Architecture, Blueprint, Tensor, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge import Method, Parent
from scaler_wizard.merge.adapters import Adapter, adapted, read_adapter
from scaler_wizard.merge.program import parent
from scaler_wizard.models import resolve

if TYPE_CHECKING:
    from scaler_wizard.grow import GrowthOperator

COMPARED_BYTES = 4096
GROWN, BASE = "grown", "base"
SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "experts", "vocabulary")


def names_of(method: Method) -> list[str]:
    """The base and the models by name, each once."""
    names = [*([method.base] if method.base is not None else []), *(model.model for model in method.models)]
    return list(dict.fromkeys(names))


def named_parent(name: str) -> Parent:
    """A model, or `MODEL+ADAPTER`."""
    if "+" not in name or Path(name).expanduser().is_dir():
        return parent(name, read_architecture(resolve(name).folder))
    model, _, place = name.rpartition("+")
    base, adapter = read_architecture(resolve(model).folder), read_adapter(Path(place))
    refuse_another_base(adapter, base, model)
    return adapted(parent(model, base), adapter, name)


def refuse_another_base(adapter: Adapter, base: Architecture, name: str) -> None:
    """Refuse a base whose weights are not those that the adapter was made for, as far as these are at hand.

    The beginnings of the matrices that it changes are compared, where both folders hold them in the same type.
    """
    told = adapter.config.get("base_model_name_or_path")
    if not isinstance(told, str) or not (Path(told) / "config.json").is_file():
        return
    theirs = read_architecture(Path(told)).tensors
    for module in adapter.products:
        one, other = base.tensors.get(f"{module}.weight"), theirs.get(f"{module}.weight")
        if one is None or other is None or one.dtype != other.dtype:
            continue
        if _beginning(one) != _beginning(other):
            raise ScalerError(
                f"{adapter.name}: made for {told}, whose {one.name} is not that of {name}",
                f"name its own base: {told}+{adapter.name}",
            )


def _beginning(tensor: Tensor) -> bytes:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return stream.read(min(COMPARED_BYTES, tensor.end - tensor.start))


def refuse_unlisted(method: Method) -> None:
    """Refuse names that stand for nothing in this merge, and models that stand in it twice."""
    known = names_of(method)
    if method.configuration is not None and method.configuration not in known:
        raise ScalerError(f"configuration: {method.configuration} is not merged", f"name one of {', '.join(known)}")
    if method.tokenizer not in (None, "base", "union", *known):
        raise ScalerError(f"tokenizer: {method.tokenizer} is not merged", f"name one of {', '.join(known)}")
    if method.tokenizer == "base" and method.base is None and method.configuration is None:
        raise ScalerError("tokenizer: base: there is no base", f"name one of {', '.join(known)}")
    names = [model.model for model in method.models]
    twice = [name for name in names if names.count(name) > 1 or name == method.base]
    if twice and not method.stacks:
        raise ScalerError(f"{twice[0]}: stands twice in the merge", "list every model once, and the base as `base`")


def sizes(view: Blueprint) -> dict[str, int | None]:
    """Every size that has to be equal; None for experts of a dense model."""
    return {name: getattr(view, name) for name in SIZES}


def apart(one: Blueprint, two: Blueprint) -> str:
    """In which sizes two models differ."""
    pairs = [(name, sizes(one)[name], sizes(two)[name]) for name in SIZES]
    return ", ".join(f"{name} {first} and {second}" for name, first, second in pairs if first != second)


def run_parents(
    method: Method, grown: Parent, base: Architecture, operators: Sequence[GrowthOperator], *, seed: int
) -> dict[str, Parent]:
    """Every parent of a run's merge; those of the base's size are grown as the run grew it, with the same seed."""
    found = {}
    for name in names_of(method):
        if name == GROWN:
            found[name] = grown
        elif name == BASE:
            found[name] = grown_alike(parent(BASE, base), operators, seed=seed)
        else:
            found[name] = _other(named_parent(name), grown, base, operators, seed=seed)
    return found


def grown_alike(one: Parent, operators: Sequence[GrowthOperator], *, seed: int) -> Parent:
    """The parent after the run's growth: the same function, and new parts as they were before any training."""
    if not operators:
        return one
    from scaler_wizard.grow import grow_program  # a merge without a run does without it

    if one.adapter is not None:
        raise ScalerError(f"{one.name}: an adapter cannot be grown", "merge it into its model first")
    program = grow_program(read_architecture(one.folder), operators, seed=seed)
    return replace(one, view=Blueprint(program.config), tensors=program.tensors)


def _other(one: Parent, grown: Parent, base: Architecture, operators: Sequence[GrowthOperator], *, seed: int) -> Parent:
    if sizes(one.view) == sizes(grown.view):
        return one
    if sizes(one.view) == sizes(base):
        return grown_alike(one, operators, seed=seed)
    raise ScalerError(
        f"{one.name} has neither the size of the grown model nor that of its base: {apart(one.view, grown.view)}",
        "grow it to the same size first (scaler grow), or merge outside the run with grow: true",
    )
