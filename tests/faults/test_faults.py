"""A run survives what happens to machines.

Here a short part of each campaign; `pytest -m faults` does the rest, and the mutants.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaigns
import pytest
from campaigns import Result

FULL = pytest.mark.faults


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
@pytest.mark.parametrize("system", ["ext4", "xfs"])
@pytest.mark.timeout(1200)
def test_a_run_survives_a_power_cut(place: Path, system: str) -> None:
    if why := campaigns.can_cut_power(system):
        pytest.skip(why)
    result = campaigns.spread(campaigns.cut_power, place / system, count=40, seed=1, system=system)
    nothing_lost(result, at_least=40)


def test_a_full_disk_pauses_the_run_and_says_how_many_bytes_are_needed(place: Path) -> None:
    nothing_lost(campaigns.refuse_writes(place, points=["gate.opened", "journal.before-commit"]), at_least=2)
    if os.geteuid() == 0:
        nothing_lost(campaigns.fill_disk(place, count=2, seed=1), at_least=2)


@FULL
@pytest.mark.timeout(1200)
def test_a_full_disk_at_any_byte_loses_nothing(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    nothing_lost(campaigns.spread(campaigns.fill_disk, place / "full", count=100, seed=2), at_least=100)
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


def test_one_answer_counts_however_many_are_given(place: Path) -> None:
    nothing_lost(campaigns.decide_at_once(place, count=15, seed=1), at_least=15)


@FULL
@pytest.mark.timeout(600)
def test_one_answer_counts_in_a_thousand_interleavings(place: Path) -> None:
    nothing_lost(campaigns.spread(campaigns.decide_at_once, place / "decisions", count=1000, seed=2), at_least=1000)


def test_a_rollback_copies_nothing(place: Path) -> None:
    nothing_lost(campaigns.roll_back(place, size=2**24, count=5), at_least=5)


# -- mutants: a suite that never fails shows nothing -------------------------------------------------------------------


def torn_writes_that_nobody_repairs() -> None:
    """Files are written in place, and the pointer is believed. Each guard alone makes up for the other."""
    from scaler_wizard import files, recovery, run, supervisor
    from scaler_wizard.failpoints import reach

    def in_place(file: Path, text: str) -> None:
        with file.open("w", encoding="utf-8") as stream:
            stream.write(text[: len(text) // 2])
            stream.flush()
            reach("write.opened")
            stream.write(text[len(text) // 2 :])
        reach("write.renamed")

    files.write_whole = run.write_whole = recovery.write_whole = supervisor.write_whole = in_place
    recovery._repoint = lambda run: iter(())  # type: ignore[assignment]


def no_hashes() -> None:
    """Checkpoints are believed."""
    from scaler_wizard import recovery

    recovery.verify = lambda folder, manifest=None, hashes=False: None  # type: ignore[assignment]


def no_lock() -> None:
    """Everybody gets the lock."""
    import fcntl

    fcntl.flock = lambda *_: None  # type: ignore[assignment]


def no_fence() -> None:
    """An older writer goes on."""
    from scaler_wizard.journal import Journal

    Journal.lease = lambda self: None  # type: ignore[method-assign]


def _kill_in_writes(place: Path) -> Result:
    """Killed in the n-th write of a file, for many n."""
    result, like = Result("kill in writes"), campaigns.expected(place / "reference")
    for number in range(1, 27):
        folder = campaigns.begin(place / f"write-{number}")
        with result.trial(str(number)):
            ended = campaigns.conduct(folder, campaigns.Fault(f"write.opened=kill@{number}"))
            campaigns.finish(folder, ended.acknowledged, like)
    return result


@FULL
def test_a_kill_in_any_write_of_a_file_loses_nothing(place: Path) -> None:
    nothing_lost(_kill_in_writes(place), at_least=26)


CAUGHT: dict[str, tuple[Callable[[], None], Callable[..., Result], dict[str, Any]]] = {
    "torn writes": (torn_writes_that_nobody_repairs, _kill_in_writes, {}),
    "no hashes": (no_hashes, campaigns.damage, {"count": 27, "seed": 1}),
    "no fence": (no_fence, campaigns.steal_the_lease, {}),
}


@FULL
@pytest.mark.parametrize("name", CAUGHT)
def test_a_mutant_is_caught(name: str, tmp_path: Path) -> None:
    mutant, campaign, settings = CAUGHT[name]
    child = os.fork()
    if child == 0:
        code = 98
        signal.alarm(280)
        try:
            mutant()  # in all that is conducted from here, the resuming included
            code = 0 if campaign(tmp_path, **settings).lost else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "nothing was lost: the campaign has no teeth"


@FULL
def test_a_run_without_locks_is_caught(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        no_lock()
        os._exit(0 if campaigns.race_writers(tmp_path, count=5).lost else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@FULL
@pytest.mark.timeout(600)
def test_a_run_that_never_flushes_is_caught_by_power_cuts(tmp_path: Path) -> None:
    if why := campaigns.can_cut_power("ext4"):
        pytest.skip(why)
    result = campaigns.cut_power(tmp_path, system="ext4", count=10, seed=1, before=campaigns.without_flushing)
    assert len(result.lost) >= 9
