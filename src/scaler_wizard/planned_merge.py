"""The merge at the end of a run, planned: everything that would spoil it is refused before the run begins.

    merge:
      method: linear
      models: [{model: grown, weight: 0.7}, {model: base, weight: 0.3}]
      search: {tries: 8}          # left out, the weights are taken as they are; the merge is judged all the same

`grown` is the model that the run makes, `base` the one that it begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from scaler_wizard.architecture import Architecture, Blueprint, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import GrowthOperator, Operator, grow_program
from scaler_wizard.merge import METHODS, Method, Parent, merge_program
from scaler_wizard.merge.conflicts import Conflicts, compare_changes
from scaler_wizard.merge.knobs import refuse_search
from scaler_wizard.merge.preflight import check, check_tokenizers
from scaler_wizard.merge.program import parent
from scaler_wizard.merge.recipe import WeightSearch, read_merge
from scaler_wizard.parents import BASE, GROWN, grown_alike, names_of, refuse_unlisted, run_parents
from scaler_wizard.phases import Merge, Plan
from scaler_wizard.recipe import Recipe
from scaler_wizard.safe_yaml import load_yaml

TRIES = 12
LENGTH = 256
OURS = {"grow": "the run grows its parents as it grew its own model", "seed": "the run has one seed"}
"""Settings of a merge that a run decides itself."""


def merge_settings(recipe: Recipe, base: Architecture, operators: Sequence[GrowthOperator]) -> Merge:
    """The merge that a recipe asks for, checked against its parents' configurations, headers and samples."""
    assert recipe.merge is not None
    block = dict(recipe.merge)
    search = _search(block.pop("search", None), recipe, base)
    method = _method(block, recipe.seed)
    program = grow_program(base, operators, seed=recipe.seed)
    grown = Parent(GROWN, Blueprint(program.config), program.tensors, base.folder)
    parents = run_parents(method, grown, base, operators, seed=recipe.seed)
    check(method, parents)
    check_tokenizers(parents)
    merge_program(method, parents)
    refuse_search(method, search)
    return Merge(method=method, search=search)


def merge_title(merge: Merge) -> str:
    """In a few words: "merge with base"."""
    others = [name for name in names_of(merge.method) if name != GROWN]
    short = len(others) == 1 and len(others[0]) < 30
    return f"merge with {others[0]}" if short else f"merge of {len(others) + 1} models"


@lru_cache(maxsize=8)
def preview(plan_file: Path, current: Path, grown_by: tuple[Operator, ...] | None = None) -> Conflicts:
    """How far the merge's models have moved from the run's base, and how their changes get on; reads every weight.

    `current` is a checkpoint of the run, which never changes; `grown_by` is how it grew, by the plan where left out.
    """
    plan = Plan.read(load_yaml(plan_file), plan_file.name)
    merge = next((phase.change for phase in plan.phases if isinstance(phase.change, Merge)), None)
    if merge is None:
        raise ScalerError("this run merges nothing", "add a `merge:` block to its recipe")
    operators = plan.grown_by(current.name, {}) if grown_by is None else grown_by
    base, grown = read_architecture(plan.base.folder), parent(GROWN, read_architecture(current))
    parents = run_parents(merge.method, grown, base, operators, seed=plan.seed)
    models = [one for name, one in parents.items() if name != BASE]
    return compare_changes(grown_alike(parent(BASE, base), operators, seed=plan.seed), models)


def _method(block: dict[str, Any], seed: int) -> Method:
    for key, why in OURS.items():
        if key in block:
            raise ScalerError(f"merge.{key}: {why}", "leave it out")
    method = read_merge({"configuration": GROWN, **block, "seed": seed}, "merge", METHODS)
    if GROWN not in names_of(method):
        raise ScalerError("merge: the run's own model is not in it", f"list it: models: [{{model: {GROWN}}}, ...]")
    if method.stacks:
        raise ScalerError("merge: layers are not stacked at the end of a run", "ask for `parameters`, or scaler merge")
    refuse_unlisted(method)
    return method


def _search(block: Any, recipe: Recipe, base: Architecture) -> WeightSearch:
    """The texts are the run's own and the Bible where none are named."""
    texts = {"kjv": "kjv"} if recipe.data == "kjv" else {"data": recipe.data, "kjv": "kjv"}
    usual = {"texts": texts, "tries": TRIES if block else 1, "length": min(LENGTH, base.native_context)}
    if block is not None and not isinstance(block, dict):
        raise ScalerError("merge.search: a group of settings is needed", "write search: {tries: 12}")
    search = WeightSearch.read({**usual, **(block or {})}, "merge.search")
    if search.by in ("direction", "core"):
        raise ScalerError(
            f"merge.search.by: {search.by}: is for adapters, and the run's own model is none", "search by: matrix"
        )
    for name, source in search.texts.items():
        if source != "kjv" and not Path(source).exists():
            raise ScalerError(f"merge.search.texts.{name}: {source}: no such text", 'give "kjv", a file or a folder')
    return search
