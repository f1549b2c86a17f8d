"""What is read from a run folder is what the journal holds, and nothing where it holds nothing."""

import json
from pathlib import Path

import pytest

from ended_run import NUMBER, ended
from scaler_wizard.errors import ScalerError
from scaler_wizard.experience import SHIPPED, TIME, Experience, error_note, experience, load, spread
from scaler_wizard.phases import Plan
from scaler_wizard.record import to_json
from scaler_wizard.safe_yaml import load_yaml


def test_needs_and_outcome_are_those_of_the_journal(tmp_path: Path) -> None:
    found = experience(ended(tmp_path))
    assert found is not None
    assert [phase.kind for phase in found.phases] == ["baseline", "grow", "extend", "heal", "export"]
    assert {(phase.peak_bytes, phase.cpu_seconds) for phase in found.phases} == {(NUMBER, 12.345678)}
    assert found.growth == pytest.approx(1.3, abs=0.03) and found.stretch == 2.0
    assert found.short_change == pytest.approx(4 / 7) and found.outside_limits == 5 and not found.stopped
    assert found.phases[1].parameters > found.phases[0].parameters
    assert found.phases[3].flops > found.phases[0].flops > 0 == found.phases[4].flops


def test_a_second_attempt_at_a_phase_counts_and_an_unfinished_one_ends_the_run(tmp_path: Path) -> None:
    run = ended(tmp_path)
    slug = "003-heal"
    run.journal.add("phase_started", {"slug": slug}, phase=slug)
    run.journal.add("usage", {"ram_bytes": 5, "cpu_seconds": 1.0}, phase=slug)
    found = experience(run)
    assert (
        found is not None and found.stopped and [phase.kind for phase in found.phases] == ["baseline", "grow", "extend"]
    )
    verdict = {"action": "pass", "sentence": "", "reasons": []}
    run.journal.add("gate", {"gate": "again", "verdict": verdict, "evidence": {}}, phase=slug)
    again = experience(run)
    assert again is not None and again.phases[3].peak_bytes == 5


def test_a_run_that_goes_on_or_whose_base_is_gone_teaches_nothing(tmp_path: Path) -> None:
    run = ended(tmp_path)
    run.journal.set("status", "running")
    assert experience(run) is None
    run.journal.set("status", "completed")
    plan = run.folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("scaler_wizard/embedded", "scaler_wizard/gone"))
    assert experience(run) is None


def test_what_is_written_is_read_again_and_other_lines_are_refused(tmp_path: Path) -> None:
    found = experience(ended(tmp_path))
    assert isinstance(found, Experience)
    file = tmp_path / "experience.jsonl"
    file.write_text(to_json(found) + "\n")
    assert load(file) == (found,)
    file.write_text(json.dumps({"run": "x", "limits": {}}) + "\n")
    with pytest.raises(ScalerError):
        load(file)
    file.write_text("not json\n")
    with pytest.raises(ScalerError, match="JSON lines"):
        load(file)


def test_how_far_off_estimates_were_is_a_share_of_the_runs_themselves() -> None:
    (one, *_) = runs = load(SHIPPED)
    low, high = spread(runs, *TIME)
    ratios = [sum(p.cpu_seconds or 0 for p in r.phases) / sum(p.estimated_seconds or 0 for p in r.phases) for r in runs]
    inside = sum(low <= ratio <= high for ratio in ratios) / len(ratios)
    assert 0.75 <= inside <= 0.85 and low < 1
    half = [p.model_copy(update={"cpu_seconds": 1.0, "estimated_seconds": 2.0}) for p in one.phases]
    assert spread([one.model_copy(update={"phases": tuple(half)})], *TIME) == (0.5, 0.5)


def test_nothing_is_said_of_how_far_off_the_plan_of_a_much_larger_model_is(tmp_path: Path) -> None:
    plan = Plan.read(load_yaml(ended(tmp_path).folder / "plan.yaml"), "plan.yaml")
    assert "times the memory" in error_note(plan)
    assert "not known" in error_note(plan.model_copy(update={"parameters": 10**9}))
