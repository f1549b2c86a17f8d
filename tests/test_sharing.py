"""Work shared out among forked processes: each item once, errors and deaths heard, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from scaler_wizard.errors import ScalerError
from scaler_wizard.weights.sharing import deal, share_out

SIZES = [5, 1, 1, 9, 3, 3, 2, 8]


def run(job, items, processes: int = 3) -> int:  # type: ignore[no-untyped-def]
    sizes: list[int] = []
    share_out(job, items, size=lambda item: item[1], processes=processes, done=sizes.append)
    return sum(sizes)


def test_shares_are_even_and_hold_everything_once() -> None:
    shares = deal(list(enumerate(SIZES)), lambda item: item[1], 3)
    assert sorted(item for share in shares for item in share) == list(enumerate(SIZES))
    assert max(sum(size for _, size in share) for share in shares) <= 11
    assert all(share == sorted(share) for share in shares)
    assert deal([], lambda item: 1, 3) == [[]]


@pytest.mark.parametrize("processes", [1, 2, 3, 20])
def test_every_item_is_done_once_by_several_processes(tmp_path: Path, processes: int) -> None:
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    items = list(enumerate(SIZES))
    told = run(lambda item: os.write(log, f"{item[0]} {os.getpid()}\n".encode()), items, processes)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter(number for number, _ in lines) == Counter(str(number) for number in range(len(SIZES)))
    assert len({process for _, process in lines}) == min(processes, len(SIZES))
    assert told == sum(SIZES)


def test_what_a_helper_raises_is_raised_here() -> None:
    here = os.getpid()

    def job(item: tuple[int, int]) -> None:
        if os.getpid() != here:
            raise ScalerError("no room", "make room")

    with pytest.raises(ScalerError, match="no room") as caught:
        run(job, list(enumerate(SIZES)))
    assert caught.value.cure == "make room"


def test_a_killed_helper_is_named_and_the_others_end(tmp_path: Path) -> None:
    here, log = os.getpid(), os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def job(item: tuple[int, int]) -> None:
        if os.getpid() == here:
            return
        os.write(log, f"{os.getpid()}\n".encode())
        if item[1] == max(SIZES):
            while len(set((tmp_path / "log").read_text().split())) < 2:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)

    largest_first = sorted(enumerate(SIZES), key=lambda item: -item[1])
    with pytest.raises(ScalerError, match="signal 9"):
        run(job, [(0, 100), *largest_first])  # the largest item is ours
    processes = (tmp_path / "log").read_text().split()
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


ORPHAN = """
import os, sys, time
from scaler_wizard.weights.sharing import share_out
here = os.getpid()
def job(item):
    if os.getpid() != here:
        print(os.getpid(), flush=True)
    time.sleep(60)
share_out(job, [1, 2], size=lambda item: 1, processes=2, done=lambda size: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_a_helper_dies_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    helper = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{helper}").exists() or " Z" in Path(f"/proc/{helper}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the helper lives on")
