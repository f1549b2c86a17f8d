"""P4: merge the run's grown model with others: weights chosen on calibration text, judged on held-out text.

What is judged is what was written. Nothing is thrown away here: where the merge loses to a parent, the gate asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge import Method, merge_program
from scaler_wizard.merge.knobs import told
from scaler_wizard.merge.program import parent
from scaler_wizard.merging import prepare
from scaler_wizard.parents import GROWN, names_of, run_parents
from scaler_wizard.phases import Merge
from scaler_wizard.searching import Bench, Try, choose, exams
from scaler_wizard.task import Task
from scaler_wizard.weights import NotFinite, copy_companions, write

Tell = Callable[[float, str], None]
SEARCHED, WRITTEN = 0.7, 0.8
"""Shares of this work that are done after the search, and after writing."""


def fuse(task: Task, tell: Tell) -> dict[str, Any]:
    """Search, write the merged model into the staging folder, judge it; returns the evidence for the gate."""
    from scaler_wizard.models import load_tokenizer

    change = task.phase.change
    assert isinstance(change, Merge)
    grown, base = parent(GROWN, read_architecture(task.current)), read_architecture(task.base.folder)
    ready = prepare(change.method, run_parents(change.method, grown, base, task.grown_by, seed=task.seed))
    asked = exams(change.search, load_tokenizer(task.current), seed=task.seed)
    method, tries = ready.method, list[Try]()
    if change.search.tries > 1:
        seen, best = choose(ready, change.search, asked.calibration, lambda doing, done: tell(SEARCHED * done, doing))
        method, tries = seen[best][0], [one for _, one in seen]
    tell(SEARCHED, "merging")
    try:
        write(merge_program(method, ready.parents), task.staging, processes=task.threads, finite=True)
    except NotFinite as broken:
        raise ScalerError(f"{broken}: the merged numbers do not fit their type", "lower the weights") from None
    copy_companions(task.current, task.staging)
    tell(WRITTEN, "judging the merge against its parents")
    judgement = Bench(ready, asked.heldout).judged(asked.heldout.ask_folder(task.staging))
    return {"merge": _told(method, tries, ready.reconciled) | {"judgement": judgement.model_dump(mode="json")}}


def _told(method: Method, tries: list[Try], reconciled: tuple[str, ...]) -> dict[str, Any]:
    return {
        "method": method.method,  # type: ignore[attr-defined]  # every method's record has its own literal
        "parents": names_of(method),
        "weights": told(method),
        "reconciled": list(reconciled),
        "tries": [one.model_dump(mode="json") for one in tries],
    }
