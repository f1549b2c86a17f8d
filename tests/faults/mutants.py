"""Guards removed one at a time: a suite that never fails shows nothing, so each of these must lose something."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import campaigns
from campaigns import Result

Campaign = Callable[[Path], Result]


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
    fcntl.flock = lambda *_: None  # type: ignore[assignment]


def no_fence() -> None:
    """An older writer goes on."""
    from scaler_wizard.journal import Journal

    Journal.lease = lambda self: None  # type: ignore[method-assign]


def an_end_that_must_be_written_down() -> None:
    """A disk that is too full to write a pause down fails the run."""
    from scaler_wizard.supervisor import Supervisor

    Supervisor._end_on_any_disk = Supervisor._end  # type: ignore[method-assign]


def any_answer_counts() -> None:
    """A gate takes as many answers as are given."""
    from scaler_wizard.journal import Journal

    def add(self: Journal, kind: str, data: dict[str, object], *, phase: str | None = None) -> bool:
        self._database.execute("DROP INDEX IF EXISTS one_answer")
        self.add(kind, data, phase=phase)
        return True

    Journal.add_once = add  # type: ignore[method-assign, assignment]


def clock_of_the_wall() -> None:
    """A gate's window is measured on the clock that can jump."""
    import time

    time.monotonic = lambda: time.time()


def no_flushing() -> None:
    """Nothing is ever flushed."""
    from scaler_wizard import journal

    os.fsync = lambda _: None  # type: ignore[assignment]
    journal.DURABLE = journal.BATCHED = "OFF"


@dataclass(frozen=True)
class Mutant:
    """A guard that is removed, and what must notice."""

    remove: Callable[[], None]
    """In all that is conducted from then on in this process, resuming included."""
    campaign: Campaign
    share: float = 0.0
    """Of its trials, at least so many must lose something; at least one."""
    skip: Callable[[], str | None] = lambda: None

    def caught(self, place: Path) -> Result:
        """What the campaign finds in a process where the guard is missing."""

        def without() -> Result:
            self.remove()
            return self.campaign(place)

        return campaigns.forked(without)


def _cuts(system: str, count: int) -> Campaign:
    """The guard is missing up to the cut only: what was not flushed must be missed by a whole recovery."""
    return partial(campaigns.cut_power, system=system, count=count, seed=1, before=no_flushing)


def _no_loop(system: str) -> Callable[[], str | None]:
    return lambda: campaigns.can_cut_power(system)


MUTANTS: dict[str, Mutant] = {
    "torn writes that nobody repairs": Mutant(torn_writes_that_nobody_repairs, campaigns.kill_in_writes),
    "no hashes": Mutant(no_hashes, partial(campaigns.damage, count=27, seed=1)),
    "no lock": Mutant(no_lock, partial(campaigns.race_writers, count=5)),
    "no fence": Mutant(no_fence, campaigns.steal_the_lease),
    "an end that must be written down": Mutant(
        an_end_that_must_be_written_down,
        partial(campaigns.fill_disk, count=4, seed=1, least=445_000, most=460_000),
        skip=campaigns.can_mount,
    ),
    "any answer counts": Mutant(any_answer_counts, partial(campaigns.decide_at_once, count=20, seed=1)),
    "the clock of the wall": Mutant(clock_of_the_wall, partial(campaigns.gate_window, seconds=1.0, count=3)),
    "no flushing, ext4": Mutant(lambda: None, _cuts("ext4", 20), 0.9, _no_loop("ext4")),
    "no flushing, xfs": Mutant(lambda: None, _cuts("xfs", 20), 0.9, _no_loop("xfs")),
    "snapshots that are not flushed, ext4": Mutant(
        no_flushing,
        partial(campaigns.cut_power_after_snapshots, system="ext4", count=20, seed=1),
        0.9,
        _no_loop("ext4"),
    ),
    "snapshots that are not flushed, xfs": Mutant(
        no_flushing, partial(campaigns.cut_power_after_snapshots, system="xfs", count=20, seed=1), 0.9, _no_loop("xfs")
    ),
}

TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "no optimiser": ("kill_in_training", {"count": 2, "seed": 3}),
    "no history": ("kill_in_training", {"count": 2, "seed": 3}),
    "no breaker's memory": ("kill_in_training", {"count": 2, "seed": 3}),
    "no hashes": ("damage_snapshots", {"count": 2, "seed": 3}),
    "torn snapshots": ("kill_at_points", {"kinds": ("heal",), "only": ("snapshot.piece",)}),
}
"""Of a real training, where `learning` removes the guard: the campaign that must notice."""
