"""Kills inside what a person asks for outside a training: roll back, undo, tidy, export, merge, a new run, a repair."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import trial
from campaigns import Result, copy
from trial import Fault, begin, conduct

from scaler_wizard import failpoints, flight_log
from scaler_wizard.contract import Contract, sign
from scaler_wizard.files import MANIFEST, file_hash, verify
from scaler_wizard.plan import to_yaml
from scaler_wizard.recovery import open_sound, recover
from scaler_wizard.run import Run, create, export_to, list_runs, locked
from scaler_wizard.upkeep import leftovers, tidy

FIRST, LAST = "000-baseline", "004-export"


@dataclass(frozen=True)
class Verb:
    """Something that a person asks for."""

    prepare: Callable[[Path], None]
    """Make what it works on, in an empty folder."""
    do: Callable[[Path], Any]
    """Ask for it; asked again after the kill."""
    check: Callable[[Path], None]
    """What must hold afterwards."""


def kill_in(place: Path, verbs: dict[str, Verb]) -> Result:
    """Kill each verb at every point that it reaches, then ask for it again."""
    result = Result("kill in rollback, undo, tidy, export, merge ...")
    for name, verb in verbs.items():
        for point in points(place / name, verb):
            with result.trial(f"{name}, {point}"):
                folder = copy(place / name / "prepared", place / name / point)
                assert _fork(partial(verb.do, folder), f"{point}=kill") == -signal.SIGKILL
                _fork(partial(verb.do, folder))
                _fork(partial(verb.check, folder))
            shutil.rmtree(folder)
    return result


def points(place: Path, verb: Verb) -> list[str]:
    """Every point that a verb reaches; what it works on stays in `place`, as prepared."""
    prepared, trace = place / "prepared", place / "points"
    prepared.mkdir(parents=True)
    _fork(partial(verb.prepare, prepared))
    folder = copy(prepared, place / "traced")
    _fork(partial(verb.do, folder), f"*=trace:{trace}")
    _fork(partial(verb.check, folder))
    return list(dict.fromkeys(trace.read_text(encoding="utf-8").split()))


def _fork(do: Callable[[], Any], failpoint: str = "") -> int:
    """Do it in a child: this process never hashes a large file, since a fork of one that has hangs in its threads."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(300)  # a hang, on a machine however busy
            failpoints.arm(failpoint)
            do()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the parent raises it
            os.write(there, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(99)
    os.close(there)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = os.read(here, 4000).decode()
    os.close(here)
    assert code in (0, -signal.SIGKILL), said or f"it ended with {code}"
    return code


# -- on runs -----------------------------------------------------------------------------------------------------------


@contextmanager
def run_in(folder: Path) -> Iterator[Run]:
    """The run of a folder, put right and held for writing, as any verb begins."""
    run = open_sound(list_runs(folder / "runs")[0])
    with locked(run):
        recover(run)
        yield run


def finished(folder: Path) -> None:
    """A run that is complete."""
    ended = conduct(begin(folder))
    assert ended.code == 0, ended.said


def _move_to(slug: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        with run_in(folder) as run:
            if run.current != slug:
                run.rollback(slug, who="Ada") if slug == FIRST else run.undo(who="Ada")

    return do


def _stands_at(slug: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        run = Run(list_runs(folder / "runs")[0])
        assert run.current == slug
        _sound(run)

    return check


def _sound(run: Run) -> None:
    rows, _ = run.journal.verify()
    assert flight_log.first_fault(run.folder / flight_log.NAME) is None
    assert flight_log.claimed(run.folder / flight_log.NAME) == rows
    for row in run.committed():
        verify(run.checkpoints / row.data["slug"], row.data["manifest"], hashes=True)
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["status"] == run.status
    run.journal.close()


def _rolled_back(folder: Path) -> None:
    finished(folder)
    _move_to(FIRST)(folder)


def _with_leftovers(folder: Path) -> None:
    """A run whose last phases were done five times."""
    finished(folder)
    for _ in range(3):
        with run_in(folder) as run:
            run.rollback("002-extend-256", who="Ada")
        assert conduct(list_runs(folder / "runs")[0]).code == 0


def _tidy(folder: Path) -> None:
    with run_in(folder) as run:
        tidy(run)


def _tidied(folder: Path) -> None:
    run = Run(list_runs(folder / "runs")[0])
    assert leftovers(run) == []
    assert len(list((run.folder / "superseded").iterdir())) == 2, "the last two that verify stay"
    assert len(run.committed()) == 5
    _sound(run)


def _export(folder: Path) -> None:
    with run_in(folder) as run:
        if not (folder / "out").exists():
            export_to(run, folder / "out")


def _exported(folder: Path) -> None:
    run = Run(list_runs(folder / "runs")[0])
    source = run.checkpoints / LAST
    wanted = {file.name: file_hash(file) for file in source.iterdir() if file.name != MANIFEST}
    assert {file.name: file_hash(file) for file in (folder / "out").iterdir()} == wanted
    run.journal.close()


def _create(folder: Path) -> None:
    plan = trial.plan().model_copy(update={"base": trial.plan().base.model_copy(update={"folder": folder / "base"})})
    signed, now = sign(Contract(), "Ada", now=datetime(2026, 1, 2, tzinfo=UTC)), datetime.now(UTC)
    if not list_runs(folder / "runs"):
        create(folder / "runs", to_yaml(plan), signed, name="made", identity="made", now=now).journal.close()


def _created(folder: Path) -> None:
    (run,) = list_runs(folder / "runs")
    assert Run(run).last("created") is not None
    assert (run / "plan.yaml").is_file() and (run / "contract.yaml").is_file()


def _nothing(folder: Path) -> None:
    (folder / "runs").mkdir()


def _waiting(folder: Path) -> None:
    """At the first gate, answered with no."""
    run = Run(begin(folder))
    assert conduct(run.folder, Fault(answer="", window=0.2)).code == 3
    gate = run.last("gate")
    assert gate is not None
    run.decide(gate.data["gate"], gate.data["evidence_hash"], "abort", who="Ada", how="test")
    run.journal.close()


def _carry_out_no(folder: Path) -> None:
    from scaler_wizard.phases import Plan
    from scaler_wizard.safe_yaml import load_yaml
    from scaler_wizard.supervisor import Stopped, Supervisor

    with run_in(folder) as run:
        if run.status == "stopped":
            return
    plan = Plan.read(load_yaml(run.folder / "plan.yaml"), "plan.yaml")
    try:
        Supervisor(run, plan, approver=lambda _: None, tell=lambda *_: None, command=trial.WORKER).conduct()
    except Stopped:
        return
    raise AssertionError("it was not stopped")


def _said_no(folder: Path) -> None:
    run = Run(list_runs(folder / "runs")[0])
    assert (run.status, run.current) == ("stopped", None)
    assert not run.staging.exists() or not any(run.staging.iterdir())
    _sound(run)


def _gone_back(folder: Path) -> None:
    """A finished run that was rolled back by two phases."""
    finished(folder)
    with run_in(folder) as run:
        run.rollback("002-extend-256", who="Ada")


def _go_on(folder: Path) -> None:
    from scaler_wizard.phases import Plan
    from scaler_wizard.safe_yaml import load_yaml
    from scaler_wizard.supervisor import Supervisor

    run = open_sound(list_runs(folder / "runs")[0])
    plan = Plan.read(load_yaml(run.folder / "plan.yaml"), "plan.yaml")
    yes: Any = ("approve", "Ada", "test")
    Supervisor(run, plan, approver=lambda _: yes, tell=lambda *_: None, command=trial.WORKER).conduct()


def _damaged(folder: Path) -> None:
    """A finished run whose journal is cut."""
    finished(folder)
    file = list_runs(folder / "runs")[0] / "run.db"
    os.truncate(file, file.stat().st_size // 2)


def _mend(folder: Path) -> None:
    with run_in(folder):
        pass


RUNS = {
    "rollback": Verb(finished, _move_to(FIRST), _stands_at(FIRST)),
    "undo": Verb(_rolled_back, _move_to(LAST), _stands_at(LAST)),
    "tidy": Verb(_with_leftovers, _tidy, _tidied),
    "export": Verb(finished, _export, _exported),
    "create": Verb(_nothing, _create, _created),
    "abort": Verb(_waiting, _carry_out_no, _said_no),
    "go on after a rollback": Verb(_gone_back, _go_on, _stands_at(LAST)),
    "repair": Verb(_damaged, _mend, _stands_at(LAST)),
}


# -- on models ---------------------------------------------------------------------------------------------------------


def _two_models(folder: Path) -> None:
    """Two models and a merge of them that is there already, to be replaced."""
    from safetensors.numpy import load_file, save_file

    import tiny_models

    tiny_models.make(folder / "model-0")
    shutil.copytree(folder / "model-0", folder / "model-1")
    file = folder / "model-1" / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    models = [{"model": str(folder / f"model-{seed}"), "weight": 1.0} for seed in (0, 1)]
    text = json.dumps({"merge": {"method": "linear", "models": models}})  # JSON is YAML
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    _merge(folder)


def _merge(folder: Path) -> None:
    from scaler_wizard.merging import merge_models

    merge_models(folder / "recipe.yaml", folder / "out", force=True)


def _merged(folder: Path) -> None:
    from scaler_wizard.merging import merge_models

    merge_models(folder / "recipe.yaml", folder / "again")
    names = ("model.safetensors", "config.json", "merge.json")
    assert [file_hash(folder / "out" / name) for name in names] == [
        file_hash(folder / "again" / name) for name in names
    ]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def _embedded(folder: Path) -> None:
    """Nothing is prepared: the embedded model is there."""


def _convert(folder: Path) -> None:
    from scaler_wizard.gguf_writer import write_gguf
    from scaler_wizard.models import EMBEDDED

    if not (folder / "out.gguf").exists():
        write_gguf(EMBEDDED, folder / "out.gguf")


def _converted(folder: Path) -> None:
    from scaler_wizard.untrusted.gguf import check_gguf

    assert check_gguf(folder / "out.gguf").tensors > 0


MODELS = {"merge": Verb(_two_models, _merge, _merged), "gguf": Verb(_embedded, _convert, _converted)}
