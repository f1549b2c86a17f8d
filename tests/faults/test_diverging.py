"""A real training that diverges, from the first step on: real commands answer the gate that the breaker opens."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from real_runs import PATIENCE_SECONDS, command, wait_for
from safetensors.numpy import load_file

from commands import scaler
from scaler_wizard.journal import Row
from scaler_wizard.run import Run, list_runs

RECIPE = """\
model: embedded
parameters: 1.2x
heal: {tokens: 50K, window: 64, learning_rate: 1.0, control: false}
measure: {windows: 2, needles: 1}
limits: {threads: 1}
"""
GROWN, HEAL = "001-grow", "002-heal"


def stop_gate(run: Run, after: int) -> Row | None:
    """The gate that the breaker opened behind a place in the journal."""
    gates = run.journal.events(after, kinds=("gate",), phase=HEAL)
    return next((gate for gate in gates if "stopped" in gate.data["evidence"]), None)


def other_gate(run: Run, after: int) -> Row | None:
    """The gate of a training that was not stopped."""
    gates = run.journal.events(after, kinds=("gate",), phase=HEAL)
    return next((gate for gate in gates if "stopped" not in gate.data["evidence"]), None)


def answered(run: Run, process: subprocess.Popen[bytes], *verb: str) -> int:
    """Answer the gate while a command waits at it; how that command ends."""
    said = scaler(*verb, "--runs", run.folder.parent)
    assert said.returncode == 0, said.stderr
    return process.wait(PATIENCE_SECONDS)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_diverging_training_is_stopped_and_each_answer_to_its_gate_is_carried_out(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    runs = tmp_path / "runs"
    assert scaler("plan", tmp_path / "recipe.yaml", "--out", tmp_path / "plan.yaml").returncode == 0
    process = command("run", tmp_path / "plan.yaml", "--sign", "Ada", "--approve-within-limits", "--runs", runs)
    while not list_runs(runs):
        assert process.poll() is None
    run = Run(list_runs(runs)[0])

    gate = wait_for(process, lambda: stop_gate(run, 0))  # standing approval is for what keeps every limit
    stop = gate.data["evidence"]["stopped"]
    assert stop["cause"] in ("slope", "divergence")
    assert stop["evaluations"][0][1] < stop["evaluations"][-1][1]
    assert stop["kept"] == 0, "a step was offered that was worse than none"
    assert "keeps the untrained model" in scaler("status", "--runs", runs).stdout

    assert answered(run, process, "abort") == 2
    assert (run.status, run.current) == ("stopped", GROWN)
    assert not run.scratch.exists()

    seen = run.journal.newest().seq
    process = command("resume", "--approve-within-limits", "--runs", runs)
    wait_for(process, lambda: stop_gate(run, seen))
    seen = run.journal.newest().seq
    assert scaler("approve", "--anyway", "--runs", runs).returncode == 0
    gate = wait_for(process, lambda: other_gate(run, seen))  # trained to its end; what came out is outside a limit
    warned = run.journal.events(seen, kinds=("telegram",))
    assert warned and not any(row.data["hard"] for row in warned)
    assert gate.data["verdict"]["action"] == "ask" and gate.data["evidence"]["training"]["ended_at"] is None
    assert answered(run, process, "abort") == 2

    seen = run.journal.newest().seq
    process = command("resume", "--approve-within-limits", "--runs", runs)
    wait_for(process, lambda: stop_gate(run, seen))
    seen = run.journal.newest().seq
    assert scaler("approve", "--runs", runs).returncode == 0
    gate = wait_for(process, lambda: other_gate(run, seen))
    if gate.data["verdict"]["action"] == "ask":
        assert scaler("approve", "--runs", runs).returncode == 0
    process.wait(PATIENCE_SECONDS)
    grown, kept = (load_file(run.checkpoints / slug / "model.safetensors") for slug in (GROWN, HEAL))
    assert grown.keys() == kept.keys()
    assert all(np.array_equal(grown[name], kept[name]) for name in grown), "the untrained model was on offer"
    run.journal.verify()
