"""A worker for tests: stages real models by the real growth programs, and says measurements that were written down.

Run as `python tests/scripted_worker.py task.json`; reads `script.json` beside the run folder: events by phase name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scaler_wizard.architecture import read_architecture
from scaler_wizard.context.rope import extended_config
from scaler_wizard.events import Done
from scaler_wizard.grow import grow_program
from scaler_wizard.phases import Extend, Grow
from scaler_wizard.record import to_json
from scaler_wizard.task import Task
from scaler_wizard.untrusted.folder import stage
from scaler_wizard.weights import copy_companions, write
from scaler_wizard.worker import Lines, export


def main(file: str) -> None:
    """Stage the phase, then say what the script holds for it."""
    task = Task.load(Path(file))
    script = json.loads((task.run_folder.parent / "script.json").read_text(encoding="utf-8"))
    change = task.phase.change
    if change.kind == "export":
        _say(to_json(export(task, Lines(sys.stdout))))
        return
    if isinstance(change, Grow):
        write(grow_program(read_architecture(task.current), change.operators), task.staging)
        copy_companions(task.current, task.staging)
    else:
        stage(task.current, task.staging, link=task.owns(task.current))
    if isinstance(change, Extend):
        config = task.staging / "config.json"
        base = json.loads((task.base.folder / "config.json").read_text())
        longer = extended_config(json.loads(config.read_text()), change.length, base=base)
        config.unlink()
        config.write_text(json.dumps(longer))
    for event in script.get(task.phase.name, [to_json(Done())]):
        _say(event)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
