"""Campaigns on real runs by real commands: `scaler run` in processes of their own, torch and the embedded model."""

from __future__ import annotations

import atexit
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import Result

from scaler_wizard.journal import Row
from scaler_wizard.run import Run, in_use, list_runs

TRAINING = """\
model: embedded
parameters: 1.2x
heal: {tokens: 2M, window: 128, learning_rate: 1e-4, control: false}
measure: {windows: 2, needles: 1}
limits: {threads: 1}
"""
PATIENCE_SECONDS = 900
"""On a machine on which ten others compute, a phase takes minutes."""
HEAL = "002-heal"


def command(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """A `scaler` command that goes on while somebody looks at its run."""
    words = [sys.executable, "-m", "scaler_wizard", *map(str, arguments)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet)
    atexit.register(process.kill)  # a trial that fails leaves nobody behind
    return process


def wait_for(process: subprocess.Popen[bytes], what: Callable[[], Row | None]) -> Row:
    """The first thing of this kind that a run writes down."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE_SECONDS:
        if (found := what()) is not None:
            return found
        assert process.poll() is None, f"the command ended with {process.returncode}"
        time.sleep(0.02)
    raise AssertionError("it did not come")


def resume_training(place: Path, *, count: int, seed: int, until: str) -> Result:
    """Kill `scaler` in a training, `scaler resume`: seconds from the start of Python until it is there again.

    `until` is "phase_started", where the run is put right and its worker is called, or "step", where that worker has
    loaded torch, the model and the text, and has made the next training step.
    """
    chance, result = random.Random(seed), Result(f"scaler resume of a killed training, {until.replace('_', ' ')}")
    run, process = _in_training(place)
    for number in range(count):
        time.sleep(chance.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with result.trial(str(number)):
            newest, begun = run.journal.newest().seq, time.monotonic()
            process = command("resume", "--approve-within-limits", "--runs", run.folder.parent)
            wait_for(process, lambda after=newest: _first(run, until, after))
            result.seconds.append(time.monotonic() - begun)
            wait_for(process, lambda after=newest: _first(run, "step", after))
            notes = [row.data["text"] for row in run.journal.events(newest, kinds=("note",))]
            assert any("goes on from step" in text for text in notes), "it began again from the beginning"
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not in_use(run.folder)
    run.journal.close()
    return result


def _in_training(place: Path) -> tuple[Run, subprocess.Popen[bytes]]:
    """A run that has made its first steps, and the command that conducts it."""
    place.mkdir(parents=True, exist_ok=True)
    recipe = place / "recipe.yaml"
    recipe.write_text(TRAINING, encoding="utf-8")
    process = command("run", recipe, "--sign", "Ada", "--approve-within-limits", "--runs", place / "runs")
    while not list_runs(place / "runs"):
        assert process.poll() is None
        time.sleep(0.1)
    run = Run(list_runs(place / "runs")[0])
    wait_for(process, lambda: _first(run, "step", 0))
    return run, process


def _first(run: Run, kind: str, after: int) -> Row | None:
    """The first event of a kind behind a place in the journal."""
    return next(iter(run.journal.events(after, kinds=(kind,))), None)
