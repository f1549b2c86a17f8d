"""Grow smaller models to the size of the largest before they are merged; each keeps its function exactly.

Where the largest was grown by this program, its `growth.json` says how, so the smaller ones are grown in the same way
and every new number stands where the larger model has it. Else the operators follow from the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scaler_wizard.architecture import Blueprint, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    AddKvGroups,
    GrowthOperator,
    GrowVocabulary,
    IdentityBlocks,
    WidenFfn,
    WidenHidden,
    grow_program,
    grown,
    promise,
)
from scaler_wizard.merge import Parent
from scaler_wizard.oneshot import GROWTH, Growth
from scaler_wizard.parents import apart, sizes


def matched(parents: Mapping[str, Parent]) -> tuple[dict[str, Parent], tuple[str, ...], int | None]:
    """Parents of one size, what was grown in sentences, and the seed of the largest one's growth where it is known."""
    largest = max(parents.values(), key=lambda one: one.view.parameters)
    found: dict[str, Parent] = {}
    notes: list[str] = []
    for name, one in parents.items():
        if sizes(one.view) == sizes(largest.view):
            found[name] = one
            continue
        operators = between(one, largest)
        program = grow_program(read_architecture(one.folder), operators)
        found[name] = replace(one, view=Blueprint(program.config), tensors=program.tensors)
        notes.append(f"{name} was grown to the size of {largest.name}: {', '.join(op.title for op in operators)}")
    growth = _growth(largest.folder)
    return found, tuple(notes), growth.seed if growth and notes else None


def between(small: Parent, large: Parent) -> tuple[GrowthOperator, ...]:
    """Operators that keep the function of the small model and give it the sizes of the large one."""
    if small.adapter is not None:
        raise ScalerError(f"{small.name}: an adapter cannot be grown", "merge it into its model first")
    growth = _growth(large.folder)
    chains = [growth.operators] if growth else []
    for chain in [*chains, _by_size(small.view, large.view)]:
        try:
            fits = sizes(grown(small.view, chain)) == sizes(large.view)
        except ScalerError:
            continue  # the recorded growth began from another size
        if fits and promise(chain) != "no":
            return tuple(chain)
    raise ScalerError(
        f"{small.name} cannot be grown to the size of {large.name}: {apart(small.view, large.view)}",
        "grow it by hand (`scaler grow`), or merge models of one size",
    )


def _growth(folder: Path) -> Growth | None:
    file = folder / GROWTH
    return Growth.load(file) if file.is_file() else None


def _by_size(small: Blueprint, large: Blueprint) -> tuple[GrowthOperator, ...]:
    chain: list[GrowthOperator] = []
    if large.hidden > small.hidden:
        chain.append(WidenHidden(size=large.hidden))
    if large.kv_heads > small.kv_heads:
        chain.append(AddKvGroups(groups=large.kv_heads - small.kv_heads))
    if large.ffn > small.ffn:
        chain.append(WidenFfn(size=large.ffn, split="zero" if (large.ffn - small.ffn) % 2 else "pairs"))
    if large.layers > small.layers:
        chain.append(IdentityBlocks(blocks=large.layers - small.layers))
    if large.vocabulary > small.vocabulary:
        chain.append(GrowVocabulary(size=large.vocabulary, multiple=1))
    return tuple(chain)
