"""The person's commands: each has its effect at most once, and an answer to a gate names its evidence."""

from __future__ import annotations

import getpass
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.journal import Row
from scaler_wizard.phases import Plan
from scaler_wizard.run import Run, in_use, locked
from scaler_wizard.server.wire import Command, Outcome, Preview

STOP_SECONDS = 40.0
"""A worker gets 30 seconds to stop in good order."""
HOW = "cockpit"


def carry_out(run: Run, plan: Plan, command: Command) -> Outcome:
    """Do what is wished, once; the same key again gets the first answer. Raises ScalerError where it cannot be done."""
    if not _first(run, command):
        return _answered(run, command.key)
    try:
        sentence = _VERBS[command.action](run, plan, command)
    except ScalerError as error:
        run.journal.add("commanded", {"key": command.key, "wrong": error.wrong, "cure": error.cure})
        raise
    run.journal.add("commanded", {"key": command.key, "sentence": sentence})
    return Outcome(done=True, sentence=sentence)


def _first(run: Run, command: Command) -> bool:
    with run.journal.transaction():
        if any(row.data["key"] == command.key for row in run.journal.events(kinds=("command",))):
            return False
        run.journal.add("command", {"key": command.key, "action": command.action, "gate": command.gate, "who": who()})
    return True


def _answered(run: Run, key: str) -> Outcome:
    for row in run.journal.events(kinds=("commanded",)):
        if row.data["key"] == key:
            if "wrong" in row.data:
                raise ScalerError(row.data["wrong"], row.data["cure"])
            return Outcome(done=False, sentence=row.data["sentence"])
    return Outcome(done=False, sentence="This is being done.")


def who() -> str:
    """The person at this machine."""
    return getpass.getuser()


# -- gates -----------------------------------------------------------------------------------------------------------


def standing_gate(run: Run, plan: Plan) -> Row | None:
    """The gate that waits, if its phase is still the next one; a rollback leaves later gates behind."""
    gate = run.open_gate()
    if gate is None or gate.data["verdict"]["action"] == "rollback":
        return None
    current = run.current
    following = next((phase for phase in plan.phases if current is None or phase.slug > current), None)
    return gate if following is not None and gate.data["phase"] == following.slug else None


def _decide(run: Run, plan: Plan, command: Command, action: str) -> str:
    gate = standing_gate(run, plan)
    if gate is None:
        raise ScalerError(f"{run.id}: no gate is open", "look at the run again")
    if command.gate is None or command.evidence_hash is None:
        raise ScalerError("the answer names no gate", "answer from the gate's own panel")
    if not run.decide(command.gate, command.evidence_hash, action, who=who(), how=HOW):
        raise ScalerError(f"gate {command.gate} was answered already", "look at the run again")
    return str(gate.data["sentence"])


def _approve(run: Run, plan: Plan, command: Command) -> str:
    sentence = _decide(run, plan, command, "approve")
    if not alive(run):
        spawn(run)
    return f"Approved: {sentence}"


def _pause(run: Run, plan: Plan, command: Command) -> str:
    if not alive(run):
        raise ScalerError(f"{run.id}: is {run.status}, not running", "Resume goes on with it")
    run.journal.set("request", "pause")
    return "Asked to pause; what is done is kept."


def _abort(run: Run, plan: Plan, command: Command) -> str:
    _confirmed(command)
    if command.gate is not None:
        _decide(run, plan, command, "abort")
        return "Aborted at the gate; every checkpoint stays."
    if not alive(run):
        raise ScalerError(f"{run.id}: is {run.status}; there is nothing to abort", "every checkpoint is still there")
    run.journal.set("request", "abort")
    return "Asked to abort this phase; every checkpoint stays."


def _extend(run: Run, plan: Plan, command: Command) -> str:
    run.extend(command.gate or "", who=who())
    return "The gate waits once more as long."


# -- going on and going back -----------------------------------------------------------------------------------------


def _resume(run: Run, plan: Plan, command: Command) -> str:
    if command.gate is not None:  # at the stop of a training: on from its last good step
        _decide(run, plan, command, "continue")
        if not alive(run):
            spawn(run)
        return "Training goes on; the breaker only warns."
    if alive(run):
        raise ScalerError(f"{run.id}: is running already", "nothing is to be done")
    if run.current == plan.phases[-1].slug:
        raise ScalerError(f"{run.id}: is complete", "roll back first, to do a phase again")
    spawn(run)
    return "The run goes on."


def _rollback(run: Run, plan: Plan, command: Command) -> str:
    _confirmed(command)
    target = rollback_target(run, command.to)
    return _with_lock(run, lambda: run.rollback(target, who=who()))


def _undo(run: Run, plan: Plan, command: Command) -> str:
    return _with_lock(run, lambda: run.undo(who=who()))


def _confirmed(command: Command) -> None:
    if not command.confirmed:
        raise ScalerError(f"{command.action} was not confirmed", "confirm it in its dialog")


def _with_lock(run: Run, change: Callable[[], str]) -> str:
    """Stop what is running in good order, then change the pointer."""
    begun, asked = time.monotonic(), False
    while True:
        try:
            with locked(run):
                if asked:
                    run.journal.set("request", "")
                return change()
        except ScalerError:
            if not alive(run) or time.monotonic() - begun > STOP_SECONDS:
                raise
            if not asked:
                asked = True
                run.journal.set("request", "pause")
            time.sleep(0.05)


def rollback_target(run: Run, wanted: str | None) -> str:
    """The checkpoint named, or the one before the current."""
    known = [row.data["slug"] for row in run.committed()]
    current = run.current
    earlier = [slug for slug in known if current is not None and slug < current]
    if wanted is None:
        if not earlier:
            raise ScalerError(f"{run.id}: there is no earlier checkpoint", "the first one is the base itself")
        return str(earlier[-1])
    if wanted not in earlier:
        raise ScalerError(f"{wanted}: not an earlier checkpoint", f"earlier: {', '.join(earlier) or 'none'}")
    return wanted


def preview(run: Run, wanted: str | None) -> Preview:
    """What a rollback would do; nothing is changed by asking."""
    target, current = rollback_target(run, wanted), run.current or ""
    rows = run.committed()
    at = next(row for row in rows if row.data["slug"] == target)
    leaves = tuple(row.data["slug"] for row in rows if target < row.data["slug"] <= current)
    return Preview(to=target, leaves=leaves, running=alive(run), sentence=at.data.get("sentence") or "")


def undo_target(run: Run) -> str | None:
    """Where Undo would return to; None where there is nothing to undo."""
    last = run.last("moved")
    if last is None or last.data["how"] != "rolled_back" or last.data["after"] != run.current:
        return None
    before = str(last.data["before"])
    return before if (run.checkpoints / before).is_dir() else None


# -- processes -------------------------------------------------------------------------------------------------------


def alive(run: Run) -> bool:
    """Whether a process works on the run."""
    return in_use(run.folder)


def spawn(run: Run, *, standing: bool = False) -> None:
    """Go on with the run in a process of its own, which neither this server nor a browser can end by closing."""
    command = [sys.executable, "-m", "scaler_wizard", "resume", run.id, "--runs", str(run.folder.parent)]
    if standing:
        command.append("--approve-within-limits")
    with (run.folder / "cockpit.log").open("ab") as talk:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=talk, stderr=talk, start_new_session=True, cwd=Path.cwd()
        )


_VERBS: dict[str, Callable[[Run, Plan, Command], str]] = {
    "Approve": _approve,
    "Pause": _pause,
    "Abort": _abort,
    "Extend": _extend,
    "Resume": _resume,
    "Rollback": _rollback,
    "Undo": _undo,
}
