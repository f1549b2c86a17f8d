import sys
from pathlib import Path

import pytest
import torch

from scaler_wizard.ceiling import within
from scaler_wizard.train import is_out_of_memory

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can refuse")


def data_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024


@LINUX
def test_memory_beyond_the_limit_is_refused_inside_and_given_afterwards() -> None:
    with within(data_bytes() + 2**26), pytest.raises(RuntimeError) as caught:
        torch.zeros(2**30, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert len(torch.zeros(2**28, dtype=torch.uint8)) == 2**28


def test_what_fits_is_given() -> None:
    with within(2**45):
        assert len(torch.ones(2**20)) == 2**20
