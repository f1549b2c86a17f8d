"""What a person at a terminal sees of a run: a strip that never stands still, sentences, gates that ask."""

from __future__ import annotations

import getpass
import select
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TextIO

import psutil
from rich.console import Console
from rich.table import Table

from scaler_wizard.events import Evaluated, Note, Progress, Step, Telegram
from scaler_wizard.gate import short_rise, vibe
from scaler_wizard.metrics import Measurement
from scaler_wizard.phases import Phase, Plan
from scaler_wizard.strip import Glance, strip
from scaler_wizard.supervisor import Answer, Gate

QUIET_SECONDS = 9.0
"""A log that is no terminal gets a line at least this often."""
ANSWERS: dict[str, Answer] = {"a": "approve", "p": "pause", "r": "rollback", "b": "abort"}
WARNING_SECONDS = 20


class Screen:
    """Shows a run on standard error; made once for a run."""

    def __init__(self, plan: Plan, *, memory_limit: int, out: TextIO = sys.stderr) -> None:
        self._plan, self._limit, self._out = plan, memory_limit, out
        self._live = out.isatty()
        self._console = Console(file=out, highlight=False, width=None if self._live else 100)
        self._glance = Glance()
        self._phase: Phase | None = None
        self._begun = self._told = time.monotonic()
        self._left: float | None = None
        self._heard = time.monotonic()
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
            "tick": self._tick,
        }
        if kind in shown:
            shown[kind](event)

    def say(self, text: str) -> None:
        """One line that stays."""
        self._wipe()
        self._console.print(text, markup=False, soft_wrap=True)

    def _start(self, phase: Phase) -> None:
        self._phase, self._begun, self._left = phase, time.monotonic(), phase.estimate.seconds
        self._glance = Glance(stage=phase.stage, vibe=self._glance.vibe, accuracy=self._glance.accuracy)
        self.say(f"[{phase.stage}] {phase.title}")

    def _progress(self, event: Progress) -> None:
        self._glance.doing = event.doing
        if event.seconds_left is not None:
            self._left = event.seconds_left
            self._heard = time.monotonic()

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

    def _tick(self, pid: int) -> None:
        now = time.monotonic()
        if now - self._told < (0.5 if self._live else QUIET_SECONDS):
            return
        self._told = now
        used = _memory(pid)
        self._glance.memory = None if used is None else (used / 2**30, self._limit / 2**30)
        self._glance.minutes_left = self._minutes_left(now)
        line = strip(self._glance)
        self._out.write(f"\r\x1b[2K{line}" if self._live else f"{line}\n")
        self._out.flush()

    def _minutes_left(self, now: float) -> float | None:
        """Of the whole run: this phase by its own pace, the ones to come by the plan."""
        if self._phase is None or self._left is None:
            return None
        to_come = [p.estimate.seconds for p in self._plan.phases if p.number > self._phase.number]
        if None in to_come:
            return None
        return (max(0.0, self._left - (now - self._heard)) + sum(s for s in to_come if s is not None)) / 60

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
        self._out.write(f"\r\x1b[2K[a]pprove [p]ause [r]ollback a[b]ort? {max(0, left):.0f} s{warning} ")
        self._out.flush()
        if not select.select([sys.stdin], [], [], 0.3)[0]:
            return None
        answer = ANSWERS.get(sys.stdin.readline().strip().lower()[:1])
        return None if answer is None else (answer, getpass.getuser(), "terminal")

    def _evidence(self, gate: Gate) -> None:
        table = Table("evidence", "value", box=None, pad_edge=False)
        for name, value in evidence_rows(gate.evidence):
            table.add_row(name, value)
        self._wipe()
        self._console.print(table)


class Bar:
    """What a verb without a run is doing, on standard error: one line that moves, or a line a tenth in a log."""

    def __init__(self, *, out: TextIO = sys.stderr) -> None:
        self._out, self._live = out, out.isatty()
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


def evidence_rows(evidence: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of a gate, as a person reads them."""
    rows: list[tuple[str, str]] = []
    proof, training, measured = (evidence.get(key) for key in ("proof", "training", "measurement"))
    if proof:
        rows.append(("proof", str(proof["reason"])))
    if training:
        rows.append(
            ("held-out loss", f"{training['before']:.4f} before, {training['grown']['nll']:.4f} after training")
        )
        if training["control"]:
            rows.append(("the base, same tokens", f"{training['control']['nll']:.4f}"))
    if measured:
        found = Measurement.read(measured, "measurement")
        rows.append(
            ("loss on short text", "unknown" if found.short_nll is None else f"{found.short_nll:.4f} nats/token")
        )
        rows += [(f"loss at {b.start}-{b.end}", f"{b.nll:.4f}") for b in found.buckets[-2:]]
        if found.context_gain is not None:
            gain = found.context_gain
            rows.append(("gain over truncation", f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"))
    return rows


def _memory(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return None
