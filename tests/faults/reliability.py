"""Do every campaign of faults and attacks and write down what came out: `python tests/faults/reliability.py PAGE`.

`--times N` makes N times as many trials (`make soak`: 5; 0.1 for a look). With `--keep FOLDER` each row is noted there
as soon as it is done, and the same command goes on with those that are not; `--only ROW ...` does these again. Needs
root for power cuts, small disks and memory limits, libfaketime for clocks, and 25 GB for rollbacks; says so where it is
skipped.
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
from functools import partial
from pathlib import Path
from typing import Any

import campaigns
from campaigns import Result, spread
from mutants import MUTANTS, TRAINING

HEAD = """\
# Reliability

What was done to runs and what came of it, and what malicious files were offered; one command writes this page:
`python tests/faults/reliability.py docs/reference/reliability.md`. A trial counts as lost where anything that a person
was told is missing, a file is not what it should be, the end is not equal, byte for byte, to that of an undisturbed
run, or a hand was needed. Supervisor, journal, commits, gates, recovery and server are the real ones; where a row does
not say training or `scaler`, the worker is a small one that speaks the real protocol. "At work again" is the time from
the start of the process that goes on to the first word of its worker, or to its gate. Load is the machine's, over a
minute, at the end of a row: seconds were measured beside that many other processes, the campaign's own among them.

"""
TEETH = """\

## Without their guards

The same campaigns where a guard was removed: a suite that never fails shows nothing, so each of these must lose.

| guard removed | campaign | trials | lost |
|---|---|---|---|
"""
GIGABYTES_NEEDED = 25


@dataclass(frozen=True)
class Row:
    """One campaign of the table."""

    name: str
    """What `--only` calls it."""
    group: str
    """Rows of one kind of fault or attack; `mutant` where a guard was removed."""
    what: str
    """What the seconds are about; empty where they are not shown."""
    do: Callable[[Path, float], Result]
    skip: Callable[[], str | None] = lambda: None


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


def in_parts(campaign: Callable[..., Result], count: int, **settings: Any) -> Callable[[Path, float], Result]:
    """A campaign in several processes at once."""
    return lambda place, times: spread(campaign, place, count=many(count, times), **settings)


def resumes(until: str) -> Callable[[Path, float], Result]:
    """A real training by real commands."""

    def do(place: Path, times: float) -> Result:
        import real_runs as module

        return module.resume_training(place, count=many(6, times), seed=1, until=until)

    return do


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


def after_snapshots(system: str) -> Callable[[Path, float], Result]:
    """Power cuts behind a training's snapshot."""
    return in_parts(campaigns.cut_power_after_snapshots, 20, seed=1, system=system, processes=2)


def without(name: str, place: Path, _: float) -> Result:
    """A campaign on a run that lacks a guard."""
    return MUTANTS[name].caught(place)


def training_without(name: str, place: Path, _: float) -> Result:
    """A campaign on a training that lacks a guard."""
    import learning as module

    campaign, settings = TRAINING[name]
    return module.apart(campaign, place, mutant=name, **settings)  # type: ignore[no-any-return]


SNAPSHOT_POINTS = ("snapshot.opened", "snapshot.piece", "snapshot.written")


def no_ajv() -> str | None:
    """Why ajv cannot be asked here."""
    import web as module

    return module.no_ajv()


AGAIN = "at work again"
ROWS = (
    Row("kill-points", "kill -9", AGAIN, lambda place, n: campaigns.kill_at_points(place, times=many(3, n))),
    Row("kill-random", "kill -9", AGAIN, in_parts(campaigns.kill_at_random, 900, seed=1)),
    Row("kill-clock", "kill -9", AGAIN, in_parts(campaigns.kill_at_random, 100, seed=2, by_clock=True)),
    Row("kill-writes", "kill -9", AGAIN, lambda place, _: campaigns.kill_in_writes(place)),
    Row("kill-workers", "kill -9", AGAIN, in_parts(campaigns.kill_workers, 20, seed=1)),
    Row("kill-commands", "kill -9", "", verbs),
    Row("kill-training", "kill -9", "", learning("kill_at_points")),
    Row("resume-bits", "resume", "", learning("kill_in_training", count=20, seed=1)),
    Row("resume-command", "resume", "the phase begun again, from the command's start", resumes("phase_started")),
    Row("resume-step", "resume", "the next training step, from the command's start", resumes("step")),
    Row("power-ext4", "power", AGAIN, in_parts(campaigns.cut_power, 100, seed=1, system="ext4"), no_loop("ext4")),
    Row("power-xfs", "power", AGAIN, in_parts(campaigns.cut_power, 100, seed=1, system="xfs"), no_loop("xfs")),
    Row("power-snapshot-ext4", "power", "", after_snapshots("ext4"), no_loop("ext4")),
    Row("power-snapshot-xfs", "power", "", after_snapshots("xfs"), no_loop("xfs")),
    Row("disk-bytes", "disk", AGAIN, in_parts(campaigns.fill_disk, 100, seed=1), campaigns.can_mount),
    Row("disk-files", "disk", AGAIN, in_parts(campaigns.limit_files, 100, seed=1)),
    Row("disk-points", "disk", AGAIN, lambda p, _: campaigns.refuse_writes(p, points=campaigns.points(p))),
    Row("disk-training", "disk", "", learning("fill_disk", points=SNAPSHOT_POINTS)),
    Row("bytes", "bytes", AGAIN, in_parts(campaigns.damage, 504, seed=1)),
    Row("bytes-training", "bytes", "", learning("damage_snapshots", count=20, seed=1)),
    Row("processes", "processes", "", lambda place, n: campaigns.race_writers(place, count=many(1000, n))),
    Row("takeover", "processes", "takeover", lambda place, n: campaigns.takeover(place, count=20)),
    Row(
        "memory",
        "memory",
        AGAIN,
        in_parts(campaigns.run_out_of_memory, 20, seed=1, processes=2),
        campaigns.can_limit_memory,
    ),
    Row("clock", "clock", "", lambda place, n: campaigns.jump_clocks(place, count=many(10, n), seed=1)),
    Row(
        "clock-lies",
        "clock",
        "error of a gate's window",
        in_parts(campaigns.lie_about_time, 20, seed=1, processes=2),
        campaigns.can_fake_time,
    ),
    Row("gate", "clock", "error of a gate's window", lambda p, _: campaigns.gate_window(p, seconds=1.0, count=10)),
    Row("decisions", "decisions", "", in_parts(campaigns.decide_at_once, 1000, seed=1)),
    Row("decisions-web", "decisions", "", web("decide_from_everywhere", count=200, seed=1)),
    Row("stream", "stream", "", web("reconnect", count=1000, seed=1)),
    Row("numbers", "numbers", "", web("odd_numbers", count=1000, seed=1)),
    Row("validators", "numbers", "", web("same_verdict", count=10_000, seed=1), no_ajv),
    Row("rollback-100MB", "rollback", "one rollback", rollbacks(10**8)),
    Row("rollback-1GB", "rollback", "one rollback", rollbacks(10**9), no_room),
    Row("rollback-10GB", "rollback", "one rollback", rollbacks(10**10), no_room),
    Row(
        "rollback-command",
        "rollback",
        "the command, from its start",
        lambda place, _: campaigns.roll_back_by_command(place, size=5 * 10**8, count=20),
        no_room,
    ),
    *(Row(f"attack-{name}", "attack", "refusing", attack(name)) for name in ("safetensors", "gguf", "pickles")),
    Row("attack-recipes", "attack", "refusing", attack("recipes")),
    *(Row(f"attack-{name}", "attack", "", attack(name)) for name in ("code", "templates")),
    *(Row(name, "mutant", "", partial(without, name), MUTANTS[name].skip) for name in MUTANTS),
    *(Row(f"training: {name}", "mutant", "", partial(training_without, name)) for name in TRAINING),
)


def empty(row: Row, why: str) -> str:
    """The line of a campaign that was not done."""
    if row.group == "mutant":
        return f"| {row.name} | ({why}) | | |"
    return f"| {row.group} | {row.name} ({why}) | | | | | | |"


def done(row: Row, times: float) -> str:
    """One campaign's line of its table."""
    if why := row.skip():
        return empty(row, f"skipped here: {why}")
    with tempfile.TemporaryDirectory(prefix="reliability-") as scratch:
        result = row.do(Path(scratch), times)
    for lost in result.lost:
        sys.stderr.write(f"{row.name}: {result.name}: {lost}\n")
    found = f"{result.name} | {result.trials} | {len(result.lost)} |"
    if row.group == "mutant":
        return f"| {row.name} | {found}"
    figures = [result.percentile(0.5), result.percentile(0.99)] if result.seconds and row.what else []
    shown = " | ".join(f"{value:.3f}" if value < 0.1 else f"{value:.2f}" for value in figures) or " | "
    return f"| {row.group} | {found} {row.what} | {shown} | {os.getloadavg()[0]:.1f} |"


def note(kept: Path, row: Row) -> Path:
    """Where the line of a row is kept."""
    return kept / row.name.replace(" ", "-")


def carry_out(rows: list[Row], times: float, kept: Path, *, at_once: int, until: float) -> Iterator[None]:
    """Each campaign in a fork of its own, some at once, since they mostly wait; comes back after each of them.

    What an earlier part of this run noted in `kept` is not done again.
    """
    todo = [row for row in rows if not note(kept, row).exists()]
    running = 0
    while todo or running:
        while todo and running < at_once and time.monotonic() < until:
            _begin(todo.pop(0), times, kept)
            running += 1
        if not running:
            return
        _, status = os.wait()
        running -= 1
        if status:
            sys.stderr.write(f"a campaign ended with {os.waitstatus_to_exitcode(status)}\n")
        yield


def _begin(row: Row, times: float, kept: Path) -> None:
    if os.fork():
        return
    code = 1
    try:
        begun = time.monotonic()
        line = done(row, times)
        sys.stderr.write(f"{row.name}, {time.monotonic() - begun:.0f} s: {line}\n")
        note(kept, row).write_text(line, encoding="utf-8")
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


def page(kept: Path) -> str:
    """All rows in their order, with those that are not done yet."""
    files = {row: note(kept, row) for row in ROWS}
    lines = {
        row: file.read_text(encoding="utf-8") if file.exists() else empty(row, "not run") for row, file in files.items()
    }
    head = ["| by | fault | trials | lost | seconds of | median | p99 | load |", "|---|---|---|---|---|---|---|---|"]
    table = "\n".join([*head, *(line for row, line in lines.items() if row.group != "mutant")])
    teeth = "\n".join(line for row, line in lines.items() if row.group == "mutant")
    return f"{HEAD}{table}\n{TEETH}{teeth}\n\n{machine()}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("--times", type=float, default=1)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", nargs="+", default=[], choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no campaign after so many")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept: Path = asked.keep or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        rows = [row for row in ROWS if row.name in asked.only] or list(ROWS)
        if asked.only:
            for row in rows:
                note(kept, row).unlink(missing_ok=True)
        until = time.monotonic() + 60 * asked.minutes
        for _ in carry_out(rows, asked.times, kept, at_once=asked.at_once, until=until):
            asked.page.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
