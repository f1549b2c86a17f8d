"""What is claimed of the shipped runs holds on the shipped runs; a release without them claims nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from scaler_wizard.experience import SHIPPED, Experience, load

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not SHIPPED.is_file(), reason="this release ships no runs")


@pytest.fixture(scope="module")
def runs() -> tuple[Experience, ...]:
    return load(SHIPPED)


def test_there_are_enough_runs_and_each_was_measured(runs: tuple[Experience, ...]) -> None:
    assert len(runs) >= 24
    assert all(phase.cpu_seconds and phase.peak_bytes for one in runs for phase in one.phases)


def test_memory_and_time_are_estimated_closely_on_a_dozen_runs_and_more(runs: tuple[Experience, ...]) -> None:
    memory = time = 0
    for one in runs:
        peak, expected = (max(getattr(p, key) for p in one.phases) for key in ("peak_bytes", "estimated_bytes"))
        took, planned = (sum(getattr(p, key) for p in one.phases) for key in ("cpu_seconds", "estimated_seconds"))
        memory += abs(expected / peak - 1) <= 0.15
        time += abs(planned / took - 1) <= 0.30
    assert memory >= 12 and time >= 12, (memory, time, len(runs))


@pytest.mark.slow
def test_bands_hold_on_runs_that_were_left_out(runs: tuple[Experience, ...]) -> None:
    pytest.importorskip("sklearn")
    from scaler_wizard.learn import calibrate

    found = calibrate(runs)
    assert min(found.loss_inside, found.seconds_inside, found.bytes_inside) >= 0.7, found


@pytest.mark.slow
def test_the_page_about_advice_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "calibrate_advice.py"), "--check"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
