"""One trial: conduct a run in a child process that a fault may end, then look at what is left."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from scaler_wizard import failpoints, flight_log, supervisor, usage
from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.errors import ScalerError
from scaler_wizard.files import read_manifest, verify
from scaler_wizard.hardware import detect
from scaler_wizard.models import resolve
from scaler_wizard.phases import Plan
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.room import is_full as is_full
from scaler_wizard.run import Run, create
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.supervisor import Gate, Patience, Supervisor

WORKER = (sys.executable, "-S", "-E", str(Path(__file__).with_name("tiny_worker.py")))
NOW = datetime(2026, 1, 2, tzinfo=UTC)
supervisor.idle_processors = partial(usage.idle_processors, seconds=0.01)  # a third of a trial was spent on looking
WORK = ("progress", "step", "evaluated", "done", "gate")
"""What is told only when a run is at work, recovery and the start of a worker behind it."""


@cache
def plan() -> Plan:
    """A real plan of all five kinds of phases, on a base of a few bytes; none of it says what anything weighs."""
    source = resolve("embedded")
    recipe = Recipe.read(
        {"model": "embedded", "parameters": "1.3x", "context": "256", "extend": {"search": False}}, "trial"
    )
    made = make_plan(recipe, source, read_architecture(source.folder), detect(Path("/tmp")))
    phases = tuple(
        p.model_copy(update={"estimate": p.estimate.model_copy(update={"disk_bytes": 100_000})}) for p in made.phases
    )
    return made.model_copy(update={"phases": phases})


def begin(place: Path, change: Callable[[Plan], Plan] = lambda made: made) -> Path:
    """A new run, with a base of its own beside it; its folder."""
    base = place / "base"
    base.mkdir(parents=True, exist_ok=True)
    for name, data in (("model.safetensors", b"base" * 5_000), ("config.json", b"{}"), ("tokenizer.json", b"{}")):
        (base / name).write_bytes(data)
    mine = change(plan().model_copy(update={"base": plan().base.model_copy(update={"folder": base})}))
    signed = sign(Contract(), "Tester", now=NOW)
    run = create(place / "runs", to_yaml(mine), signed, name="trial", identity="trial", now=NOW)
    run.journal.close()
    return run.folder


@dataclass
class Ended:
    """How a child ended."""

    code: int
    """Exit code; negative: the signal."""
    seconds: float
    said: str
    """What it wrote when it failed."""
    heard: list[tuple[float, str]] = field(default_factory=list)
    """What a person was told, in order, each with the seconds since the start."""

    @property
    def acknowledged(self) -> list[str]:
        """Facts that a person was told, in order."""
        return [fact for _, fact in self.heard]

    @property
    def at_work(self) -> float | None:
        """Seconds from the start until the worker said something or a gate was open; None where it came to neither."""
        return next((at for at, fact in self.heard if fact.partition(" ")[0] in WORK), None)

    def at(self, kind: str) -> float:
        """Seconds from the start until this was told for the first time."""
        found = [at for at, fact in self.heard if fact.partition(" ")[0] == kind]
        assert found, f"no {kind} was told"
        return found[0]


@dataclass(frozen=True)
class Fault:
    """What happens to the child."""

    failpoints: str = ""
    after_seconds: float | None = None
    """Killed by the clock."""
    before: Callable[[], None] | None = None
    """Done in the child before it begins: a mutant, a limit."""
    answer: str = "approve"
    window: float | None = None
    """Seconds that a gate waits, where the contract's least is too long for a test."""
    patience: Patience = field(default_factory=Patience)
    command: tuple[str, ...] = WORKER


def conduct(folder: Path, fault: Fault = Fault(), *, acknowledgements: Path | None = None) -> Ended:
    """Conduct the run in a child until it ends or the fault ends it."""
    notes = acknowledgements or folder.parent / f"{folder.name}.acknowledged"
    heard, errors = notes, notes.with_suffix(".errors")
    before = len(_heard(heard))
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _in_child(folder, fault, heard, errors)
    if fault.after_seconds is not None:
        time.sleep(fault.after_seconds)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told = [(at - begun, fact) for at, fact in _heard(heard)[before:]]
    said = errors.read_text(encoding="utf-8") if errors.exists() else ""
    errors.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - begun, said, told)


def _heard(notes: Path) -> list[tuple[float, str]]:
    """What was told so far, each with its moment on the monotonic clock, which all processes share."""
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
    return [(float(at), fact) for at, _, fact in (line.partition(" ") for line in lines)]


def _in_child(folder: Path, fault: Fault, heard: Path, errors: Path) -> None:
    code = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(120)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        failpoints.arm(fault.failpoints)
        if fault.before is not None:
            fault.before()
        code = _carry_out(folder, fault, heard)
    except ScalerError as error:
        code = error.exit_code
        errors.write_text(str(error), encoding="utf-8")
    except BaseException:  # noqa: BLE001 - the parent reports it
        errors.write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


def _carry_out(folder: Path, fault: Fault, heard: Path) -> int:
    from scaler_wizard.recovery import mend, open_sound
    from scaler_wizard.room import told_when_full
    from scaler_wizard.run import locked

    acknowledge = os.open(heard, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    gate = [""]

    def tell(kind: str, event: Any) -> None:
        """A fact is acknowledged with its gate's id, so that doing it again later is not taken for remembering it."""
        if kind == "gate":
            gate[0] = event.id
        words = {"committed": gate[0], "decision": gate[0], "note": getattr(event, "text", "")}.get(kind, "")
        os.write(acknowledge, f"{time.monotonic():.4f} {kind} {words}\n".encode())

    run = open_sound(folder)
    with told_when_full(folder), locked(run):
        for words in mend(run):
            tell("note", type("Note", (), {"text": words}))
    made = Plan.read(load_yaml(folder / "plan.yaml"), "plan.yaml")
    conducting = Supervisor(
        run,
        made,
        approver=lambda gate: _answer(fault.answer, gate),
        tell=tell,
        command=fault.command,
        patience=fault.patience,
    )
    if fault.window is not None:
        conducting.contract = conducting.contract.model_copy(update={"response_window_sec": fault.window})
    conducting.conduct()
    return 0


def _answer(answer: str, gate: Gate) -> Any:
    """As it is wished; "standing" approves only where every limit is kept, "" never answers."""
    if answer == "standing":
        return ("approve", "tester", "standing approval") if gate.verdict.action == "pass" else None
    return (answer, "tester", "test") if answer else None


# -- what must hold ----------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, dict[str, str]]:
    """Hash of every file of every checkpoint."""
    return {
        place.name: {name: entry["blake3"] for name, entry in read_manifest(place).items()}
        for place in sorted((folder / "checkpoints").iterdir())
    }


@cache
def expected(place: Path) -> dict[str, dict[str, str]]:
    """What an uninterrupted run makes."""
    folder = begin(place)
    ended = conduct(folder)
    assert ended.code == 0, ended.said
    return contents(folder)


def check_finished(folder: Path, acknowledged: list[str], like: dict[str, dict[str, str]]) -> None:
    """Nothing that a person was told is lost, everything is whole, and equal to an uninterrupted run."""
    run = Run(folder)
    try:
        rows, _ = run.journal.verify()
        assert rows > 0
        committed = {row.data["slug"]: row for row in run.committed()}
        known = {
            kind: {row.data["gate"] for row in run.journal.events(kinds=(kind,))} for kind in ("committed", "decision")
        }
        for fact in acknowledged:
            kind, _, gate = fact.partition(" ")
            assert kind not in known or gate in known[kind], f"{fact} was acknowledged and is lost"
        for slug, row in committed.items():
            verify(run.checkpoints / slug, row.data["manifest"], hashes=True)
        assert run.status == "completed"
        assert contents(folder) == like
        assert run.current == max(committed)
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "completed"
        assert flight_log.first_fault(folder / flight_log.NAME) is None
        assert flight_log.claimed(folder / flight_log.NAME) == rows
        assert (folder / "report" / "report.md").read_text(encoding="utf-8") == "a report"
        left = [path.name for path in folder.rglob("*") if path.name.endswith((".new", ".link"))]
        assert left == []
    finally:
        run.journal.close()


def finish(folder: Path, acknowledged: list[str], like: dict[str, dict[str, str]]) -> Ended:
    """Resume without a fault: to the end, without a hand; then everything must hold."""
    ended = conduct(folder)
    assert ended.code == 0, ended.said
    check_finished(folder, [*acknowledged, *ended.acknowledged], like)
    return ended


if __name__ == "__main__":  # in a process of its own, whose environment lies
    import pickle
    import select

    import trial

    time.sleep = lambda seconds: select.select([], [], [], seconds)  # type: ignore[assignment]  # libfaketime breaks it
    asked: Any = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own
    sys.stdout.buffer.write(pickle.dumps(trial.conduct(Path(sys.argv[1]), asked)))
