"""Carry a plan out: start a worker for each phase, watch it, judge what it made, ask, commit or go back. No torch."""

from __future__ import annotations

import queue
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from blake3 import blake3

from scaler_wizard.context.ladder import shortened
from scaler_wizard.contract import read_signed
from scaler_wizard.errors import Fault, ScalerError, Waiting
from scaler_wizard.events import (
    Done,
    Evaluated,
    Failed,
    Note,
    Progress,
    Step,
    Telegram,
    Usage,
    WorkerEvent,
    worker_event,
)
from scaler_wizard.executors import local
from scaler_wizard.failpoints import reach
from scaler_wizard.files import verify, write_whole
from scaler_wizard.gate import Change, Verdict, judge, outside, stopped, tokens
from scaler_wizard.gpus import Gpu
from scaler_wizard.grow import promise
from scaler_wizard.hardware import detect
from scaler_wizard.journal import Fenced, Row
from scaler_wizard.metrics import Measurement
from scaler_wizard.pace import Pace
from scaler_wizard.payload import signed_contract
from scaler_wizard.phases import Base, Baseline, Export, Extend, Grow, Phase, Plan, Train
from scaler_wizard.record import from_json, to_json
from scaler_wizard.recovery import recover
from scaler_wizard.room import NoRoom, drop_ballast, full, is_full, keep_ballast, require, told_when_full
from scaler_wizard.run import Run, locked
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.snapshots import Snapshot, newest_sound
from scaler_wizard.task import AfterStop, Task
from scaler_wizard.upkeep import Scrub
from scaler_wizard.usage import Meter, idle_processors

Answer = Literal["approve", "continue", "pause", "abort", "rollback"]
"""continue: only where the breaker stopped a training; it goes on from its last good step, and is only warned."""
POLL_SECONDS = 0.1
GRACE_SECONDS = 15
"""Time that a worker has to end by itself; a rollback waits for it and has 30 seconds for everything."""
GARBLED_CHARACTERS = 500
LEAST_GAPS, MOST_GAPS = 5, 101
USAGE_SECONDS = 1.0


@dataclass(frozen=True)
class Gate:
    """A question to a person, with its evidence."""

    id: str
    phase: Phase
    verdict: Verdict
    evidence: dict[str, Any]
    evidence_hash: str
    deadline: float
    """On the monotonic clock."""


Approver = Callable[[Gate], tuple[Answer, str, str] | None]
"""Asked again and again until it answers (answer, who, how); None is no answer yet."""
Tell = Callable[[str, Any], None]
"""Told what happens: a kind and its event, for the screen."""


class Paused(Waiting):
    """The run stopped in good order and goes on when it is told to."""


class Stopped(ScalerError):
    """A phase was undone: by the breaker, by its gate, or by a person. Everything committed is still there."""


@dataclass(frozen=True)
class Patience:
    """How long a worker may say nothing before it counts as stalled."""

    steps: float = 20
    """In training: this many median steps."""
    least_seconds: float = 120
    """In training: never less than this."""
    otherwise_seconds: float = 3600
    """Outside training, where loading and measuring are quiet."""


@dataclass
class Outcome:
    """How a worker ended."""

    done: Done | None = None
    failed: Failed | None = None
    asked_to: Literal["pause", "abort"] | None = None
    code: int | None = None
    telegram: Telegram | None = None
    progress: Progress | None = None
    vram: int | None = None
    """GPU memory that the worker used when it was last looked at; None without a GPU."""
    looked: float = 0.0
    """When the worker's use of the machine was last looked at, on the monotonic clock."""
    heard: float = field(default_factory=time.monotonic)
    """When the worker last said something, on the monotonic clock."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between the last events while it trains; empty outside training."""


class Supervisor:
    """One run, from its current checkpoint to its end or to a pause."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        *,
        approver: Approver,
        tell: Tell,
        command: Sequence[str] = local.WORKER,
        patience: Patience = Patience(),
    ) -> None:
        self.run, self.plan = run, plan
        self._approver, self._tell, self._command = approver, tell, command
        self._stop: Literal["pause", "abort"] | None = None
        self._pace = Pace(plan.phases)
        self._patience = patience
        self._scrub = Scrub({})
        self._need: int | None = None
        self._memory_limit = memory_limit(run, plan)
        self.contract = read_signed(load_yaml(run.folder / "contract.yaml")).contract
        self._vram_limit = vram_limit(
            detect(run.folder).gpus, min(plan.limits.memory_share, self.contract.memory_share)
        )

    def conduct(self) -> None:
        """Do every phase that is not done; raises Paused where the run waits."""
        with locked(self.run), _signals(self._ask_to_pause):
            try:
                self._begin()
                for phase in self.todo():
                    self._phase(phase)
                self._end("completed")
            except Fenced:  # another process writes this run now
                raise
            except ScalerError as error:
                self._end_on_any_disk(_status(error), error.wrong)
                raise
            except (OSError, sqlite3.OperationalError) as error:
                if not is_full(error):
                    raise
                raise self._no_room() from None
            finally:
                self._scrub.stop()

    def _begin(self) -> None:
        self.run.journal.set("request", "")  # a wish to a process that has ended was not meant for this one
        for words in recover(self.run):
            self._tell("note", Note(text=words))
        reach("conduct.recovered")
        keep_ballast(self.run.folder)
        current = self.run.current
        older = [row for row in self.run.lineage() if row.data["slug"] != current]  # recovery has read the current one
        self._scrub = Scrub({self.run.checkpoints / row.data["slug"]: row.data.get("manifest") for row in older})
        self.run.journal.add("resumed" if current else "started", {"phases": len(self.plan.phases)})
        self.run.set_status("running")
        reach("conduct.running")

    def _end(self, status: str, why: str = "") -> None:
        self.run.set_status(status, why)
        reach("conduct.ended")
        self.run.write_metadata()

    def _end_on_any_disk(self, status: str, why: str) -> None:
        """The end, where the disk may be full: the ballast makes room for the journal to say so.

        A run that is not in use counts as paused even where that could not be written down.
        """
        try:
            with told_when_full(self.run.folder):
                self._end(status, why)
        except NoRoom:
            drop_ballast(self.run.folder)
            with suppress(NoRoom), told_when_full(self.run.folder):
                self._end(status, why)

    def _no_room(self) -> NoRoom:
        """The disk filled up in our own hands."""
        drop_ballast(self.run.folder)
        told = full(self.run.folder, self._need)
        self._end_on_any_disk("paused", told.wrong)
        return told

    def todo(self) -> list[Phase]:
        """Phases after the current checkpoint."""
        current = self.run.current
        return [phase for phase in self.plan.phases if current is None or phase.slug > current]

    def _ask_to_pause(self) -> None:
        self._stop = "pause"

    # -- one phase ---------------------------------------------------------------------------------------------------

    def _phase(self, phase: Phase) -> None:
        if (why := self._left_out(phase)) is not None:
            self._note(phase, why)
            return
        summit = self._summit()
        phase = phase if summit is None else shortened(phase, summit)
        self._need = phase.estimate.disk_bytes
        gate = self._waiting_gate(phase) or self._attempt(phase)
        while not self._settle(gate):
            gate = self._attempt(phase)

    def _attempt(self, phase: Phase) -> Gate:
        require(self.run.folder, self._need or 0, f"phase {phase.slug}")
        self.run.journal.add("phase_started", {"slug": phase.slug, "stage": phase.stage}, phase=phase.slug)
        reach("phase.started")
        self._pace.start(phase)
        self._tell("phase", phase)
        outcome = self._work(phase)
        if outcome.done is not None:
            return self._open_gate(phase, outcome.done)
        if (good := self._last_good(phase, outcome)) is not None:
            return self._open_stop(phase, outcome, good)
        raise self._ended(phase, outcome)

    def _work(self, phase: Phase) -> Outcome:
        file = self.run.folder / "task.json"
        task = self._task(phase, threads=self._threads(phase, file))
        self._clear_staging(phase)
        reach("phase.cleared")
        write_whole(file, to_json(task))
        worker = local.start(file, self.run.folder / "worker.log", threads=task.threads, command=self._command)
        reach("phase.worker-started")
        try:
            outcome = self._watch(phase, worker)
        finally:  # nobody would hear it any more
            worker.kill()
            worker.wait()
        reach("phase.worker-ended")
        self._pace.done()
        return outcome

    def _clear_staging(self, phase: Phase) -> None:
        """An attempt of this very phase is kept, since a worker can go on from it; any other is thrown away."""
        if not self._attempted(phase):
            shutil.rmtree(self.run.staging, ignore_errors=True)
            shutil.rmtree(self.run.scratch, ignore_errors=True)
        for folder in (self.run.staging, self.run.scratch):
            folder.mkdir(exist_ok=True)
        write_whole(self.run.folder / "staging-of", phase.slug)

    def _task(self, phase: Phase, *, threads: int) -> Task:
        current = self.run.current
        return Task(
            run_id=self.run.id,
            trace_id=self.run.journal.get("uuid") or "",
            phase=phase,
            base=self._base(),
            current=self.run.checkpoints / current if current else self.plan.base.folder,
            staging=self.run.staging,
            scratch=self.run.scratch,
            report=self.run.scratch / "report" if isinstance(phase.change, Export) else None,
            run_folder=self.run.folder,
            data=self.plan.data,
            target_context=self._summit() or self.plan.context,
            baseline=self.measurement(self.plan.phases[0].slug),
            grown_by=self.plan.grown_by(current, self.run.evidence()),
            breaker=self.plan.breaker,
            after_stop=self._after_stop(phase),
            memory_limit_bytes=self._memory_limit,
            threads=threads,
            compute_dtype=self._compute_dtype(),
            seed=self.plan.seed,
        )

    def _base(self) -> Base:
        """As the first phase staged and measured it: what a person does to the folder that it came from is theirs."""
        first = self.plan.phases[0]
        staged = self.run.checkpoints / first.slug
        kept = isinstance(first.change, Baseline) and staged.is_dir()
        return self.plan.base.model_copy(update={"folder": staged}) if kept else self.plan.base

    def _compute_dtype(self) -> tuple[str, str] | None:
        """As the first phase found it, so that every phase's figures compare."""
        first = next(iter(self.run.committed()), None)
        found = None if first is None else first.data["evidence"].get("compute_dtype")
        return None if found is None else (found[0], found[1])

    def _threads(self, phase: Phase, task: Path) -> int:
        """As wished, or as an interrupted attempt of this phase had (bits depend on it), or what is idle."""
        if self.plan.limits.threads:
            return self.plan.limits.threads
        if self._attempted(phase) and task.exists():
            return Task.load(task).threads
        return idle_processors(detect(self.run.folder).cpus)

    def _attempted(self, phase: Phase) -> bool:
        mark = self.run.folder / "staging-of"
        return mark.exists() and mark.read_text(encoding="utf-8") == phase.slug

    def measurement(self, slug: str | None) -> Measurement | None:
        """What was measured on a checkpoint."""
        for row in self.run.committed():
            if row.data["slug"] == slug and row.data.get("measurement"):
                return Measurement.read(row.data["measurement"], str(slug))
        return None

    # -- the ladder --------------------------------------------------------------------------------------------------

    def _left_out(self, phase: Phase) -> str | None:
        """Why this phase is not done; None where it is."""
        change, summit = phase.change, self._summit()
        healing = isinstance(change, Train) and change.when == "needed"
        if summit is not None and (isinstance(change, Extend) or healing):
            return f"{phase.title}: left out, since the ladder ended at {tokens(summit)}"
        if not healing or self._attempted(phase):
            return None
        if reasons := self._outside(phase):
            self._note(phase, f"{phase.title}: needed, since {reasons[0]}")
            return None
        return f"{phase.title}: left out, since the window of {tokens(self._window())} is within every limit without it"

    def _outside(self, phase: Phase) -> list[str]:
        """What of the current checkpoint is outside a limit, as after a training."""
        baseline, now = self.measurement(self.plan.phases[0].slug), self.measurement(self.run.current)
        return list(outside(_change(phase, ()), baseline, now, {}, self.plan.gate))

    def _window(self) -> int:
        """Window of the current checkpoint, in tokens."""
        kept = {row.data["slug"] for row in self.run.lineage()}
        rungs = [
            phase.change.length for phase in self.plan.phases if isinstance(phase.change, Extend) and phase.slug in kept
        ]
        return max(rungs, default=self.plan.base.native_context)

    def _summit(self) -> int | None:
        """The window at which the ladder ended before its last rung; None while it goes on."""
        row = self.run.last("ladder_ended")
        if row is None or row.data["on"] not in {earlier.data["slug"] for earlier in self.run.lineage()}:
            return None  # a rollback to before that point is a wish to climb again
        return int(row.data["window"])

    def _end_ladder(self, gate: Gate) -> None:
        """The rung is not kept: as the plan says, what is outside a limit ends the ladder."""
        window, change = self._window(), gate.phase.change
        assert isinstance(change, Extend)
        why = f"The ladder ends at {tokens(window)}: at {tokens(change.length)} {gate.verdict.reasons[0]}."
        self.run.journal.add(
            "ladder_ended", {"on": self.run.current, "window": window, "why": why}, phase=gate.phase.slug
        )
        self.run.decide(gate.id, gate.evidence_hash, "rollback", who="the plan", how="extend.stop")
        self._tell("note", Note(text=why))
        self._discard()

    def _note(self, phase: Phase, text: str) -> None:
        self.run.journal.add("note", Note(text=text).model_dump(), phase=phase.slug)
        self._tell("note", Note(text=text))

    # -- watching ----------------------------------------------------------------------------------------------------

    def _watch(self, phase: Phase, worker: subprocess.Popen[str]) -> Outcome:
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(worker, lines), daemon=True).start()
        outcome, asked, meter = Outcome(), None, Meter(worker.pid)
        while (line := _next(lines)) is not None:
            if line:
                self._hear(phase, outcome, line)
            self._look(phase, outcome, meter)
            if asked is None and (wish := self._wish(outcome, meter)):
                asked, outcome.asked_to = time.monotonic(), wish
                worker.terminate()
            if asked is not None and time.monotonic() - asked > GRACE_SECONDS:
                worker.kill()
        outcome.code = worker.wait()
        return outcome

    def _hear(self, phase: Phase, outcome: Outcome, line: str) -> None:
        try:
            event = worker_event.validate_python(from_json(line))
        except ValueError:  # a library that prints to standard output, or a line that was torn by a kill
            self.run.journal.add("garbled", {"line": line[:GARBLED_CHARACTERS]}, phase=phase.slug, durable=False)
            return
        reach("phase.heard")
        outcome.gaps = _gaps(outcome, event)
        outcome.heard = time.monotonic()
        if isinstance(event, Done):
            outcome.done = event
        elif isinstance(event, Failed):
            outcome.failed = event
        elif isinstance(event, Telegram):
            outcome.telegram = event
        elif isinstance(event, Progress):
            outcome.progress = event
            self._pace.progress(event)
        if not isinstance(event, (Progress, Done)):
            durable = not isinstance(event, Step)
            self.run.journal.add(event.kind, event.model_dump(mode="python"), phase=phase.slug, durable=durable)
        self._tell(event.kind, event)

    def _look(self, phase: Phase, outcome: Outcome, meter: Meter) -> None:
        """About once a second: what the worker uses, into the journal and onto the screen."""
        now = time.monotonic()
        if now - outcome.looked < USAGE_SECONDS:
            return
        outcome.looked = now
        progress = outcome.progress
        usage = Usage(
            **vars(meter.look()),
            share=None if progress is None else progress.share,
            doing="starting" if progress is None else progress.doing,
            seconds_left=self._pace.seconds_left(),
        )
        outcome.vram = usage.vram_bytes
        self.run.journal.add("usage", usage.model_dump(), phase=phase.slug, durable=False)
        self._tell("usage", usage)
        for slug, wrong in self._scrub.found():
            self.run.journal.add("scrubbed", {"slug": slug, "wrong": wrong})
            if wrong is not None:
                self._tell("note", Note(text=f"{wrong}; a rollback to it will be refused"))

    def _wish(self, outcome: Outcome, meter: Meter) -> Literal["pause", "abort"] | None:
        if self._stop is None:
            self._stop = self._requested()
        told = over(meter.ram(), self._memory_limit) or over(outcome.vram, self._vram_limit, what="GPU memory")
        if self._stop is None and told is not None:
            outcome.telegram = told
            self.run.journal.add("telegram", outcome.telegram.model_dump())
            self._tell("telegram", outcome.telegram)
            return "abort"
        if self._stop is None and (silent := time.monotonic() - outcome.heard) > self._allowed(outcome):
            outcome.telegram = _stall_telegram(silent, self._allowed(outcome))
            self.run.journal.add("telegram", outcome.telegram.model_dump())
            self._tell("telegram", outcome.telegram)
            return "pause"
        return self._stop

    def _allowed(self, outcome: Outcome) -> float:
        """Seconds that the worker may say nothing."""
        if len(outcome.gaps) < LEAST_GAPS:
            return self._patience.otherwise_seconds
        return max(self._patience.least_seconds, self._patience.steps * median(outcome.gaps))

    def _requested(self) -> Literal["pause", "abort"] | None:
        request = self.run.journal.get("request")
        if request in ("pause", "abort"):
            self.run.journal.set("request", "")
            return "pause" if request == "pause" else "abort"
        return None

    def _ended(self, phase: Phase, outcome: Outcome) -> ScalerError:
        """Why the worker did not finish, and what happens to the run."""
        failed = outcome.failed
        if outcome.telegram is not None and outcome.telegram.cause == "stall":
            return Paused(outcome.telegram.sentence, "run the same command again: it goes on from its last snapshot")
        if outcome.telegram is not None and outcome.telegram.hard:
            self._discard()
            return Stopped(outcome.telegram.sentence, "the phase was undone; change the recipe and run it again")
        if failed is not None and failed.reason in ("input", "proof", "breaker"):
            self._discard()
            return Stopped(failed.wrong, failed.cure)
        if outcome.asked_to == "abort":
            self._discard()
            return Stopped(f"{self.run.id}: aborted in {phase.slug}", "everything that was committed is still there")
        if failed is not None and failed.reason == "fault":
            return Fault(failed.wrong, failed.cure)
        if failed is not None:
            return Paused(failed.wrong, failed.cure)
        if outcome.asked_to == "pause":
            return Paused(f"{self.run.id}: paused in {phase.slug}", "run the same command again to go on")
        if outcome.code == -signal.SIGKILL:
            return Paused(
                f"the worker was killed in {phase.slug}, most likely because memory ran out",
                "close other programs or lower limits.memory, then run the same command again: it goes on",
            )
        return Paused(
            f"the worker ended without a word in {phase.slug} (exit code {outcome.code})",
            f"see {self.run.folder / 'worker.log'}, then run the same command again: it goes on",
        )

    def _discard(self) -> None:
        reach("discard.begun")
        shutil.rmtree(self.run.staging, ignore_errors=True)
        reach("discard.staging")
        shutil.rmtree(self.run.scratch, ignore_errors=True)

    # -- after the breaker ---------------------------------------------------------------------------------------------

    def _last_good(self, phase: Phase, outcome: Outcome) -> Snapshot | None:
        """The snapshot on offer where a limit stopped a training; None where there is none, or nothing stopped it."""
        told = outcome.telegram
        if told is None or not told.hard or told.cause == "stall" or not isinstance(phase.change, Train):
            return None
        if (self.run.scratch / "grown.json").exists():  # it is trained; what was stopped is the control
            return None
        return newest_sound(self.run.scratch, "grown")[0]

    def _open_stop(self, phase: Phase, outcome: Outcome, good: Snapshot) -> Gate:
        """A gate without a staged model: what was seen, and what can be kept."""
        assert outcome.telegram is not None
        assert isinstance(phase.change, Train)
        told, steps = outcome.telegram, phase.change.steps
        last = self.run.last("step", phase=phase.slug)
        at = told.step or (0 if last is None else int(last.data["step"]))
        rows = self.run.journal.events(self._begun(), kinds=("evaluated",), phase=phase.slug)
        evidence = {
            "stopped": {
                "cause": told.cause,
                "step": at,
                "steps": steps,
                "value": told.value,
                "limit": told.limit,
                "sentence": told.sentence,
                "evaluations": [[row.data["step"], row.data["nll"]] for row in rows if row.data["arm"] == "grown"],
                "kept": good.step,
                "snapshot": good.file.name,
            }
        }
        return self._gate(phase, stopped(told.sentence, step=at, steps=steps, kept=good.step), evidence)

    def _begun(self) -> int:
        begun = self.run.last("phase_started")
        return 0 if begun is None else begun.seq

    def _after_stop(self, phase: Phase) -> AfterStop | None:
        """What a person chose at the stop of this attempt; the newest gate is another one as soon as it has led on."""
        row = self.run.last("gate")
        if row is None or row.data["phase"] != phase.slug or row.data["on"] != self.run.current:
            return None
        chosen, stop = self.run.decision(row.data["gate"]), row.data["evidence"].get("stopped")
        if stop is None or chosen is None or chosen.data["action"] not in ("approve", "continue"):
            return None
        return AfterStop(keep=stop["kept"] if chosen.data["action"] == "approve" else None)

    # -- gates -------------------------------------------------------------------------------------------------------

    def _waiting_gate(self, phase: Phase) -> Gate | None:
        """A gate of this phase that was open when an earlier process ended; its answer may have come since."""
        row, begun = self.run.last("gate"), self.run.last("phase_started")
        if row is None or row.data["phase"] != phase.slug or row.data.get("on", self.run.current) != self.run.current:
            return None
        committed, decided = self.run.last("committed"), self.run.decision(row.data["gate"])
        if any(later is not None and later.seq > row.seq for later in (begun, committed)):
            return None  # the staged folder belongs to a newer attempt
        if decided is not None and decided.data["action"] in ("abort", "rollback"):
            if self._stopped_since(decided):
                return None  # else the no is carried out to its end, whatever is still staged
        elif not self.run.staging.is_dir() or not self._is_as_shown(row):
            return None
        verdict = Verdict.read(row.data["verdict"], "gate")
        if decided is not None and decided.data["action"] == "pause":
            return self._gate(phase, verdict, row.data["evidence"])
        return Gate(row.data["gate"], phase, verdict, row.data["evidence"], row.data["evidence_hash"], self._deadline())

    def _stopped_since(self, decided: Row) -> bool:
        """Whether a no was carried out to its end; then what was refused may be tried again."""
        rows = self.run.journal.events(decided.seq, kinds=("status",))
        return any(row.data["status"] == "stopped" for row in rows)

    def _is_as_shown(self, row: Row) -> bool:
        """Whether what is staged is, byte for byte, what the gate's evidence was measured on."""
        stop = row.data["evidence"].get("stopped")
        if stop is not None:
            return Snapshot(self.run.scratch / stop["snapshot"], stop["kept"]).sound()
        try:
            verify(self.run.staging, row.data["evidence"]["manifest"], hashes=True)
        except (ScalerError, KeyError):
            self._discard()
            return False
        return True

    def _open_gate(self, phase: Phase, done: Done) -> Gate:
        verdict = judge(
            _change(phase, self._to_come(phase)),
            baseline=self.measurement(self.plan.phases[0].slug),
            before=self.measurement(self.run.current),
            after=done.measurement,
            evidence=done.evidence,
            limits=self.plan.gate,
        )
        if verdict.action == "pass" and (jump := self._jump(phase)) > self.contract.context_jump:
            words = f"the window grows {jump:g}x in one step; the contract allows {self.contract.context_jump:g}x"
            verdict = verdict.model_copy(update={"action": "ask", "reasons": (words,)})
        measurement = done.measurement.model_dump(mode="python") if done.measurement else None
        manifest = self.run.seal_staging()  # so an answer is bound to these very bytes
        reach("gate.sealed")
        return self._gate(phase, verdict, {**done.evidence, "measurement": measurement, "manifest": manifest})

    def _to_come(self, phase: Phase) -> list[Phase]:
        """What follows, as far as it is known now."""
        later = [other for other in self.plan.phases if other.slug > phase.slug]
        return later if self._summit() is None else [other for other in later if self._left_out(other) is None]

    def _jump(self, phase: Phase) -> float:
        """How many times the window that the phase grows from; 1 where it grows none."""
        if not isinstance(phase.change, Extend):
            return 1.0
        changes = [before.change for before in self.plan.phases if before.number < phase.number]
        earlier = [change.length for change in changes if isinstance(change, Extend)]
        return phase.change.length / max(earlier, default=self.plan.base.native_context)

    def _gate(self, phase: Phase, verdict: Verdict, evidence: dict[str, Any]) -> Gate:
        digest = blake3(to_json(evidence).encode()).hexdigest()
        identity = uuid.uuid4().hex[:8]
        self.run.journal.add(
            "gate",
            {
                "gate": identity,
                "phase": phase.slug,
                "on": self.run.current,
                "sentence": verdict.sentence,
                "verdict": verdict.model_dump(mode="python"),
                "evidence": evidence,
                "evidence_hash": digest,
            },
            phase=phase.slug,
        )
        reach("gate.opened")
        return Gate(identity, phase, verdict, evidence, digest, self._deadline())  # its window begins now

    def _deadline(self) -> float:
        return time.monotonic() + self.contract.response_window_sec

    def _settle(self, gate: Gate) -> bool:
        """Whether the phase is over; False: a stopped training is taken up again as the answer says."""
        self._tell("gate", gate)
        if gate.verdict.action == "rollback":
            self._discard()
            raise Stopped(gate.verdict.sentence, "; ".join(gate.verdict.reasons) or "the phase was undone")
        if self._stops(gate):
            self._end_ladder(gate)
            return True
        answer = self._answer(gate)
        reach("gate.answered")
        self._tell("decision", answer)
        if answer == "pause":
            raise Paused(gate.verdict.sentence, "answer with `scaler approve`, or run the same command again")
        if answer in ("approve", "continue"):
            if "stopped" in gate.evidence:
                return False
            self._commit(gate)
            return True
        self._discard()
        word = "aborted" if answer == "abort" else "the phase was undone"
        raise Stopped(f"{self.run.id}: {word} at the gate of {gate.phase.slug}", "earlier checkpoints remain")

    def _stops(self, gate: Gate) -> bool:
        """Whether a limit, not only the contract, speaks against a rung whose plan says that this ends the ladder."""
        change, within = gate.phase.change, self._jump(gate.phase) <= self.contract.context_jump
        return isinstance(change, Extend) and change.stop and gate.verdict.action == "ask" and within

    def _answer(self, gate: Gate) -> Answer:
        while True:
            decided = self.run.decision(gate.id)
            if decided is not None:
                return decided.data["action"]  # type: ignore[no-any-return]
            if (given := self._approver(gate)) is not None:
                action, who, how = given
                self.run.decide(gate.id, gate.evidence_hash, action, who=who, how=how)
            elif self._stop or self._requested() or time.monotonic() > gate.deadline + self._extension(gate):
                return "pause"
            else:
                time.sleep(POLL_SECONDS)

    def _extension(self, gate: Gate) -> float:
        """A person may ask for more time as often as needed (WCAG 2.2.1): the same window again, each time."""
        return self.contract.response_window_sec * len(self.run.extensions(gate.id))

    def _commit(self, gate: Gate) -> None:
        data = {
            "gate": gate.id,
            "sentence": gate.verdict.sentence,
            "stage": gate.phase.stage,
            "measurement": gate.evidence.get("measurement"),
            "evidence": {key: value for key, value in gate.evidence.items() if key not in ("measurement", "manifest")},
        }
        self.run.commit(gate.phase.slug, data, manifest=gate.evidence["manifest"])
        self._tell("committed", gate.phase)


def _change(phase: Phase, to_come: Sequence[Phase]) -> Change:
    return Change(
        phase.change.kind,
        phase.title,
        exact=isinstance(phase.change, Grow) and promise(phase.change.operators) != "no",
        next=to_come[0].title if to_come else None,
        healed_later=any(isinstance(later.change, Train) for later in to_come),
    )


def _pump(worker: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue[str | None]) -> str | None:
    """The next line; an empty text where none came in time; None at the end."""
    try:
        return lines.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return ""


def _status(error: ScalerError) -> str:
    if isinstance(error, Waiting):
        return "paused"
    return "stopped" if isinstance(error, Stopped) else "failed"


def _gaps(outcome: Outcome, event: WorkerEvent) -> list[float]:
    """The last gaps between events of a training; an event of another kind ends it."""
    if isinstance(event, (Step, Evaluated)):
        return [*outcome.gaps, time.monotonic() - outcome.heard][-MOST_GAPS:]
    return outcome.gaps if isinstance(event, (Progress, Telegram)) else []


def _stall_telegram(silent: float, limit: float) -> Telegram:
    words = f"The worker has said nothing for {silent:.0f} s; the limit is {limit:.0f} s."
    return Telegram(cause="stall", step=0, value=silent, limit=limit, sentence=words)


def over(used: int | None, limit: int | None, *, what: str = "Memory") -> Telegram | None:
    """The telegram of a worker that uses more than it may; None where it does not, or where nothing is measured."""
    if used is None or limit is None or used <= limit:
        return None
    words = f"{what} {used / 2**30:.1f} GiB is above the limit of {limit / 2**30:.1f} GiB."
    return Telegram(cause="memory", step=0, value=float(used), limit=float(limit), sentence=words)


def vram_limit(gpus: Sequence[Gpu], share: float) -> int | None:
    """Most bytes of GPU memory, on all GPUs together; None where no GPU has a memory of its own."""
    total = sum(gpu.vram_bytes or 0 for gpu in gpus)
    return int(total * share) if total else None


def memory_limit(run: Run, plan: Plan) -> int:
    """Most bytes that a worker may use: the contract's share of this machine, or less where the recipe says so."""
    contract = signed_contract(run.folder / "contract.yaml").contract
    limit = int(detect(run.folder).ram_bytes * min(plan.limits.memory_share, contract.memory_share))
    return min(limit, plan.limits.memory or limit)


class _signals:
    """While inside: SIGINT and SIGTERM ask for a pause instead of ending the process."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, lambda *_: self._ask())

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
