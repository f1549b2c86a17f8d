"""Tidying throws away only what nobody needs, old checkpoints are read again, and a changed log is found."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import verbs
from campaigns import copy
from trial import begin, conduct

from commands import scaler
from scaler_wizard import upkeep
from scaler_wizard.errors import ScalerError
from scaler_wizard.run import Run, list_runs, locked


@pytest.fixture(scope="module")
def worked_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose last two phases were done four times; only to be read."""
    place = tmp_path_factory.mktemp("leftovers")
    verbs._with_leftovers(place)
    return list_runs(place / "runs")[0]


@pytest.fixture
def run(worked_on: Path, tmp_path: Path) -> Run:
    """A copy of that run, to be changed."""
    return Run(copy(worked_on, tmp_path / worked_on.name))


def attempts(run: Run) -> list[Path]:
    """Superseded attempts, oldest first."""
    return sorted((run.folder / "superseded").iterdir(), key=lambda path: path.stat().st_mtime)


def test_tidying_keeps_every_checkpoint_the_last_two_whole_attempts_and_what_is_pinned(run: Run) -> None:
    known = attempts(run)
    assert len(known) == 6
    newest, pinned = known[-1], known[0]
    model = next(newest.glob("*.safetensors"))
    model.unlink()  # its bytes are shared with other attempts
    model.write_bytes(b"cut")  # no longer whole: another two are the last that verify
    upkeep.pin(run, pinned.name, who="Ada")
    with locked(run):
        upkeep.tidy(run)
    assert attempts(run) == [pinned, known[-3], known[-2]]
    for row in run.committed():
        verbs.verify(run.checkpoints / row.data["slug"], row.data["manifest"], hashes=True)
    assert len(run.committed()) == 5
    gone = {row.data["name"] for row in run.journal.events(kinds=("tidied",))}
    assert gone == {path.name for path in known} - {path.name for path in attempts(run)}


def test_without_the_rule_that_keeps_two_tidying_would_take_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_verifies", lambda _: False)
    assert {left.path for left in upkeep.leftovers(run)} == set(attempts(run))


def test_an_old_checkpoint_that_rots_is_found_while_a_worker_runs_and_cannot_be_gone_back_to(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_STEP_SECONDS", "0.1")  # a worker that runs for some looks
    monkeypatch.setattr(upkeep, "LOWEST_PRIORITY", 0)  # which on a busy machine comes to nothing meanwhile
    with locked(run):
        run.rollback("002-extend-256", who="Ada")
    rotten = run.checkpoints / "000-baseline" / "tokenizer.json"
    rotten.unlink()  # the later checkpoints share it
    rotten.write_bytes(b"[]")  # as many bytes as before: only its hash tells
    ended = conduct(run.folder)
    assert ended.code == 0, ended.said
    found = {row.data["slug"]: row.data["wrong"] for row in run.journal.events(kinds=("scrubbed",))}
    assert "damaged" in found["000-baseline"]


def test_a_changed_event_and_a_changed_line_are_found_by_the_command(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder).code == 0
    whole = scaler("log", "--verify", "--runs", folder.parent)
    assert "none changed, none missing" in whole.stdout
    log = folder / "flight_log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines()
    changed = [line.replace('"approve"', '"abort"') if '"decision"' in line else line for line in lines]
    log.write_text("\n".join(changed) + "\n", encoding="utf-8")
    refused = scaler("log", "--verify", "--runs", folder.parent)
    assert refused.returncode == 2 and "is not what was written" in refused.stderr
    with sqlite3.connect(folder / "run.db") as database:
        database.execute("UPDATE events SET data = replace(data, 'tester', 'nobody') WHERE kind = 'decision'")
    refused = scaler("log", "--verify", "--runs", folder.parent)
    assert refused.returncode == 2 and "journal is damaged" in refused.stderr
    with pytest.raises(ScalerError):
        Run(folder).journal.verify()
    assert json.loads(lines[0])["seq"] == 1
