"""Share work out among forked processes, which write into the same file.

Not threads: one pass of numpy over a chunk takes some ten microseconds, and handing the interpreter's lock over after
each cost more than a second processor gave (two threads took twice the processor time of one, and no less wall time).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import TypeVar

from scaler_wizard.errors import ScalerError
from scaler_wizard.tied import die_with_parent

Item = TypeVar("Item")
PROCESSES = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Two keep up with most disks."""
_END = -1
"""A helper's word that its share is done."""


def share_out(
    job: Callable[[Item], None],
    items: Sequence[Item],
    *,
    size: Callable[[Item], int],
    processes: int,
    done: Callable[[int], None],
) -> None:
    """Call `job` once for every item, in `processes` processes, this one among them; `done` is told each item's size.

    A job's effects have to be outside of memory. What a job raises is raised here, and the rest is given up.
    """
    own, *others = deal(items, size, processes if sys.platform == "linux" else 1)
    with ExitStack() as stack:
        helpers = [stack.enter_context(_helper(job, share, size)) for share in others]
        for item in own:
            job(item)
            done(size(item))
            for helper in helpers:
                helper.hear(done, wait=False)
        for helper in helpers:
            helper.hear(done, wait=True)


def deal(items: Sequence[Item], size: Callable[[Item], int], hands: int) -> list[list[Item]]:
    """At most `hands` shares of about equal sizes, each in the order of the items: the largest item goes first, to
    whoever has least (Graham 1969)."""
    shares: list[list[int]] = [[] for _ in range(max(1, min(hands, len(items))))]
    sums = [0] * len(shares)
    for place in sorted(range(len(items)), key=lambda place: -size(items[place])):
        least = sums.index(min(sums))
        shares[least].append(place)
        sums[least] += size(items[place])
    return [[items[place] for place in sorted(share)] for share in shares]


@dataclass
class _Helper:
    """A forked process and the pipe that it reports through."""

    process: ForkProcess
    reports: Connection
    ended: bool = False

    def hear(self, done: Callable[[int], None], *, wait: bool) -> None:
        """Pass on what it reports, until its end or only what is there already."""
        while not self.ended and (wait or self.reports.poll()):
            said = self._said()
            if isinstance(said, BaseException):
                raise said
            self.ended = said == _END
            if not self.ended:
                done(said)

    def _said(self) -> int | BaseException:
        try:
            said: int | BaseException = self.reports.recv()
        except EOFError:
            self.process.join()
            raise ScalerError(
                f"a process that wrote a part of the weights ended by signal {-(self.process.exitcode or 0)}",
                "make memory free, then run the same command again",
            ) from None
        return said


@contextmanager
def _helper(job: Callable[[Item], None], items: list[Item], size: Callable[[Item], int]) -> Iterator[_Helper]:
    reports, words = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_help, args=(job, items, size, words, os.getpid()), daemon=True
    )
    process.start()
    words.close()
    try:
        yield _Helper(process, reports)
    finally:
        process.kill()  # one that is done has nothing left to do
        process.join()
        reports.close()


def _help(
    job: Callable[[Item], None], items: list[Item], size: Callable[[Item], int], words: Connection, parent: int
) -> None:
    """In the forked process: it dies with its parent, and what goes wrong is said there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # a collection writes into every object, and so copies every page that is shared with the parent
    die_with_parent()
    if os.getppid() != parent:
        return
    try:
        for item in items:
            job(item)
            words.send(size(item))
        words.send(_END)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        words.send(error)
