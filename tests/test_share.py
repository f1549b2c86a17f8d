"""Nothing but allowed words and coarse numbers leaves: canaries are planted wherever a string or a number can stand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import called, scaler
from ended_run import CANARY, NUMBER, ended
from scaler_wizard.errors import ScalerError
from scaler_wizard.models import EMBEDDED
from scaler_wizard.share import as_yaml, bucket, events, hundredths, pattern, read_patterns

KINDS = "phase_started gate decision committed telegram failed status usage step evaluated note created moved".split()


def planted(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON with canaries in every string, key and number."""
    match rng.randrange(4 if depth < 3 else 2):
        case 0:
            return f"/home/{CANARY}/{rng.random()}"
        case 1:
            return NUMBER + rng.randrange(9)
        case 2:
            return [planted(rng, depth + 1) for _ in range(3)]
        case _:
            return {f"{CANARY}-{n}": planted(rng, depth + 1) for n in range(3)}


def test_no_canary_in_ten_thousand_events() -> None:
    rng = random.Random(5)
    rows = []
    for number in range(10_000):
        data = {
            name: planted(rng) for name in ("cause", "action", "who", "sentence", "evidence", "slug", "wrong", "data")
        }
        slug = rng.choice([None, "001-grow", f"002-{CANARY}", CANARY, f"003-extend-{NUMBER}"])
        rows.append((rng.choice([*KINDS, CANARY]), 1.7e9 + number + rng.random(), slug, data))
    shared = list(events(rows))
    text = "".join(event.model_dump_json() for event in shared)
    assert len(shared) > 3000
    assert CANARY not in text and str(NUMBER)[:6] not in text
    assert all(event.phase in (None, "grow", "extend") for event in shared)


def test_a_whole_run_is_shared_without_a_name_a_path_or_an_exact_number(tmp_path: Path) -> None:
    run = ended(tmp_path)
    text = as_yaml(pattern(run))
    assert CANARY not in text and run.id not in text and str(run.journal.get("uuid")) not in text
    assert str(NUMBER) not in text and "12.345" not in text and str(EMBEDDED) not in text
    shared = yaml.safe_load(text)
    assert (shared["family"], shared["recipe"]["growth"], shared["recipe"]["stretch"]) == ("llama", 1.3, 2.0)
    assert shared["parameters"] == 2**20 and shared["short_change"] == pytest.approx(0.57, abs=0.01)
    assert [event["action"] for event in shared["events"] if event["kind"] == "decision"] == ["approve"] * 5


def test_a_run_that_is_not_over_is_not_shared(tmp_path: Path) -> None:
    run = ended(tmp_path)
    run.journal.set("status", "paused")
    with pytest.raises(ScalerError, match="not over"):
        pattern(run)


def test_numbers_are_coarse() -> None:
    assert [bucket(value) for value in (0, 0.4, 1, 3, 1000, 1e30, float("nan"))] == [0, 0, 1, 4, 1024, 2**50, 0]
    assert [hundredths(value) for value in (0.12345, -1e9, float("inf"), None)] == [0.12, -100.0, None, None]


def test_patterns_of_others_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    folder = tmp_path / "patterns"
    folder.mkdir()
    good = as_yaml(pattern(ended(tmp_path / "runs")))
    (folder / "good.yaml").write_text(good)
    (folder / "limits.yaml").write_text(good + "limits: {memory_share: 0.99}\n")
    (folder / "family.yaml").write_text(good.replace("family: llama", "family: trojan"))
    (folder / "operator.yaml").write_text(good.replace("identity_blocks", "rm-rf").replace("widen_ffn", "rm-rf"))
    (folder / "number.yaml").write_text(good.replace("short_change: 0.57", "short_change: 1000"))
    read, refused = read_patterns(folder)
    assert set(read) == {"good.yaml"}
    assert set(refused) == {"limits.yaml", "family.yaml", "operator.yaml", "number.yaml"}
    with pytest.raises(ScalerError, match="no such folder"):
        read_patterns(tmp_path / "nothing")


def test_the_command_shows_first_and_writes_only_where_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, where = ended(tmp_path / "runs"), ("--runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    shown = scaler("share", run.id, "--preview", *where)
    assert shown.returncode == 0 and yaml.safe_load(shown.stdout)["family"] == "llama"
    assert sorted(tmp_path.iterdir()) == before
    written = called("share", run.id, "-o", "pattern.yaml", *where)
    assert written.returncode == 0 and (tmp_path / "pattern.yaml").read_text() == shown.stdout
    assert called("share", run.id, *where).returncode == 2
    assert json.loads(called("share", run.id, "--preview", "--json", *where).stdout)["format"] == 1
