"""What comes over the wire neither loses nor doubles anything. A short part here; `pytest -m faults` does more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import web
from test_faults import FULL, nothing_lost
from trial import begin, plan

from cockpit_server import Served, served
from scaler_wizard.phases import Plan
from scaler_wizard.run import Run


def test_a_stream_that_is_cut_loses_and_doubles_nothing(tmp_path: Path) -> None:
    nothing_lost(web.reconnect(tmp_path, count=20, seed=1, kill_every=10), at_least=20)


@FULL
@pytest.mark.timeout(600)
def test_many_cut_streams_lose_and_double_nothing(tmp_path: Path) -> None:
    nothing_lost(web.reconnect(tmp_path, count=100, seed=2), at_least=100)


def test_numbers_that_are_none_stop_the_training_and_travel_as_valid_json(tmp_path: Path) -> None:
    nothing_lost(web.odd_numbers(tmp_path, count=30, seed=1), at_least=30)


def test_one_answer_counts_by_http_and_by_command_alike(tmp_path: Path) -> None:
    nothing_lost(web.decide_from_everywhere(tmp_path, count=10, seed=1), at_least=10)


# -- the cockpit's commands on a run that is conducted -----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run on the embedded model, since the server looks at what a run grows."""

    def real(made: Plan) -> Plan:
        return made.model_copy(update={"base": plan().base})

    return begin(tmp_path, real)


@pytest.fixture
def server(folder: Path) -> Iterator[Served]:
    with served(folder.parent) as found:
        yield found


def post(server: Served, run: Run, action: str, **more: Any) -> tuple[int, Any]:
    body = {"key": uuid.uuid4().hex, "action": action, **more}
    answer = server.ask("POST", f"/api/runs/{run.id}/commands", body)
    return answer.status, answer.json


def wait_for(true: Any) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


CONDUCT = """
import sys
from pathlib import Path
from trial import Fault, conduct
sys.exit(conduct(Path(sys.argv[1]), Fault(answer=sys.argv[2], window=0.3)).code)
"""


def conducting(folder: Path, answer: str = "approve") -> subprocess.Popen[bytes]:
    """In a process of its own: a fork of one that has hashed a large file would hang in its threads."""
    there = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    environment = os.environ | there | {"TINY_STEP_SECONDS": "0.2"}
    return subprocess.Popen([sys.executable, "-c", CONDUCT, str(folder), answer], env=environment)


def test_a_rollback_over_http_ends_a_training_first(folder: Path) -> None:
    child = conducting(folder)
    run = Run(folder)
    with served(folder.parent) as server:
        wait_for(lambda: run.last("step") is not None)
        assert server.ask("GET", f"/api/runs/{run.id}/preview").json["running"] is True
        begun = time.monotonic()
        status, said = post(server, run, "Rollback", to="000-baseline", confirmed=True)
        assert (status, run.current) == (200, "000-baseline"), said
        assert time.monotonic() - begun < 10
        child.wait(60)
        assert run.status == "paused"
        assert post(server, run, "Undo")[0] == 200
        assert run.current == "002-extend-256"


@FULL
@pytest.mark.timeout(200)
def test_an_answer_over_http_is_carried_out_after_the_process_has_ended(folder: Path, server: Served) -> None:
    assert conducting(folder, "").wait(60) == 3
    run = Run(folder)
    gate = server.ask("GET", f"/api/runs/{run.id}").json["gate"]
    stale = {"gate": gate["id"], "evidenceHash": "other"}
    assert post(server, run, "Approve", **stale)[0] == 409
    assert post(server, run, "Approve", gate=gate["id"], evidenceHash=gate["evidenceHash"])[0] == 200
    wait_for(lambda: run.current == "000-baseline")
    assert post(server, run, "Approve", gate=gate["id"], evidenceHash=gate["evidenceHash"])[0] == 409
    wait_for(lambda: run.last("phase_started").data["slug"] == "001-grow")  # type: ignore[union-attr]
    wait_for(lambda: post(server, run, "Pause")[0] == 200)
    wait_for(lambda: run.status == "paused")
