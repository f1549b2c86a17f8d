"""Every guarantee of the human contract, each with somebody who tries to break it."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from trial import WORKER, Ended, Fault, begin, conduct, plan

from scaler_wizard import failpoints
from scaler_wizard.contract import Contract, read_signed, sign
from scaler_wizard.errors import ScalerError
from scaler_wizard.gpus import Gpu
from scaler_wizard.journal import Journal
from scaler_wizard.phases import Extend, Plan
from scaler_wizard.plan import to_yaml
from scaler_wizard.preview import preview
from scaler_wizard.run import Run, create, in_use, locked, stand_still
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.supervisor import Patience, over, vram_limit

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def script(place: Path, text: str) -> tuple[str, ...]:
    """A worker that does what `text` says."""
    file = place / "worker.py"
    file.write_text(text, encoding="utf-8")
    return (sys.executable, "-S", "-E", str(file))


# -- the signature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms",
    [
        {"memory_share": 0.91},
        {"memory_share": float("nan")},
        {"memory_share": 0},
        {"context_jump": 2.1},
        {"response_window_sec": 29},
        {"response_window_sec": 601},
        {"rollback_sec": 31},
        {"version": "2.0"},
        {"anything": 1},
    ],
)
def test_no_contract_promises_less_than_its_text(terms: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Contract(**terms)


def test_no_run_begins_without_a_valid_signature(tmp_path: Path) -> None:
    good = sign(Contract(), "Ada", now=NOW).model_dump(mode="json")
    bad: list[dict[str, Any]] = [
        {},
        {"contract": good["contract"]},
        good | {"signature": None},
        good | {"contract": good["contract"] | {"version": "0.9"}},
        good | {"contract": good["contract"] | {"memory_share": 0.5}},
        good | {"contract": good["contract"] | {"memory_share": 0.99}},
        good | {"signature": good["signature"] | {"text_hash": "0" * 64}},
        good | {"signature": good["signature"] | {"name": ""}},
    ]
    for contract in bad:
        with pytest.raises(ScalerError):
            read_signed(contract)
    with pytest.raises(ScalerError, match="not signed"):
        sign(Contract(), "  ", now=NOW)
    forged = sign(Contract(), "Ada", now=NOW).model_copy(update={"contract": Contract(memory_share=0.5)})
    with pytest.raises(ScalerError, match="changed after it was signed"):
        create(tmp_path / "runs", to_yaml(plan()), forged, name="x", identity="x", now=NOW)
    assert not list(tmp_path.glob("runs/*"))


def test_limits_that_are_widened_after_signing_are_put_back(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    for name, before, after in (
        ("contract.yaml", "120", "600"),
        ("plan.yaml", "memory_share: 0.9", "memory_share: 0.1"),
    ):
        file = folder / name
        assert before in file.read_text(encoding="utf-8")
        file.write_text(file.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    ended = conduct(folder)
    assert ended.code == 0, ended.said
    assert "again as it was signed" in " ".join(ended.acknowledged)
    assert read_signed(load_yaml(folder / "contract.yaml")).contract.response_window_sec == 120
    assert "memory_share: 0.9" in (folder / "plan.yaml").read_text(encoding="utf-8")


# -- 1: memory ---------------------------------------------------------------------------------------------------------


MEMORY_LIMIT = 100_000_000


def greedy(place: Path, *, seconds: int) -> tuple[Run, Ended]:
    """A run whose worker takes twice the memory that it may, and ends after some seconds if nobody stops it."""
    command = script(place, f"import time\nheld = bytearray(b'x' * 200_000_000)\ntime.sleep({seconds})\n")

    def tighter(made: Plan) -> Plan:
        return made.model_copy(update={"limits": made.limits.model_copy(update={"memory": MEMORY_LIMIT})})

    folder = begin(place, tighter)
    return Run(folder), conduct(folder, Fault(command=command))


def test_a_worker_above_the_memory_limit_is_stopped(tmp_path: Path) -> None:
    run, ended = greedy(tmp_path, seconds=60)
    assert ended.code == 2
    assert "is above the limit" in ended.said
    telegram = run.last("telegram")
    assert telegram is not None
    assert telegram.data["cause"] == "memory"
    assert telegram.data["value"] > MEMORY_LIMIT
    assert ended.seconds < 20


def test_without_its_guard_a_greedy_worker_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler_wizard.supervisor.over", lambda *_, **__: None)
    run, ended = greedy(tmp_path, seconds=2)
    assert (ended.code, run.last("telegram")) == (3, None)
    assert "ended without a word" in ended.said


def test_gpu_memory_has_its_limit_too_and_what_nobody_measured_breaks_none() -> None:
    cards = [Gpu(vendor="nvidia", name="a", vram_bytes=8 * 2**30, basis="NVML") for _ in range(2)]
    limit = vram_limit(cards, 0.9)
    assert limit == int(16 * 2**30 * 0.9)
    told = over(15 * 2**30, limit, what="GPU memory")
    assert told is not None and (told.cause, told.hard) == ("memory", True)
    assert told.sentence == "GPU memory 15.0 GiB is above the limit of 14.4 GiB."
    assert over(14 * 2**30, limit) is None and over(None, limit) is None
    assert vram_limit([], 0.9) is None and over(2**40, None) is None


# -- 2: jumps ----------------------------------------------------------------------------------------------------------


def test_a_jump_above_two_waits_for_a_person_even_with_standing_approval(tmp_path: Path) -> None:
    def further(made: Plan) -> Plan:
        phases = [
            phase.model_copy(update={"change": phase.change.model_copy(update={"length": 1024})})
            if isinstance(phase.change, Extend)
            else phase
            for phase in made.phases
        ]
        return made.model_copy(update={"phases": tuple(phases)})

    for change, waits in ((lambda made: made, False), (further, True)):
        folder = begin(tmp_path / str(waits), change)
        ended = conduct(folder, Fault(answer="standing", window=0.3))
        assert ended.code == (3 if waits else 0), ended.said
        if waits:
            gate = Run(folder).open_gate() or Run(folder).last("gate")
            assert gate is not None
            assert "8x in one step" in gate.data["verdict"]["reasons"][0]


# -- 3 and 4: gates ----------------------------------------------------------------------------------------------------


def test_an_unanswered_gate_pauses_and_a_later_answer_is_carried_out(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    ended = conduct(folder, Fault(answer="", window=0.3))
    assert ended.code == 3
    run = Run(folder)
    assert (run.status, run.current) == ("paused", None)
    gate = run.last("gate")
    assert gate is not None
    assert 0 < len(gate.data["sentence"]) <= 120
    assert run.decision(gate.data["gate"]) is None, "silence was taken for an answer"
    assert run.decide(gate.data["gate"], gate.data["evidence_hash"], "approve", who="Ada", how="later")
    run.journal.close()
    ended = conduct(folder, Fault(answer="", window=0.3))
    assert ended.code == 3
    run = Run(folder)
    assert run.current == "000-baseline"
    starts = [row.data["slug"] for row in run.journal.events(kinds=("phase_started",))]
    assert starts == ["000-baseline", "001-grow"], "the phase was done again although its answer had come"


@pytest.mark.parametrize("point", ["discard.begun", "discard.staging"])
def test_a_no_that_is_cut_short_is_carried_out_and_not_asked_again(point: str, tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder, Fault(f"{point}=kill", answer="abort")).code == -signal.SIGKILL
    assert conduct(folder, Fault(answer="", window=0.3)).code == 2
    run = Run(folder)
    assert (run.status, len(run.journal.events(kinds=("gate",)))) == ("stopped", 1)
    assert conduct(folder, Fault(answer="", window=0.3)).code == 3, "who resumes it after all is asked again"
    assert len(run.journal.events(kinds=("gate",))) == 2


def test_what_was_changed_after_the_gate_is_not_committed(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder, Fault(answer="", window=0.3)).code == 3
    run = Run(folder)
    gate = run.last("gate")
    assert gate is not None
    run.decide(gate.data["gate"], gate.data["evidence_hash"], "approve", who="Ada", how="later")
    (run.staging / "model.safetensors").unlink()
    (run.staging / "model.safetensors").write_bytes(b"something else")
    run.journal.close()
    assert conduct(folder, Fault(answer="", window=0.3)).code == 3
    assert Run(folder).current is None, "other bytes were committed than the approved ones"


# -- 5 and 6: checkpoints and rollback ---------------------------------------------------------------------------------


def test_every_phase_is_a_checkpoint_and_any_of_them_can_be_gone_back_to(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder).code == 0
    run = Run(folder)
    slugs = [row.data["slug"] for row in run.committed()]
    assert slugs == [phase.slug for phase in plan().phases]
    for slug in reversed(slugs[:-1]):
        seen = preview(run, slug)
        assert [work.phase for work in seen.leaves] == [name for name in slugs if slug < name <= (run.current or "")]
        assert run.rollback(slug, who="Ada") == f"Rollback complete; you are now at phase {int(slug[:3])} ({slug[4:]})."
        assert run.current == slug
    assert run.status == json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "paused"
    run.undo(who="Ada")
    assert run.current == slugs[1]
    run.rollback(slugs[0], who="Ada")
    run.journal.close()
    assert conduct(folder).code == 0, "a run goes on from where it was rolled back to"
    assert Run(folder).current == slugs[-1]


@pytest.mark.parametrize("stubborn", [False, pytest.param(True, marks=(pytest.mark.faults, pytest.mark.thorough))])
def test_a_rollback_ends_a_training_first_and_takes_less_than_thirty_seconds(tmp_path: Path, stubborn: bool) -> None:
    command = WORKER
    if stubborn:
        text = Path(WORKER[-1]).read_text(encoding="utf-8")
        text = text.replace("lambda *_: stop.update(asked=True)", "signal.SIG_IGN").replace(
            "STEPS = 12", "STEPS = 10**9"
        )
        command = script(tmp_path, text)
    folder = begin(tmp_path)
    child = os.fork()
    if child == 0:
        os.environ["TINY_STEP_SECONDS"] = "0.2"
        conduct(folder, Fault(command=command))
        os._exit(0)
    run = Run(folder)
    _wait_for(lambda: run.last("step") is not None)
    seen = preview(run, "000-baseline")
    assert seen.leaves[-1].phase == "003-heal"
    assert not seen.leaves[-1].kept
    assert seen.leaves[-1].steps >= 1
    begun = time.monotonic()
    stand_still(run)
    with locked(run):
        run.rollback("000-baseline", who="Ada")
    assert time.monotonic() - begun < (30 if stubborn else 10)
    os.waitpid(child, 0)
    assert run.current == "000-baseline"
    assert not in_use(folder)


def _wait_for(true: Any) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.mark.parametrize(
    "point", ["rollback.verified", "move.recorded", "write.opened", "write.renamed", "move.pointed"]
)
def test_a_rollback_that_is_killed_is_done_or_not_begun(point: str, tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder, Fault("phase.started=kill@4")).code == -signal.SIGKILL
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        failpoints.arm(f"{point}=kill")
        Run(folder).rollback("000-baseline", who="Ada")
        os._exit(0)
    os.waitpid(child, 0)
    decided = Run(folder).last("moved") is not None
    ended = conduct(folder, Fault("conduct.recovered=kill"))
    assert ended.code == -signal.SIGKILL
    assert Run(folder).current == ("000-baseline" if decided else "002-extend-256")


# -- silence, noise and old runs ---------------------------------------------------------------------------------------


def stalled(place: Path) -> tuple[Run, Ended]:
    """A run whose worker says nothing for six seconds in the middle of a training, where one is allowed."""
    text = Path(WORKER[-1]).read_text(encoding="utf-8")
    slow = '        select.select([], [], [], 6 * (state["step"] == 9))\n'
    text = text.replace('        state["step"] += 1\n', f'        state["step"] += 1\n{slow}')
    folder = begin(place)
    ended = conduct(folder, Fault(command=script(place, text), patience=Patience(5, 1.0, 60.0)))
    return Run(folder), ended


@pytest.mark.faults
@pytest.mark.thorough
def test_a_worker_that_stalls_is_paused_with_a_telegram_and_goes_on(tmp_path: Path) -> None:
    run, ended = stalled(tmp_path)
    assert ended.code == 3
    assert "said nothing" in ended.said
    telegram = run.last("telegram")
    assert telegram is not None
    assert telegram.data["cause"] == "stall"
    assert conduct(run.folder).code == 0


@pytest.mark.faults
@pytest.mark.thorough
def test_without_its_guard_a_worker_that_stalls_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler_wizard.supervisor.Supervisor._allowed", lambda *_: math.inf)
    run, ended = stalled(tmp_path)
    assert (ended.code, run.last("telegram")) == (0, None), ended.said


def test_noise_on_the_workers_output_is_noted_and_harms_nothing(tmp_path: Path) -> None:
    lines = ("Loading weights: 100%", '{"kind": "step", "loss": NaN', '{"kind":"done","extra":1}')
    noise = "".join(f"print({line!r})\n    " for line in lines)
    text = Path(WORKER[-1]).read_text(encoding="utf-8").replace('say(kind="progress"', f'{noise}say(kind="progress"')
    folder = begin(tmp_path)
    ended = conduct(folder, Fault(command=script(tmp_path, text)))
    assert ended.code == 0, ended.said
    assert len(Run(folder).journal.events(kinds=("garbled",))) == len(lines) * 5


def test_a_run_of_the_first_journal_format_is_taken_over(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder, Fault("phase.started=kill@3")).code == -signal.SIGKILL
    journal = Journal(folder / "run.db")
    journal.set("schema", "1")
    journal._database.execute("ALTER TABLE events DROP COLUMN chain")
    journal.close()
    (folder / "flight_log.jsonl").unlink()
    ended = conduct(folder)
    assert ended.code == 0, ended.said
    assert Run(folder).journal.verify()[0] > 20
    newer = Journal(folder / "run.db")
    newer.set("schema", "99")
    newer.close()
    with pytest.raises(ScalerError, match="newer release"):
        Run(folder)


# -- whose files ------------------------------------------------------------------------------------------------------


def test_a_base_that_its_owner_edits_in_place_harms_no_checkpoint(tmp_path: Path) -> None:
    from scaler_wizard.untrusted.folder import stage

    base, linked, copied = (tmp_path / name for name in ("base", "linked", "copied"))
    for folder in (base, linked, copied):
        folder.mkdir()
    (base / "model.safetensors").write_bytes(b"the base")
    stage(base, linked, link=True)
    stage(base, copied, link=False)
    with (base / "model.safetensors").open("r+b") as file:
        file.write(b"HIS")
    assert (linked / "model.safetensors").read_bytes() == b"HIS base", "a link is the same file: the guard is needed"
    assert (copied / "model.safetensors").read_bytes() == b"the base"


def test_a_report_is_shown_only_when_the_gate_of_its_phase_has_passed(tmp_path: Path) -> None:
    for answer, shown in (("abort", False), ("approve", True)):
        folder = begin(tmp_path / answer)
        assert conduct(folder, Fault("phase.started=kill@5")).code == -signal.SIGKILL  # the export is next
        conduct(folder, Fault(answer=answer))
        assert (folder / "report" / "report.md").exists() == shown
        assert (Run(folder).current == "004-export") == shown


def test_workers_are_given_the_base_as_it_was_staged(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    assert conduct(folder).code == 0
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    assert task["base"]["folder"] == str(folder / "checkpoints" / "000-baseline")
