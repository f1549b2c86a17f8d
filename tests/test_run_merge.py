"""The merge at the end of a run: planned early, judged against every parent, and asked about where it loses to one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from commands import scaler
from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.fuse import fuse
from scaler_wizard.gate import Change, judge
from scaler_wizard.judging import Exam
from scaler_wizard.merge import METHODS
from scaler_wizard.merge.program import parent
from scaler_wizard.merge.recipe import read_merge
from scaler_wizard.merging import prepare
from scaler_wizard.models import EMBEDDED
from scaler_wizard.oneshot import grow_model
from scaler_wizard.parents import run_parents
from scaler_wizard.phases import Merge, Plan
from scaler_wizard.plan import load_plan, to_yaml
from scaler_wizard.planned_merge import preview
from scaler_wizard.recipe import GateLimits, Recipe
from scaler_wizard.run import Run, list_runs
from scaler_wizard.searching import Bench
from scaler_wizard.server.glance import fusion
from scaler_wizard.share import as_yaml, pattern, read_patterns
from scaler_wizard.story import tell
from scaler_wizard.tables import done
from scaler_wizard.task import Task
from scaler_wizard.weights import stored_pieces
from test_extend import plan, task
from tiny_models import load, make

BLOCK = {"method": "linear", "models": [{"model": "grown", "weight": 0.7}, {"model": "base", "weight": 0.3}]}
SEARCH = {"windows": 4, "length": 64}


def with_merge(**merge: Any) -> Plan:
    return plan(parameters="1.2x", heal=False, merge={**BLOCK, "search": SEARCH, **merge})


def spoiled(folder: Path) -> Path:
    """The embedded model with noise that costs it a good part of what it can do."""
    model, generator = load(EMBEDDED), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.data += 0.3 * parameter.data.float().std().to(parameter.dtype) * noise
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    return folder


def fused(made: Plan, folder: Path, current: Path) -> tuple[Task, dict[str, Any]]:
    operators = next(phase.change.operators for phase in made.phases if phase.change.kind == "grow")
    one = task(made, "merge", folder, current).model_copy(update={"grown_by": operators})
    return one, fuse(one, lambda share, doing: None)["merge"]


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_the_merge_is_the_last_change_of_a_plan_and_has_its_texts() -> None:
    made = with_merge()
    assert [phase.name for phase in made.phases] == ["baseline", "grow", "merge", "export"]
    phase = made.phases[2]
    assert isinstance(phase.change, Merge) and phase.stage == "P4" and phase.title == "merge with base"
    assert phase.change.search.texts == {"kjv": "kjv"} and phase.change.search.tries == 12
    assert phase.change.method.configuration == "grown"
    assert phase.estimate.seconds is not None and phase.estimate.memory_bytes is not None
    unsearched = plan(parameters="1.2x", heal=False, merge=BLOCK)
    assert isinstance(change := unsearched.phases[2].change, Merge) and change.search.tries == 1
    assert Plan.read(json.loads(made.model_dump_json()), "again") == made


@pytest.mark.parametrize(
    ("merge", "said"),
    [
        ({"models": [{"model": "base"}]}, "own model is not in it"),
        ({"models": [{"model": "grown"}, {"model": "bsae"}]}, "bsae"),
        ({"method": "tyes"}, "no merge method"),
        ({"models": [{"model": "grown", "wieght": 0.5}]}, "no such field"),
        ({"grow": True}, "the run grows its parents"),
        ({"search": {"texts": {"x": "/nowhere/at/all.txt"}}}, "no such text"),
        ({"search": {"tires": 4}}, "no such field"),
        ({"search": {"by": "core"}}, "own model is none"),
        ({"method": "model_stock", "base": "base", "models": [{"model": "grown"}, {"model": "embedded"}]}, "to turn"),
    ],
)
def test_what_would_spoil_the_merge_is_refused_before_the_run_begins(merge: dict[str, Any], said: str) -> None:
    with pytest.raises(ScalerError) as slip:
        with_merge(**merge)
    assert said in slip.value.wrong, slip.value


def test_a_parent_of_another_size_is_refused_and_one_of_the_bases_size_is_grown_alike(tmp_path: Path) -> None:
    grow_model(EMBEDDED, tmp_path / "other", "1.6x", prove=False)
    with pytest.raises(ScalerError, match="neither the size of the grown model nor that of its base"):
        with_merge(models=[{"model": "grown"}, {"model": str(tmp_path / "other")}])
    made = with_merge(models=[{"model": "grown"}, {"model": "base"}])
    operators = made.phases[1].change.operators  # type: ignore[union-attr]
    grow_model(EMBEDDED, tmp_path / "grown", operators, seed=made.seed, prove=False)
    base, grown = read_architecture(EMBEDDED), read_architecture(tmp_path / "grown")
    method = made.phases[2].change.method  # type: ignore[union-attr]
    alike = run_parents(method, parent("grown", grown), base, operators, seed=made.seed)
    for name, tensor in alike["base"].tensors.items():
        own = b"".join(stored_pieces(tensor, seed=made.seed))
        assert own == b"".join(stored_pieces(alike["grown"].tensors[name], seed=made.seed)), name


def test_a_preview_shows_how_far_each_layer_moved_and_how_changes_get_on(tmp_path: Path) -> None:
    other = spoiled(tmp_path / "spoiled")
    made = with_merge(models=[{"model": "grown"}, {"model": "base"}, {"model": str(other)}])
    operators = made.phases[1].change.operators  # type: ignore[union-attr]
    grow_model(EMBEDDED, tmp_path / "001-grow", operators, seed=made.seed, prove=False)
    (tmp_path / "plan.yaml").write_text(to_yaml(made))
    found = preview(tmp_path / "plan.yaml", tmp_path / "001-grow")
    assert found.models == ("grown", str(other)) and found.sizes[0] == 0 and 0.2 < found.sizes[1] < 0.4
    assert {part.layer for part in found.parts} == {None, 0, 1, 2, 3, 4}
    alone = with_merge(models=[{"model": "base"}, {"model": "grown"}])
    (tmp_path / "alone.yaml").write_text(to_yaml(alone))
    moved = spoiled(tmp_path / "000-baseline")  # before growth the base is compared as it is
    found = preview(tmp_path / "alone.yaml", moved)
    assert all(part.cosine is None and 0 < part.change < 1 for part in found.parts)


def test_a_mixture_is_measured_by_way_of_a_folder(tmp_path: Path) -> None:
    other = make(tmp_path / "mixture", "granitemoe")
    ready = prepare(read_merge({"method": "linear", "models": [{"model": str(other)}]}, "r", METHODS))
    ids = np.random.default_rng(0).integers(0, 64, (4, 16)).astype(np.int32)
    exam = Exam({"noise": ids}, None)
    assert Bench(ready, exam).ask(ready.method).losses["noise"] == pytest.approx(exam.ask_folder(other).losses["noise"])


# -- the phase --------------------------------------------------------------------------------------------------------


def test_a_merge_with_its_equal_loses_nothing_and_passes(tmp_path: Path) -> None:
    made = with_merge(search={**SEARCH, "tries": 2})
    operators = made.phases[1].change.operators  # type: ignore[union-attr]
    grow_model(EMBEDDED, tmp_path / "grown", operators, seed=made.seed, prove=False)
    one, found = fused(made, tmp_path, tmp_path / "grown")
    assert read_architecture(one.staging).parameters == made.parameters
    assert found["judgement"]["vibe"]["value"] == pytest.approx(1) and len(found["tries"]) == 2
    assert {domain["name"] for domain in found["judgement"]["domains"]} == {"kjv", "two hops"}
    verdict = judged(one, found)
    assert verdict.action == "pass" and verdict.sentence.startswith("merge with base done: loses to no parent, vibe 1")


def test_a_merge_that_loses_to_its_best_parent_says_so_and_the_gate_asks(tmp_path: Path) -> None:
    other = spoiled(tmp_path / "spoiled")
    made = with_merge(models=[{"model": "grown", "weight": 0.5}, {"model": str(other), "weight": 0.5}])
    operators = made.phases[1].change.operators  # type: ignore[union-attr]
    grow_model(EMBEDDED, tmp_path / "grown", operators, seed=made.seed, prove=False)
    change = made.phases[2].change
    made = made.model_copy(update={"phases": tuple(_unsearched(phase, change) for phase in made.phases)})
    one, found = fused(made, tmp_path, tmp_path / "grown")
    assert found["judgement"]["vibe"]["value"] < 1 and found["tries"] == []
    verdict = judged(one, found)
    assert verdict.action == "ask" and "loses to its best parent in 1 of 2 domains" in verdict.sentence
    assert any("on kjv against grown, its best parent there" in reason for reason in verdict.reasons)


def _unsearched(phase: Any, change: Any) -> Any:
    if phase.change is not change:
        return phase
    search = change.search.model_copy(update={"tries": 1})
    return phase.model_copy(update={"change": change.model_copy(update={"search": search})})


def judged(one: Task, found: dict[str, Any]) -> Any:
    from scaler_wizard.metrics import Measurement

    same = Measurement(corpus="kjv", native_length=128, target_length=128, short_nll=3.0, seconds=1.0)
    change = Change("merge", one.phase.title, exact=False, next="export")
    return judge(change, baseline=same, before=same, after=same, evidence={"merge": found}, limits=GateLimits())


# -- the whole run ----------------------------------------------------------------------------------------------------


def recipe(folder: Path, **merge: Any) -> Path:
    wish = {"model": "embedded", "parameters": "1.2x", "heal": False, "measure": {"windows": 4, "needles": 4}}
    wish |= {"merge": {**BLOCK, "search": SEARCH, **merge}, "limits": {"threads": 1}}
    Recipe.read(wish, "recipe")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(wish))
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_a_run_grows_merges_and_reports(tmp_path: Path) -> None:
    wish = recipe(tmp_path, search={**SEARCH, "tries": 3})
    answer = scaler("run", wish, "--runs", tmp_path / "runs", "--sign", "Ada", "--approve-within-limits")
    assert answer.returncode == 0, answer.stderr
    run = Run(list_runs(tmp_path / "runs")[0])
    assert run.status == "completed" and run.current == "003-export"
    assert {cell.part for cell in fusion(run, load_plan(run.folder / "plan.yaml")).cells} >= {"attention", "norms"}
    story = tell(run.folder)
    assert story.fusion is not None and story.fusion.parents == ("grown", "base") and story.fusion.tries == 3
    assert "merged by linear" in done(story.phases[2])
    shared = pattern(run)
    assert shared.merge is not None and (shared.merge.method, shared.merge.parents) == ("linear", 2)
    assert len(shared.merge.weights) == 2 and shared.merge.vibe_low <= shared.merge.vibe and shared.merge.losing == 0
    (tmp_path / "patterns").mkdir()
    (tmp_path / "patterns" / "good.yaml").write_text(as_yaml(shared))
    (tmp_path / "patterns" / "bad.yaml").write_text(as_yaml(shared).replace("method: linear", "method: /etc/passwd"))
    good, bad = read_patterns(tmp_path / "patterns")
    assert good["good.yaml"] == shared and "not a public one" in bad["bad.yaml"]
    report = (run.report / "report.md").read_text()
    assert "It was merged with base. The merge loses to no best parent" in report


@pytest.mark.slow
def test_a_run_asks_about_a_merge_that_loses_and_keeps_what_was_before(tmp_path: Path) -> None:
    other = spoiled(tmp_path / "spoiled")
    models = [{"model": "grown", "weight": 0.5}, {"model": str(other), "weight": 0.5}]
    wish = recipe(tmp_path, models=models, search={**SEARCH, "tries": 1})
    ask = ["run", str(wish), "--runs", str(tmp_path / "runs"), "--sign", "Ada", "--approve-within-limits"]
    running = subprocess.Popen(
        [sys.executable, "-m", "scaler_wizard", *ask], stdin=subprocess.DEVNULL, env=os.environ | {"NO_COLOR": "1"}
    )
    run = waiting(tmp_path / "runs", "002-merge")
    gate = run.last("gate")
    assert gate is not None and gate.data["verdict"]["action"] == "ask"
    assert gate.data["sentence"].startswith("merge of 2 models done: loses to its best parent")
    assert scaler("abort", run.id, "--runs", tmp_path / "runs").returncode == 0
    running.wait(timeout=60)
    assert run.current == "001-grow" and run.status == "stopped"


def waiting(runs: Path, slug: str) -> Run:
    """The run, once a gate of this phase waits."""
    for _ in range(1200):
        found = [Run(folder) for folder in list_runs(runs)]
        gate = found[0].last("gate") if found else None
        if gate is not None and gate.data["phase"] == slug:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no gate of {slug}")
