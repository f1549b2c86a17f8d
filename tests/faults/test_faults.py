"""A run survives what happens to machines.

Here a short part of each campaign; `pytest -m faults` does the rest, and the mutants.
"""

from __future__ import annotations

import os
from pathlib import Path

import campaigns
import pytest
from campaigns import Result
from mutants import MUTANTS

FULL = pytest.mark.faults
THOROUGH = pytest.mark.thorough
QUICK = ("no hashes", "no lock", "no fence", "any answer counts", "the clock of the wall")
"""Mutants that are caught within seconds."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all campaigns, since they compare with the same uninterrupted run."""
    return tmp_path_factory.mktemp("faults")


def nothing_lost(result: Result, *, at_least: int) -> None:
    """Every trial held."""
    assert result.lost == []
    assert result.trials >= at_least


def test_a_run_survives_a_kill_at_every_point(place: Path) -> None:
    nothing_lost(campaigns.kill_at_points(place), at_least=30)


def test_a_run_survives_kills_at_random(place: Path) -> None:
    nothing_lost(campaigns.kill_at_random(place, count=20, seed=1), at_least=20)
    nothing_lost(campaigns.kill_at_random(place, count=6, seed=2, by_clock=True), at_least=6)


@FULL
@pytest.mark.timeout(1200)
def test_a_run_survives_a_thousand_kills(place: Path) -> None:
    nothing_lost(campaigns.kill_at_points(place, times=3), at_least=90)
    nothing_lost(campaigns.spread(campaigns.kill_at_random, place / "points", count=600, seed=3), at_least=600)
    by_clock = campaigns.spread(campaigns.kill_at_random, place / "clock", count=310, seed=4, by_clock=True)
    nothing_lost(by_clock, at_least=310)


def test_a_killed_worker_pauses_the_run_and_the_run_goes_on(place: Path) -> None:
    nothing_lost(campaigns.kill_workers(place, count=1, seed=1), at_least=1)


@FULL
@THOROUGH
def test_many_killed_workers_pause_the_run_and_it_goes_on(place: Path) -> None:
    nothing_lost(campaigns.spread(campaigns.kill_workers, place / "workers", count=20, seed=2), at_least=20)


@pytest.mark.parametrize("system", ["ext4", "xfs"])
def test_a_run_survives_a_power_cut(place: Path, system: str) -> None:
    if why := campaigns.can_cut_power(system):
        pytest.skip(why)
    nothing_lost(campaigns.cut_power(place, system=system, count=1, seed=1), at_least=1)
    nothing_lost(campaigns.cut_power_after_snapshots(place, system=system, count=2, seed=1), at_least=2)


@FULL
@pytest.mark.parametrize("system", ["ext4", "xfs"])
@pytest.mark.timeout(2400)
def test_a_run_survives_a_hundred_power_cuts(place: Path, system: str) -> None:
    if why := campaigns.can_cut_power(system):
        pytest.skip(why)
    result = campaigns.spread(campaigns.cut_power, place / system, count=100, seed=1, system=system)
    nothing_lost(result, at_least=100)
    snapshots = campaigns.spread(
        campaigns.cut_power_after_snapshots, place / f"{system}-snapshots", count=20, seed=1, system=system
    )
    nothing_lost(snapshots, at_least=20)


def test_a_full_disk_pauses_the_run_and_says_how_many_bytes_are_needed(place: Path) -> None:
    nothing_lost(campaigns.refuse_writes(place, points=["gate.opened", "journal.before-commit"]), at_least=2)
    if os.geteuid() == 0:
        nothing_lost(campaigns.fill_disk(place, count=2, seed=1), at_least=2)
        # large enough to begin, too small for the next phase, and too full to write that down
        nothing_lost(campaigns.fill_disk(place, count=2, seed=1, least=445_000, most=460_000), at_least=2)
    nothing_lost(campaigns.limit_files(place, count=3, seed=1), at_least=3)


@FULL
@pytest.mark.timeout(1200)
def test_a_full_disk_at_any_byte_loses_nothing(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    nothing_lost(campaigns.spread(campaigns.fill_disk, place / "full", count=100, seed=2), at_least=100)
    nothing_lost(campaigns.spread(campaigns.limit_files, place / "limited", count=100, seed=2), at_least=100)
    nothing_lost(campaigns.refuse_writes(place, points=campaigns.points(place)), at_least=30)


def test_damaged_bytes_are_found_before_they_are_used(place: Path) -> None:
    nothing_lost(campaigns.damage(place, count=9, seed=1), at_least=9)


@FULL
@pytest.mark.timeout(1200)
def test_many_damaged_files_are_found(place: Path) -> None:
    nothing_lost(campaigns.spread(campaigns.damage, place / "damage", count=504, seed=2), at_least=500)


def test_two_processes_never_write_one_run(place: Path) -> None:
    nothing_lost(campaigns.race_writers(place, count=20), at_least=20)
    nothing_lost(campaigns.takeover(place, count=3), at_least=3)
    nothing_lost(campaigns.steal_the_lease(place), at_least=1)


@FULL
def test_two_processes_never_write_one_run_in_many_trials(place: Path) -> None:
    nothing_lost(campaigns.race_writers(place, count=1000), at_least=1000)


@FULL
@pytest.mark.timeout(600)
def test_a_worker_without_memory_takes_nothing_with_it(place: Path) -> None:
    if why := campaigns.can_limit_memory():
        pytest.skip(why)
    nothing_lost(campaigns.spread(campaigns.run_out_of_memory, place / "memory", count=20, seed=1), at_least=20)


def test_clocks_that_jump_change_nothing(place: Path) -> None:
    nothing_lost(campaigns.jump_clocks(place, count=1, seed=1), at_least=1)
    nothing_lost(campaigns.gate_window(place, seconds=0.5, count=1), at_least=1)


@FULL
@pytest.mark.timeout(600)
def test_a_date_that_lies_moves_no_gate_and_no_order(place: Path) -> None:
    if why := campaigns.can_fake_time():
        pytest.skip(why)
    nothing_lost(campaigns.spread(campaigns.lie_about_time, place / "lies", count=20, seed=2), at_least=20)


def test_one_answer_counts_however_many_are_given(place: Path) -> None:
    nothing_lost(campaigns.decide_at_once(place, count=15, seed=1), at_least=15)


@FULL
@pytest.mark.timeout(600)
def test_one_answer_counts_in_a_thousand_interleavings(place: Path) -> None:
    nothing_lost(campaigns.spread(campaigns.decide_at_once, place / "decisions", count=1000, seed=2), at_least=1000)


def test_a_rollback_copies_nothing(place: Path) -> None:
    nothing_lost(campaigns.roll_back(place, size=2**24, count=5), at_least=5)


@FULL
@THOROUGH
def test_a_kill_in_any_write_of_a_file_loses_nothing(place: Path) -> None:
    nothing_lost(campaigns.kill_in_writes(place), at_least=26)


@FULL
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [pytest.param(name, marks=THOROUGH if name in QUICK else ()) for name in MUTANTS])
def test_a_mutant_is_caught(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    if why := mutant.skip():
        pytest.skip(why)
    result = mutant.caught(tmp_path)
    assert result.lost, "nothing was lost: the campaign has no teeth"
    assert len(result.lost) >= mutant.share * result.trials
