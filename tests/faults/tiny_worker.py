"""A worker without torch: reads a real task, says real events, writes real files; starts in hundredths of a second.

Its training is a chain of hashes, so that a resumed one can be told from an uninterrupted one by a single byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

STEPS = 12
SNAPSHOT_EVERY = 3
BYTES = 20_000
STEP_SECONDS = float(os.environ.get("TINY_STEP_SECONDS", "0.002"))
stop = {"asked": False}


def say(**event: Any) -> None:
    """One event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def write(file: Path, data: bytes) -> None:
    """Write beside and rename."""
    beside = file.with_name(f".{file.name}.new")
    beside.write_bytes(data)
    beside.replace(file)


def stage(source: Path, target: Path) -> None:
    """Hard links, or copies where the disk is another one."""
    for file in sorted(source.iterdir()):
        if file.name == "manifest.json" or not file.is_file():
            continue
        (target / file.name).unlink(missing_ok=True)
        try:
            os.link(file, target / file.name)
        except OSError:
            write(target / file.name, file.read_bytes())


def weights(seed: bytes) -> bytes:
    """Bytes that follow from `seed`."""
    return hashlib.shake_128(seed).digest(BYTES)


def train(scratch: Path) -> bytes:
    """A chain of hashes over the steps; goes on from its snapshot."""
    snapshot = scratch / "state.json"
    state = json.loads(snapshot.read_bytes()) if snapshot.exists() else {"step": 0, "hash": ""}
    while state["step"] < STEPS:
        select.select([], [], [], STEP_SECONDS)  # libfaketime breaks time.sleep
        state["hash"] = hashlib.sha256(f"{state['hash']}{state['step']}".encode()).hexdigest()
        state["step"] += 1
        say(kind="step", step=state["step"], steps=STEPS, loss=2.0, learning_rate=0.1, tokens=state["step"])
        if state["step"] % SNAPSHOT_EVERY == 0 or stop["asked"]:
            write(snapshot, json.dumps(state).encode())
        if stop["asked"]:
            sys.exit(3)
    return weights(state["hash"].encode())


def main() -> None:
    """One phase."""
    signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    task = json.loads(Path(sys.argv[1]).read_bytes())
    change, staging = task["phase"]["change"], Path(task["staging"])
    say(kind="progress", share=0.1, doing="working")
    stage(Path(task["current"]), staging)
    evidence: dict[str, Any] = {}
    model = staging / "model.safetensors"
    if change["kind"] == "grow":
        write(model, weights(b"grown"))
        evidence = {"proof": {"passed": True, "reason": "equal"}}
    elif change["kind"] == "extend":
        write(staging / "config.json", json.dumps({"window": change["length"]}).encode())
    elif change["kind"] == "heal":
        write(model, train(Path(task["scratch"])))
    elif change["kind"] == "export":
        write(staging / "README.md", b"a model")
        report = Path(task["report"])
        report.mkdir(exist_ok=True)
        write(report / "report.md", b"a report")
    measurement = {"corpus": "none", "native_length": 128, "target_length": 128, "seconds": 0.1, "short_nll": 2.0}
    say(kind="done", measurement=measurement, evidence=evidence)


main()
