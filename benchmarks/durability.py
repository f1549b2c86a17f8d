"""What it costs that nothing is lost: the share of a run's time in its journal, its commits and its snapshots.

    python benchmarks/durability.py

A whole small run on the embedded model with the real worker, a training of 200K tokens in it. The supervisor's share is
the time that it spends in the journal and in sealing and committing, whether a worker runs meanwhile or not; the
worker's is the time that it spends writing snapshots. A longer run has more steps for the same few commits.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

from scaler_wizard import worker
from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.hardware import detect
from scaler_wizard.journal import Journal
from scaler_wizard.models import resolve
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.run import Run, create
from scaler_wizard.supervisor import Supervisor

WISH = {"model": "embedded", "parameters": "1.3x", "context": "256", "heal": {"tokens": "200K"}}
spent: dict[str, float] = defaultdict(float)
inside: list[str] = []


def timed(owner: type[Any], name: str, label: str) -> None:
    """Add up the time in a method; what it calls of the others counts once."""
    real: Callable[..., Any] = getattr(owner, name)

    @wraps(real)
    def measured(*arguments: Any, **named: Any) -> Any:
        if inside:
            return real(*arguments, **named)
        inside.append(label)
        begun = time.perf_counter()
        try:
            return real(*arguments, **named)
        finally:
            spent[label] += time.perf_counter() - begun
            inside.clear()

    setattr(owner, name, measured)


def train_and_time(arguments: list[str]) -> int:
    """The worker, with its snapshots timed; says so on standard error, which goes to worker.log."""
    from scaler_wizard.train import Trainer

    timed(Trainer, "_save", "snapshots")
    code = worker.main(arguments)
    sys.stderr.write(f"snapshots {spent['snapshots']:.4f}\n")
    return code


def main() -> None:
    """Run it and print the shares."""
    for name in ("add", "set", "get", "last", "events"):
        timed(Journal, name, "journal")
    for name in ("commit", "seal_staging", "write_metadata"):
        timed(Run, name, "commits")
    with tempfile.TemporaryDirectory() as scratch:
        source = resolve("embedded")
        made = make_plan(Recipe.read(WISH, "wish"), source, read_architecture(source.folder), detect(Path(scratch)))
        signed, now = sign(Contract(), "benchmark", now=datetime.now(UTC)), datetime.now(UTC)
        run = create(Path(scratch) / "runs", to_yaml(made), signed, name="cost", identity="cost", now=now)
        command = (sys.executable, str(Path(__file__).resolve()), "--worker")
        supervisor = Supervisor(
            run,
            made,
            approver=lambda _: ("approve", "benchmark", "benchmark"),
            tell=lambda *_: None,
            command=command,
        )
        spent.clear()
        begun = time.perf_counter()
        supervisor.conduct()
        wall = time.perf_counter() - begun
        noted = (run.folder / "worker.log").read_text(encoding="utf-8").splitlines()
        spent["snapshots"] = sum(float(line.split()[1]) for line in noted if line.startswith("snapshots "))
        events = len(run.journal.events())
    print(f"run of {wall:.1f} s, {events} events, {len(made.phases)} commits")
    for label in ("journal", "commits", "snapshots"):
        print(f"{label:<10} {spent[label]:7.3f} s  {spent[label] / wall:.2%}")
    print(f"{'all':<10} {sum(spent.values()):7.3f} s  {sum(spent.values()) / wall:.2%}")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        raise SystemExit(train_and_time(sys.argv[2:]))
    main()
