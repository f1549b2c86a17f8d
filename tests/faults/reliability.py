"""Do every campaign of faults and write down what came out: `python tests/faults/reliability.py PAGE`.

`--times N` makes N times as many trials (`make soak`: 20). The page is written again after every campaign, so a run
that is cut short leaves a true page with fewer rows. Needs root for power cuts, small disks and memory limits; says so
where it is skipped.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import campaigns
from campaigns import Result

HEAD = """\
# Reliability

What was done to runs and what came of it; `python tests/faults/reliability.py docs/reference/reliability.md` writes it.
A trial counts as lost where anything that a person was told is missing, a file is not what it should be, the end is not
equal, byte for byte, to that of an undisturbed run, or a hand was needed. Runs of a small worker that speaks the real
protocol; supervisor, journal, commits, gates and recovery are the real ones. Seconds are those of the machine below,
which others used at the same time.

"""


@dataclass(frozen=True)
class Row:
    """One campaign of the table."""

    what: str
    """The column `seconds` is about this."""
    do: Callable[[Path, int], Result]
    skip: Callable[[], str | None] = lambda: None


ROWS = (
    Row("resuming to the end", lambda place, n: campaigns.kill_at_points(place, times=n)),
    Row("resuming to the end", lambda place, n: campaigns.kill_at_random(place, count=60 * n, seed=1)),
    Row("resuming to the end", lambda place, n: campaigns.kill_at_random(place, count=40 * n, seed=2, by_clock=True)),
    Row(
        "resuming to the end",
        lambda place, n: campaigns.cut_power(place, system="ext4", count=20 * n, seed=1),
        lambda: campaigns.can_cut_power("ext4"),
    ),
    Row(
        "",
        lambda place, n: _mutant(campaigns.cut_power(place, system="ext4", count=10, seed=1, before=_never_flush)),
        lambda: campaigns.can_cut_power("ext4"),
    ),
    Row(
        "resuming to the end",
        lambda place, n: campaigns.cut_power(place, system="xfs", count=20 * n, seed=1),
        lambda: campaigns.can_cut_power("xfs"),
    ),
    Row(
        "resuming to the end",
        lambda place, n: campaigns.fill_disk(place, sizes=list(range(100_000, 1_600_000, 75_000 // n))),
        lambda: campaigns.can_cut_power("ext4"),
    ),
    Row("resuming to the end", lambda place, n: campaigns.refuse_writes(place, points=campaigns.points(place))),
    Row("resuming to the end", lambda place, n: campaigns.damage(place, count=54 * n, seed=1)),
    Row("", lambda place, n: campaigns.race_writers(place, count=200 * n)),
    Row("takeover", lambda place, n: campaigns.takeover(place, count=20)),
    Row(
        "resuming to the end",
        lambda place, n: campaigns.run_out_of_memory(place, count=5 * n),
        campaigns.can_limit_memory,
    ),
    Row("", lambda place, n: campaigns.jump_clocks(place, count=3 * n, seed=1)),
    Row("pausing too late", lambda place, n: campaigns.gate_window(place, seconds=1.0, count=3)),
    Row("", lambda place, n: campaigns.decide_at_once(place, count=200 * n, seed=1)),
    Row("one rollback", lambda place, n: campaigns.roll_back(place, size=10**8, count=20)),
    Row("one rollback", lambda place, n: campaigns.roll_back(place, size=10**9, count=20)),
    Row("one rollback", lambda place, n: campaigns.roll_back(place, size=10**10, count=20)),
)


def _never_flush() -> None:
    campaigns.without_flushing()


def _mutant(result: Result) -> Result:
    result.name = "power cut, ext4, flushing removed: losses show that the campaign has teeth"
    return result


def lines(times: int) -> Iterator[str]:
    """A row of the table after each campaign."""
    for row in ROWS:
        if why := row.skip():
            yield f"| (skipped here: {why}) | | | | |"
            continue
        with tempfile.TemporaryDirectory(prefix="reliability-") as scratch:
            result = row.do(Path(scratch), times)
        for lost in result.lost:
            sys.stderr.write(f"{result.name}: {lost}\n")
        seconds = f"{result.percentile(0.5):.2f} | {result.worst:.2f}" if result.seconds and row.what else " | "
        yield f"| {result.name} | {result.trials} | {len(result.lost)} | {row.what} | {seconds} |"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("--times", type=int, default=1)
    arguments = parser.parse_args()
    table = ["| fault | trials | lost | seconds of | median | worst |", "|---|---|---|---|---|---|"]
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}\n"
    for line in lines(arguments.times):
        sys.stderr.write(f"{line}\n")
        table.append(line)
        arguments.page.write_text(HEAD + "\n".join(table) + f"\n\n{machine}", encoding="utf-8")


if __name__ == "__main__":
    main()
