"""One phase of a run, from its task file to a staged model: `python -m scaler_wizard.worker task.json`.

Says what it does as JSON lines on standard output (`events.WorkerEvent`); talks to people only on standard error.
Exit codes: 0 staged and measured, 2 refused or failed (the last event says why), 3 interrupted: the same task goes on.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from scaler_wizard.ceiling import hand_back
from scaler_wizard.errors import Full, ScalerError
from scaler_wizard.events import Done, Failed, Note, Progress, Step, WorkerEvent
from scaler_wizard.failpoints import reach
from scaler_wizard.metrics import Measurement
from scaler_wizard.phases import Change, Extend, Grow, Train
from scaler_wizard.record import to_json
from scaler_wizard.room import NoRoom
from scaler_wizard.task import Task
from scaler_wizard.untrusted.folder import stage

if TYPE_CHECKING:
    from scaler_wizard.grow import GrowthOperator

PROMPT_TOKENS = 96
PROMPTS = 4
NATIVE_SHARE = 0.2
"""Part of the baseline in which the base's window is measured."""
TRAINING_SHARE = 0.7
"""Part of a healing phase that is training; the rest measures."""

MERGING_SHARE = 0.7

Emit = Callable[[WorkerEvent], None]


class Interrupted(Exception):
    """Asked to stop; what is on disk is enough to go on."""


class Refused(Exception):
    """The phase's own check said no."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.wrong)
        self.failed = failed


class Lines:
    """Events as JSON lines; progress is thinned to two lines a second."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._started = self._last = time.monotonic()

    def __call__(self, event: WorkerEvent) -> None:
        """Write one event and hand it over at once."""
        reach("worker.saying")
        self._out.write(to_json(event) + "\n")
        self._out.flush()
        reach("worker.said")

    def progress(self, share: float, doing: str) -> None:
        """Say how far the phase is; the time left follows from the pace so far."""
        now = time.monotonic()
        if now - self._last < 0.5 and share < 1:
            return
        self._last = now
        elapsed = now - self._started
        left = elapsed * (1 - share) / share if share > 0.02 else None
        self(Progress(share=min(max(share, 0.0), 1.0), doing=doing, seconds_left=left))

    def training(self, change: Change) -> Emit:
        """Events of a training, each step with the progress of the whole phase."""
        assert isinstance(change, Train)
        arms = 2 if change.control else 1

        def emit(event: WorkerEvent) -> None:
            self(event)
            if isinstance(event, Step):
                before = 0.0 if event.arm == "grown" else 1 / arms
                done = before + event.step / event.steps / arms
                self.progress(TRAINING_SHARE * done, f"training {event.step}/{event.steps}, loss {event.loss:.3f}")

        return emit


def main(arguments: list[str]) -> int:
    """Carry one task out."""
    reach("worker.started")
    task = Task.load(Path(arguments[0]))
    lines = Lines(sys.stdout)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the supervisor decides
    try:
        _prepare(task)
        lines(PHASES[task.phase.change.kind](task, lines))
    except Interrupted:
        return 3
    except Exception as error:  # noqa: BLE001 - the border of the process: every failure becomes an event
        lines(_failed(error))
        return 2
    reach("worker.ending")
    return 0


class _Stop:
    """SIGTERM: training is told and finishes its step first; anything else is left at once."""

    asked = False
    polite = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self.polite:
            raise Interrupted


_stop = _Stop()


def _prepare(task: Task) -> None:
    import torch

    from scaler_wizard.models import quiet, settle_dtype

    torch.set_num_threads(task.threads)
    quiet()
    if task.compute_dtype is not None:
        settle_dtype(*task.compute_dtype)


def _failed(error: Exception) -> Failed:
    if isinstance(error, Refused):
        return error.failed
    if isinstance(error, (NoRoom, Full)):
        return Failed(reason="disk", wrong=error.wrong, cure=error.cure)
    if isinstance(error, ScalerError):
        return Failed(reason="input", wrong=error.wrong, cure=error.cure)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failed(
            reason="memory",
            wrong="the phase needs more memory than there is",
            cure="close other programs or lower heal.window and measure.windows, then run the same command again",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return Failed(
            reason="disk", wrong="the disk is full", cure="make room, then run the same command again: it goes on"
        )
    traceback.print_exception(error, file=sys.stderr)
    return Failed(
        reason="fault",
        wrong=f"{type(error).__name__}: {error}",
        cure="this is a fault of ours: please report it with worker.log from the run folder",
    )


# -- phases ----------------------------------------------------------------------------------------------------------


def baseline(task: Task, lines: Lines) -> Done:
    """P0: stage the base as it is and measure it."""
    from scaler_wizard.models import best_dtype

    stage(task.current, task.staging, link=task.owns(task.current))
    reach("baseline.staged")
    evidence: dict[str, Any] = {"compute_dtype": list(best_dtype())}
    start = 0.0
    if task.target_context > task.base.native_context:
        lines.progress(0.0, "how far the model reads")
        evidence["native"], start = _native(task), NATIVE_SHARE
    return Done(measurement=measured(task, lines, start=start), evidence=evidence)


def _native(task: Task) -> dict[str, int]:
    """The window that the ladder starts from, and how much of it is read well; remembered for the next plan."""
    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.evals.window import measure_native
    from scaler_wizard.models import load_model

    base, native = read_architecture(task.base.folder), task.base.native_context
    found = measure_native(base, load_model(task.current), data=task.data, native=native, seed=task.seed)
    return {"claimed": native, "measured": found.measured}


def grow(task: Task, lines: Lines) -> Done:
    """P1: grow, prove that the function is kept (or say how far it is changed), measure."""
    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.grow import grow_program, promise
    from scaler_wizard.prove import prove
    from scaler_wizard.weights import copy_companions, write

    change = task.phase.change
    assert isinstance(change, Grow)
    architecture = read_architecture(task.current)
    operators, evidence = _measured_layers(task, change, lines) if change.cheapest else (change.operators, {})
    lines.progress(0.0, "growing")
    program = grow_program(architecture, operators, seed=task.seed)
    write(program, task.staging, seed=task.seed, processes=task.threads, hash=False)  # sealing the stage hashes it
    copy_companions(task.current, task.staging)
    reach("grow.written")
    lines.progress(0.05, "proving that the function is kept")
    proof = prove(task.current, task.staging, prompts(task), promised=promise(operators), program=program)
    if not proof.passed:
        raise Refused(
            Failed(reason="proof", wrong=f"growth is not exact: {proof.reason}", cure="nothing was kept; see the log")
        )
    reach("grow.proved")
    lines(Note(text=proof.reason))
    done = [operator.model_dump(mode="json") for operator in operators]
    told = {**evidence, "operators": done, "proof": proof.model_dump(mode="json")}
    return Done(measurement=measured(task, lines, start=0.3), evidence=told)


def _measured_layers(task: Task, change: Grow, lines: Lines) -> tuple[tuple[GrowthOperator, ...], dict[str, Any]]:
    """The growth with the layers that cost least to repeat, and what each of them costs."""
    from scaler_wizard.evals.seam import repeat_costs
    from scaler_wizard.models import load_model

    lines.progress(0.0, "measuring which layers cost least to repeat")
    costs = repeat_costs(load_model(task.current, dtype="float32"), prompts(task))
    operators = costs.chosen(change.operators)
    lines(Note(text=costs.sentence(operators)))
    return operators, {"repeating": costs.model_dump(mode="json")}


def extend(task: Task, lines: Lines) -> Done:
    """P2: choose the window's new rotary settings, write them over the same weights and measure."""
    from scaler_wizard.extend import extend as choose

    change = task.phase.change
    assert isinstance(change, Extend)
    share = 0.6 if change.search else 0.02
    config, evidence = choose(task, lambda done, doing: lines.progress(share * done, doing))
    for caution in evidence["window"]["cautions"]:
        lines(Note(text=caution))
    reach("extend.chosen")
    stage(task.current, task.staging, link=task.owns(task.current))
    _replace(task.staging / "config.json", config)
    reach("extend.staged")
    tokenizer_file = task.staging / "tokenizer_config.json"
    if tokenizer_file.exists():
        tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        _replace(tokenizer_file, tokenizer | {"model_max_length": change.length})
    return Done(measurement=measured(task, lines, start=share), evidence=evidence)


def _replace(file: Path, data: Any) -> None:
    """Write a new file: this one is a hard link, and writing through it would change the earlier checkpoint."""
    file.unlink()
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def train(task: Task, lines: Lines) -> Done:
    """P3: train the grown model and its control, then measure what was written."""
    from scaler_wizard.heal import Conduct, heal
    from scaler_wizard.train import Interrupted as Snapshotted
    from scaler_wizard.train import Tripped

    _stop.polite = True
    try:
        evidence = heal(task, Conduct(lines.training(task.phase.change), lambda: _stop.asked))
    except Snapshotted:
        raise Interrupted from None
    except Tripped as tripped:
        cure = "lower heal.learning_rate, or choose other text, and run again"
        raise Refused(Failed(reason="breaker", wrong=tripped.telegram.sentence, cure=cure)) from None
    finally:
        _stop.polite = False
    return Done(measurement=measured(task, lines, start=TRAINING_SHARE), evidence=evidence)


def merge(task: Task, lines: Lines) -> Done:
    """P4: merge the grown model with others, judge it against each of them, measure."""
    from scaler_wizard.fuse import fuse

    evidence = fuse(task, lambda done, doing: lines.progress(MERGING_SHARE * done, doing))
    for words in evidence["merge"]["reconciled"]:
        lines(Note(text=words))
    return Done(measurement=measured(task, lines, start=MERGING_SHARE), evidence=evidence)


def export(task: Task, lines: Lines) -> Done:
    """P4: the stock folder with its model card, and the report."""
    from scaler_wizard.export import write_card
    from scaler_wizard.report import write_report
    from scaler_wizard.story import tell

    stage(task.current, task.staging, link=task.owns(task.current))
    lines.progress(0.2, "writing the report")
    story = tell(task.run_folder)
    write_card(story, task.staging)
    reach("export.card")
    assert task.report is not None
    write_report(story, task.report)
    reach("export.report")
    return Done(evidence={"report": "report/report.md"})


PHASES: dict[str, Callable[[Task, Lines], Done]] = {
    "baseline": baseline,
    "grow": grow,
    "extend": extend,
    "heal": train,
    "merge": merge,
    "export": export,
}


def measured(task: Task, lines: Lines, *, start: float = 0.0) -> Measurement | None:
    """Measure the staged model as the phase says; the first `start` of the phase is already done."""
    from scaler_wizard.data import encode, load_corpus
    from scaler_wizard.evals.measure import measure
    from scaler_wizard.models import load_model, load_tokenizer

    if task.phase.measure is None:
        return None
    reach("measure.begun")
    hand_back()
    tokenizer = load_tokenizer(task.staging)
    held_out = encode(load_corpus(task.data).heldout, tokenizer)
    return measure(
        load_model(task.staging),
        tokenizer,
        held_out=held_out,
        corpus=task.data,
        native=task.base.native_context,
        spec=task.phase.measure,
        progress=lambda share, doing: lines.progress(start + (1 - start) * share, doing),
        baseline=task.baseline,
    )


def prompts(task: Task) -> list[list[int]]:
    """Real text for the proof, from the calibration part."""
    from scaler_wizard.data import encode, load_corpus, windows
    from scaler_wizard.models import load_tokenizer

    length = min(PROMPT_TOKENS, task.base.native_context // 2)
    encoded = encode(load_corpus(task.data).calibration, load_tokenizer(task.current))
    return [[int(token) for token in row] for row in windows(encoded, length, limit=PROMPTS)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
