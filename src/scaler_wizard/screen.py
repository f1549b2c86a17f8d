"""What a person at a terminal sees of a run: a strip that never stands still, sentences, gates that ask."""

from __future__ import annotations

import getpass
import select
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from scaler_wizard.events import Evaluated, Note, Progress, Step, Telegram, Usage
from scaler_wizard.gate import fused_vibe, short_rise, vibe
from scaler_wizard.metrics import Measurement
from scaler_wizard.phases import Phase
from scaler_wizard.strip import Glance, strip
from scaler_wizard.supervisor import Answer, Approver, Gate
from scaler_wizard.view import evidence_rows

QUIET_SECONDS = 9.0
"""A log that is no terminal gets a line at least this often."""
ANSWERS: dict[str, Answer] = {"a": "approve", "p": "pause", "r": "rollback", "b": "abort"}
STOP_ANSWERS: dict[str, Answer] = {**ANSWERS, "c": "continue"}
WARNING_SECONDS = 20


class Screen:
    """Shows a run on standard error; made once for a run."""

    def __init__(self, *, memory_limit: int, out: TextIO = sys.stderr) -> None:
        self._limit, self._out = memory_limit, out
        self._live = out.isatty()
        self._console = Console(file=out, highlight=False, width=None if self._live else 100)
        self._glance = Glance()
        self._begun = self._told = time.monotonic()
        self._baseline: Measurement | None = None

    def tell(self, kind: str, event: Any) -> None:
        """The supervisor's `tell`."""
        shown: dict[str, Callable[[Any], None]] = {
            "phase": self._start,
            "progress": self._progress,
            "step": self._step,
            "evaluated": self._evaluated,
            "note": self._note,
            "telegram": self._telegram,
            "gate": self._gate,
            "decision": self._decision,
            "committed": self._committed,
            "usage": self._usage,
        }
        if kind in shown:
            shown[kind](event)

    def say(self, text: str) -> None:
        """One line that stays."""
        self._wipe()
        self._console.print(text, markup=False, soft_wrap=True)

    def _start(self, phase: Phase) -> None:
        self._begun = time.monotonic()
        self._glance = Glance(stage=phase.stage, vibe=self._glance.vibe, accuracy=self._glance.accuracy)
        self.say(f"[{phase.stage}] {phase.title}")

    def _progress(self, event: Progress) -> None:
        self._glance.doing = event.doing

    def _step(self, event: Step) -> None:
        arm = "" if event.arm == "grown" else " control"
        self._glance.doing = f"step{arm} {event.step}/{event.steps} loss {event.loss:.3f}"

    def _evaluated(self, event: Evaluated) -> None:
        arm = "" if event.arm == "grown" else " (control)"
        self.say(f"     step {event.step}{arm}: loss {event.nll:.4f} on calibration text")

    def _note(self, event: Note) -> None:
        self.say(f"     {event.text}")

    def _telegram(self, event: Telegram) -> None:
        self._glance.status = "STOP" if event.hard else "warn"
        self.say(f"  !  {event.sentence}")

    def _gate(self, gate: Gate) -> None:
        measured = gate.evidence.get("measurement")
        if measured:
            self._remember(Measurement.read(measured, "measurement"))
            self._glance.vibe = fused if (fused := fused_vibe(gate.evidence)) is not None else self._glance.vibe
        self.say(f"  =  {gate.verdict.sentence}")
        for reason in gate.verdict.reasons:
            self.say(f"     - {reason}")

    def _remember(self, measured: Measurement) -> None:
        if self._baseline is None:
            self._baseline = measured
        rise = short_rise(self._baseline, measured)
        self._glance.perplexity_change = rise
        self._glance.vibe = vibe(self._baseline, measured)
        if measured.probe is not None:
            self._glance.accuracy = measured.probe.accuracy.value

    def _decision(self, answer: str) -> None:
        self._glance.gate = None
        self.say(f"     {answer}")

    def _committed(self, phase: Phase) -> None:
        self.say(f"     checkpoint {phase.slug} in {time.monotonic() - self._begun:.0f} s")

    def _usage(self, usage: Usage) -> None:
        now = time.monotonic()
        if not self._live and now - self._told < QUIET_SECONDS:
            return
        self._told = now
        self._glance.memory = (usage.ram_bytes / 2**30, self._limit / 2**30)
        self._glance.minutes_left = None if usage.seconds_left is None else usage.seconds_left / 60
        line = strip(self._glance)
        self._out.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
        self._out.flush()

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        self._wipe()
        self._out.flush()

    def _wipe(self) -> None:
        if self._live:
            self._out.write("\r\x1b[2K")

    # -- gates ---------------------------------------------------------------------------------------------------------

    def ask(self, gate: Gate) -> tuple[Answer, str, str] | None:
        """The supervisor's approver on a terminal: one look at the keyboard; None is no answer yet."""
        left = gate.deadline - time.monotonic()
        if self._glance.gate is None:
            self._glance.gate = datetime.now() + timedelta(seconds=left)
            self._evidence(gate)
        warning = "  (answer soon, or the run pauses)" if left <= WARNING_SECONDS else ""
        known = STOP_ANSWERS if "stopped" in gate.evidence else ANSWERS
        more = " [c]ontinue anyway" if known is STOP_ANSWERS else ""
        self._out.write(f"\r\x1b[2K[a]pprove [p]ause [r]ollback a[b]ort{more}? {max(0, left):.0f} s{warning} ")
        self._out.flush()
        if not select.select([sys.stdin], [], [], 0.3)[0]:
            return None
        answer = known.get(sys.stdin.readline().strip().lower()[:1])
        return None if answer is None else (answer, getpass.getuser(), "terminal")

    def _evidence(self, gate: Gate) -> None:
        table = Table("evidence", "value", box=None, pad_edge=False)
        for name, value in evidence_rows(gate.evidence):
            table.add_row(name, value)
        self._wipe()
        self._console.print(table)


class Bar:
    """What a verb without a run is doing, on standard error: one line that moves, or a line a tenth in a log."""

    def __init__(self, *, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr  # looked up now: it may have been replaced since this file was read
        self._live = self._out.isatty()
        self._shown = ("", -1)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live and self._shown[0]:
            self._out.write("\r\x1b[2K")

    def __call__(self, doing: str, share: float) -> None:
        """Say what is being done, and how much of it is done, from 0 to 1."""
        now = (doing, int(share * (100 if self._live else 10)))
        if now == self._shown:
            return
        self._shown = now
        line = f"{doing} {share:.0%}" if share else f"{doing} ..."
        self._out.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
        self._out.flush()


def approver(screen: Screen, *, standing: bool) -> Approver:
    """Who answers a gate: a standing approval where every limit is kept, else the person at the terminal, else nobody.

    A standing approval never answers where something is outside a limit.
    """

    def answer(gate: Gate) -> tuple[Answer, str, str] | None:
        if standing and gate.verdict.action == "pass":
            return "approve", getpass.getuser(), "standing approval within limits"
        return screen.ask(gate) if sys.stdin.isatty() and sys.stderr.isatty() else None

    return answer
