"""A trial before a run: a few steps of the plan's own training by the very worker that a run starts, timed and thrown
away, so that its time and memory are measured on this machine rather than counted (`scaler plan --trial`).

The model is really grown, into a temporary folder. Not covered: phases that only measure keep their counted operations,
at the rate that the trial's own reading had.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.estimate import Tried, short
from scaler_wizard.events import Evaluated, Failed, Step, WorkerEvent, worker_event
from scaler_wizard.executors.local import start
from scaler_wizard.grow import grow_program
from scaler_wizard.phases import Estimate, Grow, Phase, Plan, Train
from scaler_wizard.record import to_json
from scaler_wizard.task import Task
from scaler_wizard.usage import high_water
from scaler_wizard.weights import copy_companions, write

LEAST_BAND = 0.1
"""Nobody foretells a machine better."""
LONG_SECONDS = 600.0
"""A training that is counted to take longer is tried before a run begins: the trial is then a small part of it."""
NOTHING = Estimate(seconds=None, memory_bytes=None, disk_bytes=None, basis="a trial")


def try_out(plan: Plan, *, threads: int, memory_limit: int, told: Callable[[str], None]) -> tuple[Tried, ...]:
    """A few steps of every training of a plan that differs from the others. Raises ScalerError where one fails."""
    found: list[Tried] = []
    with tempfile.TemporaryDirectory(prefix="scaler-trial-") as scratch:
        for number, train in enumerate(_different(plan)):
            few, room = short(train), Path(scratch) / str(number)
            told(f"A trial of {few.steps} steps: {few.windows_per_step} windows of {few.window} tokens each ...")
            task = training_task(plan, few, room, threads=threads, memory_limit=memory_limit)
            found.append(_tried(few, task, room))
    return tuple(found)


def is_long(plan: Plan) -> bool:
    """Whether one of its trainings is worth a trial."""
    return any(isinstance(one.change, Train) and (one.estimate.seconds or 0) > LONG_SECONDS for one in plan.phases)


def _different(plan: Plan) -> Iterator[Train]:
    """Trainings of different cost."""
    seen: set[str] = set()
    for phase in plan.phases:
        if isinstance(phase.change, Train) and (key := to_json(short(phase.change))) not in seen:
            seen.add(key)
            yield phase.change


def training_task(plan: Plan, train: Train, room: Path, *, threads: int, memory_limit: int) -> Task:
    """A training of a plan by itself, in folders of its own under `room`, where the plan's model is grown first."""
    operators = tuple(one for phase in plan.phases if isinstance(phase.change, Grow) for one in phase.change.operators)
    current, staging, scratch = (room / name for name in ("grown", "staging", "scratch"))
    for folder in (current, staging, scratch):
        folder.mkdir(parents=True)
    if operators:
        write(grow_program(read_architecture(plan.base.folder), operators, seed=plan.seed), current, seed=plan.seed)
        copy_companions(plan.base.folder, current)
    return Task(
        run_id="trial",
        trace_id="trial",
        phase=Phase(number=0, stage="P3", name="trial", title="trial", change=train, measure=None, estimate=NOTHING),
        base=plan.base,
        current=current if operators else plan.base.folder,
        staging=staging,
        scratch=scratch,
        report=None,
        run_folder=room,
        data=plan.data,
        target_context=plan.context,
        baseline=None,
        grown_by=operators,
        breaker=plan.breaker.model_copy(update={"action": "warn"}),
        memory_limit_bytes=memory_limit,
        threads=threads,
        seed=plan.seed,
    )


@dataclass
class _Clock:
    """When what was said."""

    train: Train
    begun: float = field(default_factory=time.monotonic)
    paces: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each arm's steps after its first."""
    reading: list[float] = field(default_factory=list)
    """Seconds of the evaluation after each arm's last step."""
    _stepped: float = 0.0

    def hear(self, event: WorkerEvent) -> None:
        now = time.monotonic()
        if isinstance(event, Step) and event.step > 1 and event.tokens_per_second:
            self.paces.setdefault(event.arm, []).append(
                self.train.windows_per_step * self.train.window / event.tokens_per_second
            )
            self._stepped = now
        if isinstance(event, Evaluated) and event.step == self.train.steps:
            self.reading.append(now - self._stepped)

    @property
    def step_seconds(self) -> float:
        return sum(map(mean, self.paces.values()))

    @property
    def band(self) -> float:
        """Twice the standard error of an arm's mean step, as a share of it: of two steps, how far they are apart."""
        several = [paces for paces in self.paces.values() if len(paces) > 1]  # of very short steps not all are told
        errors = [2 * stdev(paces) / math.sqrt(len(paces)) / mean(paces) for paces in several]
        return max([LEAST_BAND, *errors])


def _tried(train: Train, task: Task, room: Path) -> Tried:
    file, clock = room / "task.json", _Clock(train)
    file.write_text(to_json(task), encoding="utf-8")
    worker, largest = start(file, room / "worker.log", threads=task.threads), 0
    assert worker.stdout is not None
    for line in worker.stdout:
        event, largest = worker_event.validate_json(line), max(largest, high_water(worker.pid) or 0)
        if isinstance(event, Failed):
            worker.wait()
            raise ScalerError(f"the trial failed: {event.wrong}", event.cure)
        clock.hear(event)
    _, status, used = os.wait4(worker.pid, 0)
    worker.returncode = os.waitstatus_to_exitcode(status)
    if worker.returncode or not clock.reading:
        raise ScalerError("the trial ended early", "leave --trial out: the plan is then made by counting")
    return Tried(
        train=train,
        seconds=time.monotonic() - clock.begun,
        step_seconds=clock.step_seconds,
        token_seconds=sum(clock.reading) / (len(clock.reading) * train.evaluate_tokens),
        memory_bytes=largest or used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        band=clock.band,
    )
