"""Read a merge from YAML: our own `merge:` block, or mergekit's format as it is.

merge:
  method: ties
  base: path/to/base
  models:
    - {model: path/to/a, weight: 0.6, density: 0.5}
    - {model: path/to/b, weight: 0.4, density: [0.3, 0.7]}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.mergekit import translated
from scaler_wizard.merge.method import Method
from scaler_wizard.record import Record
from scaler_wizard.safe_yaml import load_yaml


class WeightSearch(Record):
    """How merge weights are chosen, and on which texts the merge is judged."""

    texts: Annotated[dict[str, str], Field(min_length=1)]
    """Text for each skill that the merge shall keep: `kjv`, a file or a folder, by a name."""
    tries: Annotated[int, Field(ge=1, le=1000)] = 24
    """Merges that are measured at most; 1 takes the weights as they are. Where the gradient learns: its steps."""
    by: Literal["model", "matrix", "direction", "core"] = "model"
    """What has a weight of its own: each model, tried one by one; or, by the gradient of the loss (task_arithmetic
    alone), each model's every matrix; of adapters, every direction; or, of adapters, every pair of directions."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Time after which the best so far is taken."""
    windows: Annotated[int, Field(ge=4, le=1000)] = 8
    """Calibration windows of each text; twice as many held-out ones judge the result."""
    length: Annotated[int, Field(ge=16, le=8192)] = 256
    """Tokens of a window."""


def load_merge(path: Path, methods: Mapping[str, type[Method]]) -> Method:
    """Read a recipe file in either format."""
    data = load_yaml(path)
    if "merge_method" in data:
        return read_merge(translated(data, path.name, methods), path.name, methods)
    extra = next((key for key in data if key not in ("merge", "search")), None)
    if extra is not None or not isinstance(data.get("merge"), dict):
        wrong = "no `merge:` block" if "merge" not in data else f"{extra}: no such field beside `merge:`"
        meant = difflib.get_close_matches(str(extra), ("merge", "search"), n=1)
        cure = (
            f"did you mean {meant[0]}?"
            if meant
            else "write `merge:` with `method:` and `models:`, or mergekit's format"
        )
        raise ScalerError(f"{path.name}: {wrong}", cure)
    return read_merge(data["merge"], f"{path.name}: merge", methods)


def load_search(path: Path) -> WeightSearch | None:
    """The `search:` block of a recipe file; None where it has none."""
    block = load_yaml(path).get("search")
    if block is None:
        return None
    if not isinstance(block, dict):
        raise ScalerError(f"{path.name}: search: a group of settings is needed", "write search: {texts: {...}}")
    return WeightSearch.read(block, f"{path.name}: search")


def read_merge(block: Mapping[str, Any], name: str, methods: Mapping[str, type[Method]]) -> Method:
    """Validate one block; its `method` says which record it is."""
    asked = block.get("method")
    if asked not in methods:
        raise ScalerError(f"{name}: method: {asked!r} is no merge method", suggestion(str(asked), methods))
    return methods[str(asked)].read(block, name)


def suggestion(word: str, known: Iterable[str]) -> str:
    """What was perhaps meant."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
