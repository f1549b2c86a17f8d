"""A supervisor that fails leaves no worker behind."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.hardware import detect
from scaler_wizard.models import resolve
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.run import create
from scaler_wizard.supervisor import Supervisor

TALKS_THEN_SLEEPS = 'import time; print(\'{"kind": "note", "text": "here"}\', flush=True); time.sleep(600)'


def test_a_worker_does_not_outlive_a_supervisor_that_fails_while_its_process_lives(tmp_path: Path) -> None:
    source = resolve("embedded")
    wish = Recipe(model="embedded", parameters="1.1x")
    plan, now = make_plan(wish, source, read_architecture(source.folder), detect(tmp_path)), datetime.now(UTC)
    run = create(
        tmp_path, to_yaml(plan), sign(Contract(), "Ada", now=now), name=plan.name, identity=plan.identity(), now=now
    )

    def broken_screen(kind: str, event: object) -> None:
        if kind == "note":
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        Supervisor(
            run, plan, approver=lambda gate: None, tell=broken_screen, command=(sys.executable, "-c", TALKS_THEN_SLEEPS)
        ).conduct()
    assert not [child for child in psutil.Process().children() if TALKS_THEN_SLEEPS in child.cmdline()]
