"""When the breaker stops a training, a person chooses: keep the last good step, go on anyway, or undo the phase."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from campaigns import copy
from stopping_worker import GOOD, STEPS, TOLD, weights
from trial import Fault, begin, conduct

from scaler_wizard.errors import ScalerError
from scaler_wizard.journal import Row
from scaler_wizard.run import Run
from scaler_wizard.view import status_rows

COMMAND = (sys.executable, str(Path(__file__).with_name("stopping_worker.py")))
HEAL = "003-heal"


def go(folder: Path, failpoint: str = "", answer: str = "standing") -> Any:
    """Conduct with standing approval of gates that keep their limits: the stop's gate is not one."""
    return conduct(folder, Fault(failpoint, answer=answer, window=0.3, command=COMMAND))


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that waits at the stop's gate, which nobody has answered; only to be read."""
    folder = begin(tmp_path_factory.mktemp("stopped"))
    ended = go(folder)
    assert ended.code == 3, ended.said
    return folder


@pytest.fixture
def stopped(waiting: Path, tmp_path: Path) -> Run:
    """A copy of that run, to be changed."""
    return Run(copy(waiting, tmp_path / waiting.name))


def gate(run: Run) -> Row:
    """The newest gate."""
    found = run.last("gate")
    assert found is not None
    return found


def answer(run: Run, action: str) -> None:
    """Answer it by hand."""
    assert run.decide(gate(run).data["gate"], gate(run).data["evidence_hash"], action, who="Ada", how="test")


def healed(run: Run) -> bytes:
    """The model that the training phase left."""
    return (run.checkpoints / HEAL / "model.safetensors").read_bytes()


def test_a_stop_pauses_the_run_with_its_evidence_and_the_last_good_step_on_offer(stopped: Run) -> None:
    assert (stopped.status, stopped.current) == ("paused", "002-extend-256")
    told = gate(stopped).data
    assert told["verdict"]["action"] == "ask" and told["verdict"]["reasons"] == [TOLD]
    assert f"approve keeps step {GOOD}" in told["sentence"]
    assert told["evidence"]["stopped"]["evaluations"] == [[3, 2.7], [6, 2.4], [9, 4.0]]
    assert ("approve", f"keeps the model of step {GOOD}") in status_rows(stopped)


@pytest.mark.parametrize(("action", "step"), [("approve", GOOD), ("continue", STEPS)])
def test_the_last_good_step_is_kept_or_trained_on_from(stopped: Run, action: str, step: int) -> None:
    answer(stopped, action)
    ended = go(stopped.folder, answer="approve")
    assert ended.code == 0, ended.said
    assert healed(stopped) == weights(step)
    starts = [row for row in stopped.journal.events(kinds=("phase_started",)) if row.data["slug"] == HEAL]
    assert len(starts) == 2


def test_an_abort_undoes_the_phase_and_nothing_else(stopped: Run) -> None:
    answer(stopped, "abort")
    assert go(stopped.folder).code == 2
    assert stopped.current == "002-extend-256"
    assert not stopped.scratch.exists()


@pytest.mark.parametrize("point", ["gate.answered", "phase.started", "phase.worker-started", "gate.opened"])
def test_a_choice_survives_a_kill(stopped: Run, point: str) -> None:
    answer(stopped, "approve")
    assert go(stopped.folder, f"{point}=kill", answer="approve").code == -signal.SIGKILL
    assert go(stopped.folder, answer="approve").code == 0
    assert healed(stopped) == weights(GOOD)


def test_an_unanswered_stop_is_asked_again_and_not_trained_again(stopped: Run) -> None:
    first = gate(stopped).data["gate"]
    assert go(stopped.folder).code == 3
    assert gate(stopped).data["gate"] == first
    starts = [row for row in stopped.journal.events(kinds=("phase_started",)) if row.data["slug"] == HEAL]
    assert len(starts) == 1


def test_what_has_rotted_meanwhile_is_no_longer_on_offer(stopped: Run) -> None:
    first = gate(stopped).data
    (stopped.scratch / first["evidence"]["stopped"]["snapshot"]).write_bytes(b"rotten")
    assert go(stopped.folder).code == 3
    assert gate(stopped).data["gate"] != first["gate"], "a snapshot was offered that is not what it was"
    with pytest.raises(ScalerError, match="not open"):
        stopped.decide(first["gate"], first["evidence_hash"], "approve", who="Ada", how="late")


def test_only_a_stop_can_be_gone_on_from(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder, Fault(answer="", window=0.2)).code == 3
    with pytest.raises(ScalerError, match="nothing was stopped"):
        answer(Run(folder), "continue")


# -- without their guards ----------------------------------------------------------------------------------------------


def test_without_the_rule_for_stops_a_stopped_training_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler_wizard.supervisor.newest_sound", lambda *_: (None, []))
    folder = begin(tmp_path)
    assert go(folder).code == 2
    assert Run(folder).current == "002-extend-256"
