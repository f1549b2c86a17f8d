"""What a process tree uses is looked at with all of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scaler_wizard import usage

PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"


@pytest.mark.parametrize("kept", [True, False])
def test_children_of_children_count_wherever_their_list_comes_from(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(usage, "KEPT", Path("/nowhere"))
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    try:
        tree = psutil.Process(parent.pid)
        while not (children := tree.children(recursive=True)):
            time.sleep(0.01)
        assert usage._descendants(parent.pid) == [child.pid for child in children]
        assert parent.pid in usage._descendants(os.getpid())
        assert usage.Meter(parent.pid).ram() > tree.memory_info().rss
    finally:
        for process in (*children, parent):
            process.kill()
        parent.wait()
    assert usage.Meter(parent.pid).ram() == 0
    assert usage._descendants(parent.pid) == []


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_childs_high_water_is_its_own_programs_and_gone_with_it() -> None:
    parents = b"1" * 300 * 2**20
    child = subprocess.Popen([sys.executable, "-c", "some = b'1' * 80 * 2**20; input()"], stdin=subprocess.PIPE)
    patience = time.monotonic() + 20
    while (usage.high_water(child.pid) or 0) < 80 * 2**20:
        assert time.monotonic() < patience
        time.sleep(0.01)
    assert (usage.high_water(child.pid) or 0) < 200 * 2**20 < len(parents)
    child.communicate(b"\n")
    assert usage.high_water(child.pid) is None
