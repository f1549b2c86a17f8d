"""Do every campaign of faults and attacks and write down what came out: `python tests/faults/reliability.py PAGE`.

`--times N` makes N times as many trials (`make soak`: 5; 0.1 for a look). With `--keep FOLDER` each row is noted there
as soon as it is done, and the same command goes on with those that are not. Needs root for power cuts, small disks and
memory limits, and 25 GB for rollbacks; says so where it is skipped.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import campaigns
from campaigns import Result, spread

HEAD = """\
# Reliability

What was done to runs and what came of it, and what malicious files were offered; one command writes this page:
`python tests/faults/reliability.py docs/reference/reliability.md`. A trial counts as lost where anything that a person
was told is missing, a file is not what it should be, the end is not equal, byte for byte, to that of an undisturbed
run, or a hand was needed. Supervisor, journal, commits, gates, recovery and server are the real ones; where a row does
not say training, the worker is a small one that speaks the real protocol. Seconds are those of the machine below, which
others used at the same time.

"""
GIGABYTES_NEEDED = 25


@dataclass(frozen=True)
class Row:
    """One campaign of the table."""

    group: str
    """Rows of one kind of fault or attack."""
    what: str
    """What the seconds are about; empty where they are not shown."""
    do: Callable[[Path, float], Result]
    skip: Callable[[], str | None] = lambda: None
    teeth: str = ""
    """Where a guard was removed: which; losses then show that the campaign has teeth."""


def many(count: int, times: float) -> int:
    """So many trials, at least one."""
    return max(1, round(count * times))


def learning(name: str, **settings: Any) -> Callable[[Path, float], Result]:
    """A campaign on a real training; torch is loaded only when its turn comes."""

    def do(place: Path, times: float) -> Result:
        import learning as module

        counted = {key: many(value, times) if key == "count" else value for key, value in settings.items()}
        return module.apart(name, place, **counted)  # type: ignore[no-any-return]

    return do


def web(name: str, **settings: Any) -> Callable[[Path, float], Result]:
    """A campaign over the wire."""

    def do(place: Path, times: float) -> Result:
        import web as module

        counted = {key: many(value, times) if key == "count" else value for key, value in settings.items()}
        return getattr(module, name)(place, **counted)  # type: ignore[no-any-return]

    return do


def attack(name: str) -> Callable[[Path, float], Result]:
    """A corpus of malicious files."""

    def do(place: Path, _: float) -> Result:
        import attacks as module

        return getattr(module, name)(place)  # type: ignore[no-any-return]

    return do


def verbs(place: Path, _: float) -> Result:
    """Kills inside a person's commands."""
    import verbs as module

    return module.kill_in(place, {**module.RUNS, **module.MODELS})


def cuts(system: str, count: int, *, before: Callable[[], None] | None = None) -> Callable[[Path, float], Result]:
    """Power cuts on one file system."""
    settings: dict[str, Any] = {"seed": 1, "system": system, "before": before, "processes": 6}
    return lambda place, n: spread(
        campaigns.cut_power, place, count=many(count, n if before is None else 1), **settings
    )


def rollbacks(size: int) -> Callable[[Path, float], Result]:
    """Rollbacks and undos over checkpoints of this many bytes."""
    return lambda place, _: campaigns.roll_back(place, size=size, count=100)


def no_room() -> str | None:
    """Why large checkpoints cannot be written here."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return None if free > GIGABYTES_NEEDED * 10**9 else f"needs {GIGABYTES_NEEDED} GB of disk"


def no_loop(system: str) -> Callable[[], str | None]:
    """Why power cannot be cut on this file system here."""
    return lambda: campaigns.can_cut_power(system)


def no_ajv() -> str | None:
    """Why ajv cannot be asked here."""
    import web as module

    return module.no_ajv()


END = "resuming to the end"
ROWS = (
    Row("kill -9", END, lambda place, n: campaigns.kill_at_points(place, times=many(1, n))),
    Row("kill -9", END, lambda place, n: spread(campaigns.kill_at_random, place, count=many(900, n), seed=1)),
    Row(
        "kill -9",
        END,
        lambda place, n: spread(campaigns.kill_at_random, place, count=many(100, n), seed=2, by_clock=True),
    ),
    Row("kill -9", "", verbs),
    Row("kill -9", "", learning("kill_at_points")),
    Row("resume", "", learning("kill_in_training", count=20, seed=1)),
    Row("power", END, cuts("ext4", 100), no_loop("ext4")),
    Row("power", END, cuts("xfs", 100), no_loop("xfs")),
    Row("power", "", cuts("ext4", 20, before=campaigns.without_flushing), no_loop("ext4"), teeth="no flushing"),
    Row("disk", END, lambda p, n: spread(campaigns.fill_disk, p, count=many(100, n), seed=1), no_loop("ext4")),
    Row("disk", END, lambda place, n: campaigns.refuse_writes(place, points=campaigns.points(place))),
    Row("disk", "", learning("fill_disk", points=("snapshot.opened", "snapshot.piece", "snapshot.written"))),
    Row("bytes", END, lambda place, n: spread(campaigns.damage, place, count=many(504, n), seed=1)),
    Row("bytes", "", learning("damage_snapshots", count=20, seed=1)),
    Row("processes", "", lambda place, n: campaigns.race_writers(place, count=many(1000, n))),
    Row("processes", "takeover", lambda place, n: campaigns.takeover(place, count=20)),
    Row(
        "memory",
        END,
        lambda p, n: spread(campaigns.run_out_of_memory, p, count=many(20, n), seed=1, processes=2),
        campaigns.can_limit_memory,
    ),
    Row("clock", "", lambda place, n: campaigns.jump_clocks(place, count=many(10, n), seed=1)),
    Row("clock", "pausing too late", lambda place, n: campaigns.gate_window(place, seconds=1.0, count=10)),
    Row("decisions", "", lambda place, n: spread(campaigns.decide_at_once, place, count=many(1000, n), seed=1)),
    Row("decisions", "", web("decide_from_everywhere", count=200, seed=1)),
    Row("stream", "", web("reconnect", count=1000, seed=1)),
    Row("numbers", "", web("odd_numbers", count=1000, seed=1)),
    Row("numbers", "", web("same_verdict", count=10_000, seed=1), no_ajv),
    Row("rollback", "one rollback", rollbacks(10**8)),
    Row("rollback", "one rollback", rollbacks(10**9), no_room),
    Row("rollback", "one rollback", rollbacks(10**10), no_room),
    Row(
        "rollback",
        "the command, from its start",
        lambda place, _: campaigns.roll_back_by_command(place, size=5 * 10**8, count=20),
        no_room,
    ),
    Row("attack", "refusing", attack("safetensors")),
    Row("attack", "refusing", attack("gguf")),
    Row("attack", "refusing", attack("pickles")),
    Row("attack", "refusing", attack("recipes")),
    Row("attack", "", attack("code")),
    Row("attack", "", attack("templates")),
)


def done(row: Row, times: float) -> str:
    """One campaign's line of the table."""
    if why := row.skip():
        return f"| {row.group} | (skipped here: {why}) | | | | | |"
    with tempfile.TemporaryDirectory(prefix="reliability-") as scratch:
        result = row.do(Path(scratch), times)
    for lost in result.lost:
        sys.stderr.write(f"{result.name}: {lost}\n")
    name = f"{result.name} ({row.teeth}: losses show that the campaign has teeth)" if row.teeth else result.name
    figures = [result.percentile(0.5), result.percentile(0.99)] if result.seconds and row.what else []
    shown = " | ".join(f"{value:.3f}" if value < 0.1 else f"{value:.2f}" for value in figures) or " | "
    return f"| {row.group} | {name} | {result.trials} | {len(result.lost)} | {row.what} | {shown} |"


def carry_out(times: float, kept: Path, *, at_once: int, until: float) -> Iterator[None]:
    """Each campaign in a fork of its own, some at once, since they mostly wait; comes back after each of them.

    What an earlier part of this run noted in `kept` is not done again.
    """
    todo = [number for number in range(len(ROWS)) if not (kept / f"{number:02d}").exists()]
    running = 0
    while todo or running:
        while todo and running < at_once and time.monotonic() < until:
            _begin(todo.pop(), times, kept)  # the last ones are the shortest
            running += 1
        if not running:
            return
        _, status = os.wait()
        running -= 1
        if status:
            sys.stderr.write(f"a campaign ended with {os.waitstatus_to_exitcode(status)}\n")
        yield


def _begin(number: int, times: float, kept: Path) -> None:
    if os.fork():
        return
    code = 1
    try:
        line = done(ROWS[number], times)
        sys.stderr.write(f"{line}\n")
        (kept / f"{number:02d}").write_text(line, encoding="utf-8")
        code = 0
    except BaseException:  # noqa: BLE001 - the others go on; the row is missing
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def machine() -> str:
    """What it ran on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    system = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} processors"
    return f"Python {platform.python_version()}, {system}, commit {commit.stdout.strip() or 'unknown'}\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("--times", type=float, default=1)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no campaign after so many")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept: Path = asked.keep or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + 60 * asked.minutes
        for _ in carry_out(asked.times, kept, at_once=asked.at_once, until=until):
            lines = [file.read_text(encoding="utf-8") for file in sorted(kept.iterdir())]
            head = ["| by | fault | trials | lost | seconds of | median | p99 |", "|---|---|---|---|---|---|---|"]
            asked.page.write_text(HEAD + "\n".join([*head, *lines]) + f"\n\n{machine()}", encoding="utf-8")


if __name__ == "__main__":
    main()
