"""What tests share: one thread each, and real runs that are made once for every test that needs one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Two processes test at once, on models too small for threads: these would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest

from commands import RECIPE, scaler
from scaler_wizard.run import Run
from scaler_wizard.story import Story, tell
from told_runs import make_run, script


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one run that is complete; never to be changed by a test."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    answer = scaler(
        *("run", folder / "recipe.yaml", "--runs", folder / "runs", "--sign", "Ada", "--approve-within-limits")
    )
    assert answer.returncode == 0, answer.stderr
    return folder / "runs"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture(scope="session")
def told_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the embedded model, with figures from `told_runs.script`; only to be read."""
    return make_run(tmp_path_factory.mktemp("runs"), script())


@pytest.fixture(scope="session")
def story(told_run: Run) -> Story:
    """What that run tells."""
    return tell(told_run.folder)


@pytest.fixture
def own_run(told_run: Run, tmp_path: Path) -> Run:
    """A copy of that run, to be changed."""
    shutil.copytree(told_run.folder, tmp_path / told_run.id)
    return Run(tmp_path / told_run.id)
