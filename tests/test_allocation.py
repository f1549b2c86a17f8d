import os
import subprocess
import sys

import pytest

from scaler_wizard.executors.local import allocation

FREED = """
import torch
def resident():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
before = resident()
held = [torch.ones(2**20) for _ in range(64)]
most, last = resident(), held[-1]
del held
print(most - before, resident() - before)
"""


def freed(environment: dict[str, str]) -> tuple[int, int]:
    """MiB of 64 tensors of 4 MiB, and what is left of them where all but the last one are freed."""
    said = subprocess.run(
        [sys.executable, "-c", FREED], check=True, capture_output=True, text=True, env=os.environ | environment
    )
    most, left = map(int, said.stdout.split())
    return most, left


@pytest.mark.skipif("GLIBC_TUNABLES" not in allocation(), reason="no huge pages here: freed tensors are kept")
def test_a_workers_freed_tensors_leave_no_holes() -> None:
    most, left = freed(allocation())
    assert most > 240
    assert left < 40
