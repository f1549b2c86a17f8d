import platform
import sys
from pathlib import Path

import pytest

from scaler_wizard.executors.local import start

MEASURE = """
import ctypes, sys, torch
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
told = ctypes.CDLL(None).mallinfo2
told.restype = Info
def multiply(first, last):
    for rows in range(first, last):
        torch.ones(rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 32, dtype=torch.bfloat16)
    return told().uordblks
before = multiply(64, 96)
print(multiply(96, 224) - before)
"""
"""What 128 further shapes leave behind, in bytes."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_a_worker_does_not_keep_something_for_every_shape_that_it_multiplied(tmp_path: Path) -> None:
    worker = start(tmp_path / "none", tmp_path / "log", threads=1, command=(sys.executable, "-c", MEASURE))
    said, _ = worker.communicate(timeout=120)
    assert int(said) < 4 * 2**20
