"""Campaigns against a real worker on a small real model: killed, starved of disk, its snapshots damaged; then again.

A campaign has a process of its own (`apart`), which loads torch and nothing else; workers are forks of it, so that a
trial takes about a second. A fork of a process that has hashed or tokenised hangs in the pools of threads that these
leave behind. What is compared is everything that a worker leaves: the staged files, the evidence, and the last snapshot
of each arm: its weights, its optimiser, its history and its breaker.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - two thirds of a trial, where every fork loads it anew
from campaigns import Result
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401 - likewise

from healing_room import Room
from recorded_run import make_run
from scaler_wizard import (  # noqa: F401 - before the fork
    charts,
    failpoints,
    heal,
    models,
    prove,
    report,
    snapshots,
    train,
    worker,
)
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.grow.depth import IdentityBlocks
from scaler_wizard.metrics import MeasureSpec
from scaler_wizard.phases import Baseline, Export, Extend, Grow
from scaler_wizard.record import to_json
from scaler_wizard.snapshots import ENDING, Snapshot
from scaler_wizard.train import History

torch.set_num_threads(1)


def _no_optimizer() -> None:
    """The optimiser's moments are forgotten."""
    torch.optim.AdamW.load_state_dict = lambda *_: None


def _no_history() -> None:
    """The number of the step is forgotten, so that the same texts are read again."""
    train.History = lambda **_: History()  # type: ignore[misc, assignment]


def _no_watch() -> None:
    """The breaker's memory is forgotten."""
    CircuitBreaker.restore = lambda self, state: None  # type: ignore[method-assign]


def _believe() -> None:
    """Snapshots are believed."""
    Snapshot.sound = lambda self: self.file.is_file()  # type: ignore[method-assign]


def _torn() -> None:
    """Snapshots are believed, and written in place: they have their name before they are whole."""

    def in_place(folder: Path, arm: str, step: int, write: Callable[[IO[bytes]], None], *, best: int) -> Snapshot:
        made = Snapshot(folder / f"{arm}-{step:08d}-{0:064d}{ENDING}", step)
        with io.BufferedWriter(snapshots._Pieces(made.file, "wb")) as stream:
            write(stream)
        snapshots._let_go(made, snapshots.snapshots(folder, arm), best=best)
        return made

    train.take = in_place
    _believe()


MUTANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "no optimiser": _no_optimizer,
    "no history": _no_history,
    "no breaker's memory": _no_watch,
    "no hashes": _believe,
    "torn snapshots": _torn,
}
LOOK = MeasureSpec(
    length=64,
    windows=2,
    bucket=32,
    truncated=False,
    short_length=64,
    short_windows=2,
    needle_lengths=(),
    needles=0,
    digits=4,
    along=False,
    probe=None,
)
KINDS = ("baseline", "grow", "extend", "heal", "export")


@dataclass
class Ended:
    """How a worker ended."""

    code: int
    events: list[dict[str, Any]]

    @property
    def notes(self) -> str:
        """Everything that it said in words."""
        return " ".join(str(event.get("text", "")) + str(event.get("wrong", "")) for event in self.events)


def begin(place: Path, kind: str) -> None:
    """Folders and a task of this kind of phase."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _make(place, kind)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _make(place: Path, kind: str) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    room = Room(place)
    if kind == "heal":
        room.grow(IdentityBlocks(blocks=1))
    task = room.task(steps=6, windows_per_step=2, micro_batch=1, evaluate_every=2, warmup_steps=1)
    task = task.model_copy(update={"compute_dtype": ("float32", "as the first phase of a run finds it once")})
    change: dict[str, Any] = {
        "baseline": Baseline(),
        "grow": Grow(operators=(IdentityBlocks(blocks=1),), parameters=0),
        "extend": Extend(length=256),
        "heal": task.phase.change,
        "export": Export(),
    }
    measure = LOOK if kind == "baseline" else None
    phase = task.phase.model_copy(update={"name": kind, "change": change[kind], "measure": measure})
    task = task.model_copy(update={"phase": phase})
    if kind == "export":
        run = make_run(place / "runs", gate=False)
        current = run.checkpoints / str(run.current)
        task = task.model_copy(update={"run_folder": run.folder, "current": current, "report": task.scratch / "report"})
        run.journal.close()
    (place / "task.json").write_text(to_json(task), encoding="utf-8")


def conduct(place: Path, failpoint: str = "", *, mutant: str = "") -> Ended:
    """Run the worker on the task in `place`, in a fork that a fault may end."""
    said = place / "said.jsonl"
    child = os.fork()
    if child == 0:
        _in_child(place, failpoint, said, mutant)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(code, [json.loads(line) for line in said.read_text(encoding="utf-8").splitlines() if line[-1] == "}"])


def _in_child(place: Path, failpoint: str, said: Path, mutant: str) -> None:
    code = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(120)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        train.SNAPSHOT_SECONDS, train.SNAPSHOT_SHARE = 0.0, 1e9  # after every step, where a user's come every 20 s
        sys.stdout = said.open("w", encoding="utf-8")
        sys.stderr = (place / "talk").open("a", encoding="utf-8")
        MUTANTS[mutant]()
        failpoints.arm(failpoint)
        code = worker.main([str(place / "task.json")])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def left(place: Path, ended: Ended) -> dict[str, Any]:
    """What a finished worker leaves: what is staged, the newest snapshots, evidence without times."""
    done = next(event for event in reversed(ended.events) if event["kind"] == "done")
    files = [file for file in (place / "staging").rglob("*") if file.is_file()]
    staged = {str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    newest = {file.name.split("-")[0]: file for file in sorted((place / "scratch").glob(f"*{ENDING}"))}
    states = {arm: _digest(torch.load(file, weights_only=True)) for arm, file in newest.items()}
    placeless = json.loads(json.dumps(done).replace(str(place), ""))  # each trial has a folder of its own
    return {"staged": staged, "snapshots": states, "done": _timeless(placeless)}


def _digest(state: Any) -> str:
    """Of every number in a snapshot; its file differs by how often a word of it is written out."""
    if isinstance(state, torch.Tensor):
        return hashlib.sha256(state.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(state, dict):
        return hashlib.sha256(repr([(str(key), _digest(one)) for key, one in state.items()]).encode()).hexdigest()
    if isinstance(state, (list, tuple)):
        return hashlib.sha256(repr([_digest(one) for one in state]).encode()).hexdigest()
    return repr(state)


def _timeless(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _timeless(value) for key, value in data.items() if key != "seconds"}
    return [_timeless(value) for value in data] if isinstance(data, list) else data


@cache
def expected(place: Path, kind: str) -> dict[str, Any]:
    """What an undisturbed worker leaves."""
    begin(place / kind, kind)
    ended = conduct(place / kind)
    assert ended.code == 0, ended.notes + (place / kind / "talk").read_text(encoding="utf-8")
    return _relative(left(place / kind, ended), kind)


def _relative(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """A model card names its run, which is another one each time."""
    if kind == "export":
        found["staged"].pop("staging/README.md")
    return found


def points(place: Path, kind: str) -> list[str]:
    """Every point that a worker of this kind reaches."""
    begin(place / "traced" / kind, kind)
    trace = place / "traced" / f"{kind}.points"
    ended = conduct(place / "traced" / kind, f"*=trace:{trace}")
    assert ended.code == 0, ended.notes
    return list(dict.fromkeys(trace.read_text(encoding="utf-8").split()))


def _check(place: Path, kind: str, like: dict[str, Any], ended: Ended) -> None:
    assert ended.code == 0, ended.notes
    found = _relative(left(place, ended), kind)
    for part, wanted in like.items():
        assert found[part] == wanted, f"{part}: {found[part]!s:.200} instead of {wanted!s:.200}"


def kill_at_points(place: Path, *, kinds: Sequence[str] = KINDS, only: Sequence[str] = (), mutant: str = "") -> Result:
    """Kill the worker at every point that it reaches, or at these only, then let it go on."""
    result = Result("kill a worker at every point")
    for kind in kinds:
        like = expected(place / "reference", kind)
        for point in only or points(place, kind):
            folder = place / f"{kind}-{point}"
            begin(folder, kind)
            with result.trial(f"{kind}, {point}"):
                nth = 2 if point.startswith(("snapshot", "train")) else 1  # there is something to go on from
                assert conduct(folder, f"{point}=kill@{nth}", mutant=mutant).code in (-signal.SIGKILL, 0)
                _check(folder, kind, like, conduct(folder, mutant=mutant))
            shutil.rmtree(folder)
    return result


def kill_in_training(place: Path, *, count: int, seed: int, mutant: str = "") -> Result:
    """Kill a training again and again at random points until it is done; then everything is as if nothing had been."""
    chance, result = random.Random(seed), Result("kill in training")
    like = expected(place / "reference", "heal")
    for number in range(count):
        folder = place / f"training-{seed}-{number}"
        begin(folder, "heal")
        with result.trial(str(number)):
            for _ in range(2):
                ended = conduct(folder, f"*=kill@{chance.randint(20, 400)}", mutant=mutant)
                assert ended.code in (-signal.SIGKILL, 0), ended.notes
                if ended.code == 0:
                    break
            else:
                ended = conduct(folder, mutant=mutant)
            _check(folder, "heal", like, ended)
        shutil.rmtree(folder)
    return result


def damage_snapshots(place: Path, *, count: int, seed: int, mutant: str = "") -> Result:
    """Flip a bit of the newest snapshot, or cut it: it is refused, the one before is used, and the end is the same."""
    chance, result = random.Random(seed), Result("damaged training snapshots")
    like = expected(place / "reference", "heal")
    half = place / "half"
    begin(half, "heal")
    assert conduct(half, "train.stepped=kill@5").code == -signal.SIGKILL
    for number in range(count):
        folder = place / f"snapshot-{seed}-{number}"
        shutil.copytree(half, folder)
        _move(folder, half)
        newest = max((folder / "scratch").glob(f"*{ENDING}"))
        raw = bytearray(newest.read_bytes())
        at = chance.randrange(len(raw))
        raw[at] ^= 1 << chance.randrange(8)
        newest.write_bytes(raw[:at] if number % 4 == 3 else raw)
        with result.trial(f"byte {at}"):
            ended = conduct(folder, mutant=mutant)
            _check(folder, "heal", like, ended)
            assert "is damaged and is not used" in ended.notes
        shutil.rmtree(folder)
    return result


def _move(folder: Path, half: Path) -> None:
    task = (folder / "task.json").read_text(encoding="utf-8")
    (folder / "task.json").write_text(task.replace(str(half), str(folder)), encoding="utf-8")


def fill_disk(place: Path, *, points: tuple[str, ...]) -> Result:
    """No space for a snapshot or for the weights: the worker says what it needs, and goes on when there is space."""
    result = Result("no space in a training")
    like = expected(place / "reference", "heal")
    for point in points:
        folder = place / f"space-{point}"
        begin(folder, "heal")
        with result.trial(point):
            ended = conduct(folder, f"{point}=full@2")
            assert (ended.code, ended.events[-1]["reason"]) == (2, "disk"), ended.notes
            assert "bytes are needed" in ended.notes, ended.notes
            _check(folder, "heal", like, conduct(folder))
        shutil.rmtree(folder)
    return result


# -- a process of its own ----------------------------------------------------------------------------------------------


def apart(name: str, place: Path, **settings: Any) -> Any:
    """What the function `name` of this file finds, in a fresh process."""
    place.mkdir(parents=True, exist_ok=True)
    asked = json.dumps({"name": name, "place": str(place), "settings": settings})
    done = subprocess.run([sys.executable, __file__, asked], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return pickle.loads(done.stdout.rpartition(b"RESULT")[2])  # noqa: S301 - our own


def _answer(asked: dict[str, Any]) -> None:
    found = globals()[asked["name"]](Path(asked["place"]), **asked["settings"])
    sys.stdout.buffer.write(b"RESULT" + pickle.dumps(found))


if __name__ == "__main__":
    _answer(json.loads(sys.argv[1]))
