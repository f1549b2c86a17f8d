"""Merge adapters by what is learnt between them: one adapter comes out of all, and is merged into the base.

The adapter stands in the merged model's folder as `adapter`, in PEFT's form, so that it can be used alone; `merge.json`
names it, so that the merge can be repeated without the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from scaler_wizard import __version__
from scaler_wizard.adapting import RECORD, AdapterLineage, save_adapter
from scaler_wizard.core_search import By, Learnt, Stack, core_search
from scaler_wizard.data import Tokens
from scaler_wizard.errors import ScalerError
from scaler_wizard.files import file_hash
from scaler_wizard.gradient_search import shares
from scaler_wizard.merge import Parent, TaskArithmetic
from scaler_wizard.merge.adapters import CONFIG, WEIGHTS, Adapter, adapted, cosines, read_adapter
from scaler_wizard.merge.program import placed
from scaler_wizard.record import to_json
from scaler_wizard.weights.evaluate import Source

ADAPTER = "adapter"
"""Folder of the learnt adapter inside the merged model's."""


def stacked_adapters(method: TaskArithmetic, parents: Mapping[str, Parent]) -> list[Adapter]:
    """The adapters that a merge is made of; whole models have nothing that could be stacked."""
    models = [parents[model.model] for model in method.models]
    base = parents[str(method.base)]
    for one in models:
        if one.adapter is None or one.folder != base.folder or base.adapter is not None:
            raise ScalerError(
                f"{one.name}: search.by: direction and core are for adapters of the base (BASE+ADAPTER)",
                "name the adapters, or search by: matrix, which takes whole models",
            )
    found = [read_adapter(one.adapter.parent) for one in models if one.adapter is not None]
    for adapter in found:
        if "lm_head" in adapter.products:
            raise ScalerError(f"{adapter.name}: lm_head: its core cannot be learnt", "search by: matrix")
    return found


def learn_core(
    method: TaskArithmetic,
    parents: Mapping[str, Parent],
    texts: Mapping[str, Tokens],
    *,
    by: By,
    steps: int,
    dtype: str,
    go_on: Callable[[], bool] = lambda: True,
) -> Learnt:
    """What the merged adapter adds, learnt from windows (count, length) of every text in the time that `go_on` leaves;
    the method's own weights are where it begins."""
    from scaler_wizard.models import load_model

    adapters = stacked_adapters(method, parents)
    began = {tensors.name.removesuffix(".weight"): shares(method, tensors) for tensors in placed(method, parents)}
    stack = Stack(load_model(parents[str(method.base)].folder, dtype=dtype), adapters, by)
    return core_search(stack, texts, lambda module, number: began[module][number], steps=steps, go_on=go_on)


def learnt_merge(
    method: TaskArithmetic, parents: Mapping[str, Parent], learnt: Learnt, by: By, folder: Path, place: Path
) -> tuple[TaskArithmetic, dict[str, Parent]]:
    """Save the adapter into `folder`; the merge that adds it to the base, and its models. It will stand at `place`."""
    adapters = stacked_adapters(method, parents)
    save_adapter(folder, learnt.fused, adapters[0].config)
    (folder / RECORD).write_text(to_json(_lineage(adapters, learnt, by, folder)) + "\n", encoding="utf-8")
    base = parents[str(method.base)]
    name = f"{method.base}+{place / ADAPTER}"
    block = method.model_dump(mode="json") | {"scale": 1.0, "normalize": False}
    known = {base.name: base, name: adapted(base, read_adapter(folder), name)}
    return TaskArithmetic.read({**block, "models": [{"model": name}]}, "search"), known


def _lineage(adapters: Sequence[Adapter], learnt: Learnt, by: By, folder: Path) -> AdapterLineage:
    source = Source(0)
    try:
        alike = cosines(adapters, source)
    finally:
        source.close()
    return AdapterLineage(
        made_by=f"scaler-wizard {__version__}",
        recipe={"method": by, "adapters": [one.name for one in adapters], "step": learnt.step},
        adapters={one.name: file_hash(Path(one.name) / WEIGHTS) for one in adapters},
        cosines=tuple(tuple(float(value) for value in row) for row in np.asarray(alike)),
        rank=max(part.rank for part in learnt.fused.values()),
        predicted_error=0.0,
        files={name: file_hash(folder / name) for name in (CONFIG, WEIGHTS)},
    )
