from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scaler_wizard.run import Run
from scaler_wizard.story import Story, tell
from told_runs import make_run, script


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
