"""A worker whose training goes well for six steps and is stopped at the tenth; anything else is the tiny worker's.

Its snapshots are the real ones. After the stop it does what was chosen: end at the step that is kept, or go on.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

from scaler_wizard.snapshots import newest_sound, take

STEPS, GOOD, STOPPED, SNAPSHOT_EVERY = 12, 6, 10, 3
TOLD = "Perplexity rises 40% per evaluation; the limit is 15%."


def say(**event: Any) -> None:
    """One event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def weights(step: int) -> bytes:
    """The model after so many steps."""
    return hashlib.shake_128(f"step {step}".encode()).digest(20_000)


def train(task: dict[str, Any], scratch: Path) -> int:
    """Count steps; the last one."""
    chosen, found = task["after_stop"], newest_sound(scratch, "grown")[0]
    step = 0 if found is None else found.step
    last = STEPS if chosen is None or chosen["keep"] is None else chosen["keep"]
    while step < last:
        step += 1
        say(kind="step", step=step, steps=STEPS, loss=2.0, learning_rate=0.1, tokens=step)
        if step % SNAPSHOT_EVERY == 0:
            nll = 3.0 - 0.1 * step if step <= GOOD else 4.0
            say(kind="evaluated", step=step, nll=nll, perplexity=2.0)
            if step <= GOOD:
                take(scratch, "grown", step, lambda stream, at=step: stream.write(weights(at)), best=step)
        if step == STOPPED and chosen is None:
            say(kind="telegram", cause="slope", step=step, value=0.4, limit=0.15, sentence=TOLD)
            say(kind="failed", reason="breaker", wrong=TOLD, cure="lower heal.learning_rate")
            sys.exit(2)
    return step


def main() -> None:
    """One phase."""
    task = json.loads(Path(sys.argv[1]).read_bytes())
    if task["phase"]["change"]["kind"] != "heal":
        runpy.run_path(str(Path(__file__).with_name("tiny_worker.py")))
        return
    step = train(task, Path(task["scratch"]))
    (Path(task["staging"]) / "model.safetensors").write_bytes(weights(step))
    say(kind="done", measurement=None, evidence={})


if __name__ == "__main__":
    main()
