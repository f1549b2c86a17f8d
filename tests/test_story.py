from __future__ import annotations

import math
from pathlib import Path

import pytest

from scaler_wizard.errors import ScalerError
from scaler_wizard.journal import Journal
from scaler_wizard.run import Run
from scaler_wizard.story import Story, tell
from told_runs import HOSTILE


def test_a_story_has_every_phase_that_passed_in_order(story: Story) -> None:
    names = [one.phase.name for one in story.phases]
    assert names == ["baseline", "grow", "extend-256", "extend-512", "heal", "export"]
    assert story.grew and story.extended
    assert story.window == 512 and story.rope["rope_type"] == "yarn"


def test_the_last_measurement_is_compared_with_the_first(story: Story) -> None:
    assert story.baseline is not None and story.baseline.short_nll == 3.0
    assert story.final is not None and story.final.short_nll == 2.9


def test_parts_add_up_to_the_models(story: Story) -> None:
    assert sum(part.parameters for part in story.base_parts) == story.plan.base.parameters == 820_352
    assert story.parameters == story.plan.parameters == sum(part.parameters for part in story.grown_parts)


def test_proof_and_training_come_from_the_evidence_of_their_gates(story: Story) -> None:
    assert story.proof is not None and story.proof.passed and story.proof.reason == "It holds"
    assert story.training is not None and story.training.gain is not None
    assert story.training.control == pytest.approx(2.95) and story.training.gain.low == 0.03


def test_every_gate_says_who_decided_and_how(story: Story) -> None:
    assert [one.phase for one in story.timeline] == [one.phase.slug for one in story.phases]
    assert {one.answer for one in story.timeline} == {"approve, Ada (by hand)"}
    assert all(one.verdict in ("pass", "ask") for one in story.timeline)


def test_curves_are_kept_for_each_arm_and_not_a_number_stays_so(story: Story) -> None:
    assert story.curves["grown"].evaluations == {8192: 3.1, 4 * 8192: 3.0, 8 * 8192: 2.9}
    assert math.isnan(story.curves["control"].training[8 * 8192])


def test_notes_of_plan_and_workers_are_kept_as_they_are(story: Story) -> None:
    assert HOSTILE in story.notes
    assert set(story.plan.notes) <= set(story.notes)


def test_costs_are_what_was_measured(story: Story) -> None:
    assert story.costs.peak_memory_bytes is not None and 2**24 < story.costs.peak_memory_bytes < 2**33
    assert 0 < story.costs.seconds < 120


def test_telling_a_story_writes_nothing_to_the_journal(told_run: Run) -> None:
    before = len(told_run.journal.events())
    tell(told_run.folder)
    assert len(told_run.journal.events()) == before


def test_a_step_that_was_done_again_counts_once_as_it_was_last_done(own_run: Run) -> None:
    event = own_run.journal.events(kinds=("step",))[0]
    own_run.journal.add("step", {**event.data, "loss": 7.0}, phase="004-heal")
    assert tell(own_run.folder).curves["grown"].training[8192] == 7.0


def test_a_run_in_which_nothing_passed_is_refused(tmp_path: Path, told_run: Run) -> None:
    for name in ("plan.yaml", "contract.yaml"):
        (tmp_path / name).write_bytes((told_run.folder / name).read_bytes())
    (tmp_path / "checkpoints").mkdir()
    Journal(tmp_path / "run.db").close()
    with pytest.raises(ScalerError, match="no phase has passed"):
        tell(tmp_path)
