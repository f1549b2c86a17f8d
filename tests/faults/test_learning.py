"""A real training survives kills, a full disk and damaged snapshots, bit for bit; every named point is killed at."""

from __future__ import annotations

import re
from pathlib import Path

import campaigns
import learning
import pytest
import verbs
from mutants import TRAINING
from test_faults import FULL, nothing_lost

import scaler_wizard

LEAST_POINTS = 40
QUICK = ("rollback", "undo", "repair")
SLOWER = tuple(name for name in {**verbs.RUNS, **verbs.MODELS} if name not in QUICK)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all campaigns, since they compare with the same undisturbed training."""
    return tmp_path_factory.mktemp("learning")


def test_a_killed_training_goes_on_bit_for_bit(place: Path) -> None:
    nothing_lost(learning.apart("kill_in_training", place, count=1, seed=1), at_least=1)


@FULL
@pytest.mark.thorough
def test_a_damaged_snapshot_is_not_used(place: Path) -> None:
    nothing_lost(learning.apart("damage_snapshots", place, count=1, seed=1), at_least=1)


@FULL
def test_a_disk_that_fills_up_in_a_snapshot_is_told_with_the_bytes_that_are_needed(place: Path) -> None:
    nothing_lost(learning.apart("fill_disk", place, points=("snapshot.piece",)), at_least=1)


@FULL
@pytest.mark.timeout(900)
def test_killed_trainings_go_on_bit_for_bit(place: Path) -> None:
    nothing_lost(learning.apart("kill_in_training", place, count=5, seed=2), at_least=5)
    nothing_lost(learning.apart("damage_snapshots", place, count=4, seed=2), at_least=4)


@FULL
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", learning.KINDS)
def test_a_worker_survives_a_kill_at_every_point(kind: str, place: Path) -> None:
    nothing_lost(learning.apart("kill_at_points", place, kinds=(kind,)), at_least=4)


@FULL
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.thorough) for name in QUICK), *SLOWER])
def test_a_command_survives_a_kill_at_every_point(name: str, tmp_path: Path) -> None:
    nothing_lost(verbs.kill_in(tmp_path, {name: {**verbs.RUNS, **verbs.MODELS}[name]}), at_least=2)


@FULL
@pytest.mark.timeout(600)
def test_every_named_point_is_reached_by_a_campaign(tmp_path: Path) -> None:
    source = Path(scaler_wizard.__file__).parent
    named = {
        name
        for file in source.rglob("*.py")
        for name in re.findall(r'\breach\("([a-z.-]+)"\)', file.read_text(encoding="utf-8"))
    }
    assert len(named) >= LEAST_POINTS
    reached = set(campaigns.points(tmp_path / "run"))
    for name, verb in {**verbs.RUNS, **verbs.MODELS}.items():
        reached |= set(verbs.points(tmp_path / name, verb))
    for kind in learning.KINDS:
        reached |= set(learning.apart("points", tmp_path / "workers", kind=kind))
    assert named - reached == set()


# -- mutants -----------------------------------------------------------------------------------------------------------


@FULL
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TRAINING)
def test_a_mutant_of_the_training_is_caught(name: str, tmp_path: Path) -> None:
    campaign, settings = TRAINING[name]
    assert learning.apart(campaign, tmp_path, mutant=name, **settings).lost, "nothing was lost: it has no teeth"
