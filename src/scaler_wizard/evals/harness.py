"""Any task of lm-eval (LongBench, MMLU, a YAML file of your own) on a model folder: needs `scaler-wizard[evals]`.

Runs offline where a task's data is local. Log-likelihood tasks of your own are several times faster here without it:
see `choices.py`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.record import Record


class HarnessScore(Record):
    """One figure of one task, as lm-eval names it."""

    task: str
    """Name of the task."""
    metric: str
    """Name of the figure, such as acc or acc_norm."""
    value: float
    """The figure."""
    standard_error: float | None
    """Its standard error; null where lm-eval gives none."""
    samples: int
    """Questions asked."""
    version: str
    """Version of lm-eval."""


def harness(
    folder: Path,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    examples: int | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> tuple[HarnessScore, ...]:
    """Run lm-eval's `tasks` on the model in `folder`.

    `include` is a folder with more task files; `examples` stand in front of each question (None: as the task says);
    `limit` is the most questions of each task. Raises ScalerError where lm-eval is missing or does not know a task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ScalerError("lm-eval is not installed", 'pip install "scaler-wizard[evals]"')
    from lm_eval import __version__, simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from scaler_wizard.models import load_model, load_tokenizer

    known = TaskManager(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if not known.match_tasks([task])]
    if unknown:
        raise ScalerError(f"{unknown[0]}: no such task in lm-eval {__version__}", "`lm-eval ls tasks` lists them")
    model = HFLM(pretrained=load_model(folder), tokenizer=load_tokenizer(folder), batch_size=batch)
    found = simple_evaluate(model, tasks=list(tasks), task_manager=known, num_fewshot=examples, limit=limit)
    return tuple(_scores(found, str(__version__)))


def _scores(found: Mapping[str, Any], version: str) -> Iterator[HarnessScore]:
    """lm-eval writes "acc,none" and "acc_stderr,none"; a missing standard error is "N/A"."""
    for task, figures in found["results"].items():
        for key, value in figures.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, (int, float)) or not filtered or metric.endswith("_stderr"):
                continue
            error = figures.get(f"{metric}_stderr,{filtered}")
            yield HarnessScore(
                task=task,
                metric=metric if filtered == "none" else f"{metric} ({filtered})",
                value=float(value),
                standard_error=float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None,
                samples=int(found["n-samples"][task]["effective"]),
                version=version,
            )
