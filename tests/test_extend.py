"""The plan says how a window grows; the phase searches, writes and keeps the log of all that was tried."""

import json
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.architecture import read_architecture
from scaler_wizard.context.frequencies import one_shot
from scaler_wizard.context.rope import rope_of
from scaler_wizard.errors import ScalerError
from scaler_wizard.extend import extend
from scaler_wizard.hardware import detect
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.phases import Extend, Plan, Train
from scaler_wizard.plan import load_plan, make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.task import Task
from tiny_models import make


def plan(folder: Path = EMBEDDED, **wish: Any) -> Plan:
    recipe = Recipe.read({"model": str(folder), **wish}, "recipe")
    return make_plan(recipe, Source(folder, "model", None, "test"), read_architecture(folder), detect(folder))


def stretches(made: Plan) -> list[Extend]:
    return [phase.change for phase in made.phases if isinstance(phase.change, Extend)]


def task(made: Plan, name: str, folder: Path, current: Path = EMBEDDED) -> Task:
    for place in ("staging", "scratch"):
        (folder / place).mkdir(exist_ok=True)
    return Task(
        run_id="r",
        trace_id="t",
        phase=next(phase for phase in made.phases if phase.name == name),
        base=made.base,
        current=current,
        staging=folder / "staging",
        scratch=folder / "scratch",
        report=None,
        run_folder=folder,
        data="kjv",
        target_context=made.context,
        baseline=None,
        breaker=made.breaker,
        memory_limit_bytes=2**32,
        threads=1,
        seed=0,
    )


def quick(one: Task) -> Task:
    """The same task with few windows."""
    change = one.phase.change
    assert isinstance(change, Extend) and change.search is not None
    few = {"windows": 4, "short_windows": 4, "final_windows": 4, "finalists": 1}
    change = change.model_copy(update={"search": change.search.model_copy(update=few)})
    return one.model_copy(update={"phase": one.phase.model_copy(update={"change": change})})


def test_a_search_looks_at_every_rung_of_a_small_model_in_whole_windows() -> None:
    first, second = stretches(plan(context="4x", extend={"search": True}))
    assert first.search is not None and first.search.window == 256
    assert second.search is not None and second.search.window == 512 and second.search.finalists > 0


def test_a_named_method_is_taken_as_it_is_and_a_search_can_be_asked_for() -> None:
    (named,) = stretches(plan(context="2x", extend={"method": "llama3"}))
    assert named.method == "llama3" and named.search is None
    (asked,) = stretches(plan(context="2x", extend={"search": True, "minutes": 0.5, "evaluations": 9}))
    assert asked.search is not None and (asked.search.minutes, asked.search.evaluations) == (0.5, 9)
    (off,) = stretches(plan(context="2x", extend={"search": False}))
    assert off.search is None and off.method == "yarn"
    (left_out,) = stretches(plan(context="2x"))
    assert left_out.search is not None


def test_a_scaled_base_is_carried_on_without_being_asked(tmp_path: Path) -> None:
    make(tmp_path, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})
    (rung,) = stretches(plan(tmp_path, context="2x", extend={"search": False}))
    assert rung.method == "searched"


def test_a_method_that_does_not_exist_is_refused_with_the_list() -> None:
    with pytest.raises(ScalerError, match=r"spiral: no such method\n.*known: yarn"):
        plan(context="2x", extend={"method": "spiral"})


def test_a_target_above_what_was_seen_to_work_untrained_is_said_with_numbers() -> None:
    made = plan(context="32x", extend={"method": "yarn"})
    assert any("32x is above the 8x" in note and "1024 tokens" in note for note in made.notes)
    assert not any("is above the" in note for note in plan(context="4x", extend={"method": "yarn"}).notes)
    assert any(note.startswith("searched: 32x is above") for note in plan(context="32x").notes)


def test_a_search_is_in_the_time_of_its_phase_and_never_above_its_minutes() -> None:
    def seconds(**extend: Any) -> float:
        made = plan(context="2x", extend=extend)
        found = next(phase for phase in made.phases if phase.name == "extend-256").estimate.seconds
        assert found is not None
        return found

    without, short = seconds(search=False), seconds(search=True, minutes=0.01, evaluations=1000)
    assert without < short < without + 5


def test_healing_after_every_rung_is_a_choice() -> None:
    phases = plan(context="4x", extend={"heal_rungs": True}).phases
    names = [phase.name for phase in phases]
    assert [phase.change.target for phase in phases if isinstance(phase.change, Train)] == [256, None]
    assert names == ["baseline", "extend-256", "heal-256", "extend-512", "heal", "export"]
    assert "heal-256" not in [phase.name for phase in plan(context="4x").phases]


def test_a_plan_with_a_search_survives_its_file(tmp_path: Path) -> None:
    made = plan(context="4x", extend={"search": True})
    (tmp_path / "plan.yaml").write_text(to_yaml(made))
    assert load_plan(tmp_path / "plan.yaml") == made


def test_the_phase_keeps_the_log_of_its_search(tmp_path: Path) -> None:
    made = plan(context="4x", extend={"search": True, "evaluations": 3})
    heard: list[str] = []
    config, evidence = extend(quick(task(made, "extend-512", tmp_path)), lambda share, doing: heard.append(doing))
    search = evidence["window"]["search"]
    first = [trial for trial in search["trials"] if not trial["final"]]
    assert [trial["candidate"]["name"] for trial in first] == ["yarn", "yarn 4 / 0.5", "yarn without temperature"]
    assert search["best"] in search["trials"] and search["best"]["score"]["found"] > 0.5
    assert config["max_position_embeddings"] == 512 and not one_shot(rope_of(config))
    assert rope_of(config)["original_max_position_embeddings"] == 128
    assert len(heard) == len(search["trials"]) and "search 1/" in heard[0]


def test_the_second_rung_is_stretched_from_the_base_and_not_from_the_first(tmp_path: Path) -> None:
    made = plan(context="4x", extend={"method": "yarn"})
    first, _ = extend(task(made, "extend-256", tmp_path), lambda share, doing: None)
    (tmp_path / "config.json").write_text(json.dumps(first))
    second, evidence = extend(task(made, "extend-512", tmp_path, current=tmp_path), lambda share, doing: None)
    assert second["rope_parameters"]["factor"] == 4.0 and second["rope_parameters"]["beta_fast"] == 32.0
    assert evidence["window"]["search"] is None and evidence["window"]["cautions"] == []


def test_dynamic_scaling_carries_its_caution_to_the_gate(tmp_path: Path) -> None:
    made = plan(context="2x", extend={"method": "dynamic"})
    config, evidence = extend(task(made, "extend-256", tmp_path), lambda share, doing: None)
    assert config["max_position_embeddings"] == 128
    assert "not to generate" in evidence["window"]["cautions"][0]
    assert any("not to generate" in note for note in made.notes)


def test_a_search_of_a_large_model_looks_at_short_windows_with_skipped_positions_first(tmp_path: Path) -> None:
    make(tmp_path, vocab_size=300_000, hidden_size=96, head_dim=24, max_position_embeddings=2048)
    (left_out,) = stretches(plan(tmp_path, context="2x"))
    assert left_out.search is None and left_out.method == "yarn"
    (asked,) = stretches(plan(tmp_path, context="2x", extend={"search": True}))
    assert asked.search is not None and asked.search.window == 1536 < asked.length and asked.search.finalists == 2
