"""What the cockpit's server shows of runs and does to them, over real HTTP on real run folders."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from websockets.sync.client import connect

from cockpit_server import Served, served
from recorded_run import make_run, open_gate, step_event
from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, text_hash
from scaler_wizard.errors import ScalerError
from scaler_wizard.gate import Verdict
from scaler_wizard.hardware import detect
from scaler_wizard.models import resolve
from scaler_wizard.payload import check, cockpit
from scaler_wizard.plan import load_plan, make_plan
from scaler_wizard.recipe import Recipe, find_recipe, shipped_recipes
from scaler_wizard.recovery import rebuild
from scaler_wizard.run import Run, locked
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.server import planned, uploads
from scaler_wizard.server.begin import Shop, recipe_fields, terms_of, wish_of
from scaler_wizard.server.glance import fusion
from scaler_wizard.server.guard import COOKIE
from scaler_wizard.server.steer import standing_gate
from scaler_wizard.server.uploads import Uploads
from scaler_wizard.server.wire import Said, Start, Wish
from scaler_wizard.supervisor import Gate, Supervisor

TEXT = "In the beginning was the word, and it was measured. " * 60


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "runs")


@pytest.fixture
def server(run: Run) -> Iterator[Served]:
    with served(run.folder.parent) as found:
        yield found


def command(action: str, **more: Any) -> dict[str, Any]:
    return {"key": uuid.uuid4().hex, "action": action, **more}


def post(server: Served, run: Run, body: dict[str, Any]) -> tuple[int, Any]:
    answer = server.ask("POST", f"/api/runs/{run.id}/commands", body)
    return answer.status, answer.json


def test_the_list_says_where_each_run_stands(server: Served, run: Run) -> None:
    (row,) = server.ask("GET", "/api/runs").json
    assert (row["id"], row["at"], row["waits"]) == (run.id, run.current, True)
    assert row["parameters"] == load_plan(run.folder / "plan.yaml").parameters


def test_a_journal_of_an_earlier_release_that_knows_no_stages_is_shown(server: Served, run: Run) -> None:
    run.journal.add("phase_started", {"slug": "001-grow"}, phase="001-grow")
    run.journal.add("usage", {"ram_bytes": 1, "doing": "", "kind": "usage"})
    run.set_status("running")
    with locked(run):
        answer = server.ask("GET", f"/api/runs/{run.id}")
    assert (answer.status, answer.json["cockpit"]["phase"]) == (200, "P1")
    assert answer.json["cockpit"]["resourceUsage"]["cpuUtilization"] is None


def test_a_run_whose_model_is_gone_is_listed_with_the_reason(server: Served, run: Run) -> None:
    plan = run.folder / "plan.yaml"
    plan.write_text(plan.read_text(encoding="utf-8").replace("/embedded", "/gone"), encoding="utf-8")
    (row,) = server.ask("GET", "/api/runs").json
    assert row["trouble"] and row["model"] is None and row["at"] == run.current
    assert server.ask("GET", f"/api/runs/{run.id}").status == 409


def test_the_detail_holds_the_payload_the_gate_and_no_path(server: Served, run: Run) -> None:
    answer = server.ask("GET", f"/api/runs/{run.id}")
    detail = answer.json
    check(detail["cockpit"])
    assert detail["gate"]["evidenceHash"] and detail["gate"]["action"] == "ask"
    assert detail["checkpoints"][-1]["slug"] == run.current
    assert str(run.folder.parent) not in answer.body.decode() and "/src/" not in answer.body.decode()


# -- commands ----------------------------------------------------------------------------------------------------------


def test_an_answer_to_other_evidence_changes_nothing(server: Served, run: Run) -> None:
    gate = server.ask("GET", f"/api/runs/{run.id}").json["gate"]
    for wrong in ({"gate": gate["id"], "evidence_hash": "stale"}, {"gate": "gate-9", "evidence_hash": "x"}, {}):
        fields = {"evidenceHash" if key == "evidence_hash" else key: value for key, value in wrong.items()}
        status, _ = post(server, run, command("Approve", **fields))
        assert status == 409
    assert run.decision(gate["id"]) is None


def test_an_abort_at_a_gate_is_decided_once_and_only_when_confirmed(server: Served, run: Run) -> None:
    gate = server.ask("GET", f"/api/runs/{run.id}").json["gate"]
    bound = {"gate": gate["id"], "evidenceHash": gate["evidenceHash"]}
    assert post(server, run, command("Abort", **bound))[0] == 409
    first = command("Abort", confirmed=True, **bound)
    assert post(server, run, first) == (200, {"done": True, "sentence": "Aborted at the gate; every checkpoint stays."})
    assert post(server, run, first)[1]["done"] is False
    assert post(server, run, command("Abort", confirmed=True, **bound))[0] == 409
    (decision,) = run.journal.events(kinds=("decision",))[-1:]
    assert decision.data["action"] == "abort" and decision.data["how"] == "cockpit"


def test_rollback_and_undo_move_the_pointer_and_nothing_else(server: Served, run: Run) -> None:
    before = run.current
    preview = server.ask("GET", f"/api/runs/{run.id}/preview").json
    assert preview["to"] == "001-grow" and preview["leaves"] == [before] and run.current == before
    assert post(server, run, command("Rollback"))[0] == 409 and run.current == before
    status, outcome = post(server, run, command("Rollback", confirmed=True, to="000-baseline"))
    assert status == 200 and outcome["sentence"].startswith("Rollback complete") and run.current == "000-baseline"
    detail = server.ask("GET", f"/api/runs/{run.id}").json
    assert detail["undo"] == before and detail["gate"] is None
    assert post(server, run, command("Undo"))[0] == 200 and run.current == before
    assert server.ask("GET", f"/api/runs/{run.id}").json["gate"] is not None


def test_the_same_wish_has_its_effect_once(server: Served, run: Run) -> None:
    wish = command("Rollback", confirmed=True)
    outcomes = [post(server, run, wish)[1] for _ in range(3)]
    assert [outcome["done"] for outcome in outcomes] == [True, False, False]
    assert len({outcome["sentence"] for outcome in outcomes}) == 1
    assert len(run.journal.events(kinds=("moved",))) == 1


def test_a_refused_wish_is_refused_again_in_the_same_words(server: Served, run: Run) -> None:
    wish = command("Rollback", confirmed=True, to="009-nowhere")
    assert post(server, run, wish) == post(server, run, wish)
    assert post(server, run, wish)[0] == 409


def test_a_gate_behind_a_rollback_cannot_be_approved(server: Served, run: Run) -> None:
    gate = server.ask("GET", f"/api/runs/{run.id}").json["gate"]
    post(server, run, command("Rollback", confirmed=True))
    stale = command("Approve", gate=gate["id"], evidenceHash=gate["evidenceHash"])
    assert post(server, run, stale)[0] == 409 and run.decision(gate["id"]) is None
    assert standing_gate(run, load_plan(run.folder / "plan.yaml")) is None


def test_a_merge_that_is_done_still_shows_what_went_into_it(tmp_path: Path) -> None:
    models = [{"model": "grown", "weight": 0.7}, {"model": "base", "weight": 0.3}]
    merge = {"parameters": None, "heal": False, "merge": {"method": "linear", "models": models}}
    run = make_run(tmp_path / "runs", committed=4, gate=False, **merge)
    plan = load_plan(run.folder / "plan.yaml")
    assert run.current == "003-merge"
    shown, file = fusion(run, plan), run.checkpoints / "003-merge" / "model.safetensors"
    tensors = {name: 2 * tensor for name, tensor in load_file(file).items()}
    file.unlink()  # its bytes are shared with other checkpoints
    save_file(tensors, file, {"format": "pt"})
    assert fusion(run, plan) == shown and all(cell.change == 0 for cell in shown.cells)


def test_a_run_that_merges_nothing_has_no_fusion_to_show(server: Served, run: Run) -> None:
    answer = server.ask("GET", f"/api/runs/{run.id}/fusion")
    assert answer.status == 409 and "merges nothing" in answer.json["wrong"]


def test_a_gate_can_be_given_more_time(server: Served, run: Run) -> None:
    gate = server.ask("GET", f"/api/runs/{run.id}").json["gate"]["id"]
    assert post(server, run, command("Extend", gate="gate-999"))[0] == 409
    assert post(server, run, command("Extend", gate=gate))[0] == 200
    assert len(run.extensions(gate)) == 1


def test_more_time_moves_the_moment_that_is_shown_and_the_moment_that_counts(run: Run) -> None:
    plan = load_plan(run.folder / "plan.yaml")
    opened = run.open_gate()
    assert opened is not None
    data, verdict = opened.data, Verdict.read(opened.data["verdict"], "gate")
    phase = next(phase for phase in plan.phases if phase.slug == data["phase"])
    gate = Gate(data["gate"], phase, verdict, data["evidence"], data["evidence_hash"], time.monotonic() - 1)

    def answer() -> str:
        replies = iter([None, None, ("approve", "Ada", "test")])
        return Supervisor(run, plan, approver=lambda gate: next(replies), tell=lambda *_: None)._answer(gate)  # type: ignore[arg-type, return-value]

    with locked(run):
        run.set_status("running")
        before = cockpit(run).human_contract.next_decision_point
        assert answer() == "pause"
        run.extend(gate.id, who="Ada")
        after = cockpit(run).human_contract.next_decision_point
        assert before is not None and after is not None and (after - before).total_seconds() == 120
        assert answer() == "approve"


@pytest.mark.parametrize("action", ["Pause", "Abort", "Undo"])
def test_what_cannot_be_done_now_is_refused_with_a_cure(server: Served, run: Run, action: str) -> None:
    status, trouble = post(server, run, command(action, confirmed=True))
    assert status == 409 and trouble["wrong"] and trouble["cure"]


def test_unknown_fields_and_wrong_values_are_refused(server: Served, run: Run) -> None:
    for body in (
        {"action": "Pause"},
        command("Explode"),
        command("Pause", path="/etc"),
        command("Rollback", to="../x"),
    ):
        answer = server.ask("POST", f"/api/runs/{run.id}/commands", body)
        assert answer.status == 422 and answer.json["wrong"] and answer.json["cure"]


def test_a_note_is_kept_with_the_run(server: Served, run: Run) -> None:
    assert server.ask("POST", f"/api/runs/{run.id}/feedback", {"text": "good"}).status == 204
    assert server.ask("POST", f"/api/runs/{run.id}/feedback", {"text": "x" * 501}).status == 422
    assert server.ask("GET", f"/api/runs/{run.id}").json["cockpit"]["userFeedback"] == "good"


# -- the stream --------------------------------------------------------------------------------------------------------


def test_the_stream_resumes_without_a_gap_or_a_duplicate(server: Served, run: Run) -> None:
    path, seen = f"/api/runs/{run.id}/events", []
    for _ in range(6):
        last = {"Last-Event-ID": str(seen[-1])} if seen else {}
        with server.stream(path, last) as events:
            numbered = (int(event["id"]) for event in events if "id" in event)
            seen += [next(numbered) for _ in range(3)]
    assert seen == [row.seq for row in run.journal.events()][: len(seen)]


def test_what_happens_arrives_while_it_happens_also_for_a_second_browser(server: Served, run: Run) -> None:
    path = f"/api/runs/{run.id}/events?after={run.journal.newest().seq}"
    with server.stream(path) as first, server.stream(path) as second:
        assert "id" not in next(first) and "id" not in next(second)
        added = [run.journal.add("step", step_event(number), durable=False) for number in range(1, 6)]
        for events in (first, second):
            numbered = (event for event in events if "id" in event)
            assert [next(numbered)["data"]["seq"] for _ in added] == added


def test_no_event_is_lost_or_doubled_over_many_reconnects(server: Served, run: Run) -> None:
    begin, added, seen = run.journal.newest().seq, list[int](), list[int]()

    def work() -> None:
        for number in range(1, 201):
            added.append(run.journal.add("step", step_event(number, steps=200), durable=False))
            time.sleep(0.005)

    path = f"/api/runs/{run.id}/events"
    working = threading.Thread(target=work)
    with server.stream(path, {"Last-Event-ID": str(begin)}):  # a second browser keeps the feed alive between
        working.start()
        while len(seen) < 200:
            with server.stream(path, {"Last-Event-ID": str(seen[-1] if seen else begin)}) as events:
                numbered = (int(event["id"]) for event in events if "id" in event)
                seen += [next(numbered) for _ in range(min(8, 200 - len(seen)))]
                time.sleep(0.05)
    working.join()
    assert seen == added


def test_a_loss_that_is_not_finite_travels_as_valid_json(server: Served, run: Run) -> None:
    after = run.journal.newest().seq
    run.journal.add("step", step_event(1, loss=float("nan")))
    with server.stream(f"/api/runs/{run.id}/events?after={after}") as events:
        frame = next(event for event in events if "id" in event)
    assert frame["data"]["data"]["loss"] == {"value": None, "nonfinite": "nan"}


def test_a_snapshot_of_the_payload_comes_by_itself_and_fits_its_schema(server: Served, run: Run) -> None:
    with server.stream(f"/api/runs/{run.id}/events?after={2**40}") as events:
        shown = next(event for event in events if event.get("event") == "cockpit")
        check(shown["data"])
        open_gate(run, "003-extend-512", "Ready for more; approve?")
        later = next(event for event in events if event.get("event") == "cockpit")
    assert later["data"]["qualityMetrics"]["canonicalSentence"] == "Ready for more; approve?"


def test_a_server_that_is_ended_lets_its_listeners_go_without_a_word(run: Run, capfd: Any) -> None:
    with served(run.folder.parent) as server, server.stream(f"/api/runs/{run.id}/events") as events:
        next(events)
        begun = time.monotonic()
        server.stop()
        assert list(events) is not None and time.monotonic() - begun < 0.9  # else it was cut off after a second
    assert "Traceback" not in capfd.readouterr().err


def test_more_events_than_are_read_at_once_arrive_all(server: Served, run: Run) -> None:
    last = run.journal.newest().seq
    with server.stream(f"/api/runs/{run.id}/events?after={last}") as events:
        next(events)  # the snapshot: from here on the journal is watched
        with run.journal.transaction():
            for number in range(1200):
                run.journal.add("step", step_event(number), durable=False)
        seen = [int(event["id"]) for event in islice((one for one in events if "id" in one), 1200)]
    assert seen == list(range(last + 1, last + 1201))


def test_the_stream_goes_on_after_a_repair_of_the_journal(server: Served, run: Run) -> None:
    last = run.journal.newest().seq
    with server.stream(f"/api/runs/{run.id}/events?after={last}") as events:
        next(events)  # the snapshot: from here on the journal is watched
        run.reopen(lambda: rebuild(run.folder))
        added = run.journal.add("note", {"text": "It was repaired."})
        assert next(int(event["id"]) for event in events if "id" in event) == added


def test_the_socket_tells_the_same_as_the_stream(server: Served, run: Run) -> None:
    cookie = {"Cookie": f"{COOKIE}={server.session}"}
    address = f"ws://{server.host}/api/runs/{run.id}/socket"
    ours = {"additional_headers": cookie, "origin": server.origin, "max_queue": None}
    with connect(address, **ours) as socket:  # type: ignore[arg-type]
        told = [json.loads(socket.recv(timeout=5)) for _ in range(5)]
    with server.stream(f"/api/runs/{run.id}/events") as events:
        assert [next(events)["data"] for _ in range(5)] == told


# -- the wizard --------------------------------------------------------------------------------------------------------


def shop(tmp_path: Path, models: Path | None = None) -> Shop:
    return Shop(tmp_path / "runs", Uploads(tmp_path / "uploads"), models)


def test_the_plan_is_the_one_that_the_command_line_makes(server: Served, tmp_path: Path) -> None:
    wish = {"model": "embedded", "parameters": "1.5x", "context": "4x"}
    shown = server.ask("POST", "/api/plan", wish).json
    made = shop(tmp_path).plan(Wish.model_validate(wish))
    assert (shown["parameters"], shown["context"]) == (made.parameters, made.context)
    assert [phase["slug"] for phase in shown["phases"]] == [phase.slug for phase in made.phases]
    assert shown["recipe"] == "model: embedded\nparameters: 1.5x\ncontext: 4x\n"
    assert shown["usingBytes"] > 2 * made.parameters


def test_a_wish_in_words_becomes_a_plan_with_reasons_or_one_question(server: Served) -> None:
    said = {"model": "embedded", "text": "I want to read long documents, twice the window, as cheap as possible"}
    found = server.ask("POST", "/api/wish", said).json
    assert found["recipe"] == "budget-context" and found["question"] is None and len(found["reasons"]) > 1
    assert server.ask("POST", "/api/plan", found["wish"]).json["context"] > 128
    asked = server.ask("POST", "/api/wish", {**said, "text": "hello"}).json
    assert asked["recipe"] is None and asked["question"].endswith("?")
    answered = server.ask("POST", "/api/wish", {**said, "text": "hello", "choose": asked["choices"][0]}).json
    assert answered["recipe"] == asked["choices"][0]
    assert server.ask("POST", "/api/plan", answered["wish"]).status == 200


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_no_field_of_a_recipe_is_lost_on_the_way_through_the_wizard(name: str) -> None:
    fields = load_yaml(find_recipe(Path(name)))
    wish = wish_of(Said(text="", model="embedded"), fields)
    ours = Recipe.read(recipe_fields(wish), name)
    assert ours == Recipe.read({"model": "embedded", **fields}, name)


@pytest.mark.parametrize("train", ["new", "lora", "norms", "all"])
def test_whatever_a_recipe_may_train_the_wizard_may_too(train: str) -> None:
    fields = {"model": "embedded", "parameters": "1.5x", "heal": {"train": train}}
    assert recipe_fields(wish_of(Said(text="", model="embedded"), fields))["heal"] == {"train": train}


@pytest.mark.parametrize(
    "more",
    [
        *({"model": "/etc"}, {"data": "/etc"}, {"heal": 3}, {"gate": {"x": 1}}, {"allow": [1]}),
        *({"merge": block} for block in (3, {"models": 4}, {"models": [{"model": "/etc"}]}, {"models": [{}]})),
        {"merge": {"models": [{"model": "grown"}, {"model": "base"}], "search": {"texts": {"a": "/etc/passwd"}}}},
        {"merge": {"models": [{"model": "grown"}, {"model": "base"}], "search": [1]}},
        {"merge": {"models": [{"model": "grown"}], "base": "/etc"}},
    ],
)
def test_what_comes_with_a_wish_is_checked_as_a_recipe_is(server: Served, more: dict[str, Any]) -> None:
    answer = server.ask("POST", "/api/plan", {"model": "embedded", "context": "2x", "more": more})
    assert answer.status == 409, answer


def test_an_impossible_wish_says_what_to_do(server: Served) -> None:
    for wish in ({}, {"context": "1x"}, {"parameters": "9000B"}, {"train": "lora", "context": "x"}):
        answer = server.ask("POST", "/api/plan", {"model": "embedded", **wish})
        assert answer.status == 409 and answer.json["cure"], wish


@pytest.mark.parametrize("model", ["../embedded", "/etc", "tests", "org/name", "embedded/../x", "C:\\x"])
def test_a_model_is_chosen_by_an_id_of_the_list_and_never_by_a_path(server: Served, model: str) -> None:
    answer = server.ask("POST", "/api/plan", {"model": model, "context": "2x"})
    assert answer.status == 409 and "no such model here" in answer.json["wrong"]


def test_a_model_of_the_hub_is_fetched_when_asked_for_and_then_planned_with(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    kept = tmp_path / "hub" / "models--org--small"
    shutil.copytree(resolve("embedded").folder, kept / "snapshots" / "abc", ignore=shutil.ignore_patterns("*.jsonl"))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    wish = {"model": "org/small", "context": "2x"}
    assert server.ask("POST", "/api/plan", wish).json["cure"] == "fetch it from the hub first"
    fetched = server.ask("POST", "/api/models", {"model": "org/small"})
    assert fetched.status == 200 and fetched.json["ready"] and fetched.json["name"] == "small"
    assert server.ask("POST", "/api/plan", wish).json["base"]["name"] == "small"
    assert "org/small" in [row["id"] for row in server.ask("GET", "/api/models").json]
    absent = server.ask("POST", "/api/models", {"model": "org/absent"})
    assert absent.status == 409 and "the hub does not give it" in absent.json["wrong"] and absent.json["cure"]


def test_a_model_that_cannot_grow_on_this_machine_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(tmp_path / "runs", Uploads(tmp_path / "uploads"), None)
    roomy = next(row for row in shop.model_rows() if row.id == "embedded")
    assert roomy.ready and roomy.size_why is None and roomy.window_why is None
    small = detect(tmp_path).model_copy(update={"ram_bytes": 400 * 2**20, "vram_bytes": None})
    monkeypatch.setattr("scaler_wizard.server.begin.detect", lambda runs: small)
    narrow = next(row for row in Shop(tmp_path / "runs", shop.uploads, None).model_rows() if row.id == "embedded")
    assert narrow.ready and "the limit is 0.4 GiB" in str(narrow.size_why) + str(narrow.window_why)


def test_a_hub_id_never_becomes_a_folder(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    shutil.copytree(resolve("embedded").folder, tmp_path / "org" / "small")
    monkeypatch.chdir(tmp_path)
    assert server.ask("POST", "/api/models", {"model": "org/small"}).status == 409


def test_a_gguf_file_of_the_folder_is_converted_when_it_is_chosen(tmp_path: Path) -> None:
    from scaler_wizard.gguf_writer import write_gguf

    models = tmp_path / "models"
    models.mkdir()
    write_gguf(resolve("embedded").folder, models / "small.gguf")
    (models / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with served(tmp_path / "runs", models=models) as server:
        rows = {row["id"]: row["ready"] for row in server.ask("GET", "/api/models").json}
        assert rows["small.gguf"] is False
        assert server.ask("POST", "/api/models", {"model": "small.gguf"}).json["ready"] is True
        plan = server.ask("POST", "/api/plan", {"model": "small.gguf", "context": "2x"})
        assert plan.status == 200 and plan.json["base"]["parameters"] == 820_352
        assert {row["id"]: row["ready"] for row in server.ask("GET", "/api/models").json}["small.gguf"] is True
        refused = server.ask("POST", "/api/models", {"model": "broken.gguf"})
        assert refused.status == 409 and "broken.gguf" in refused.json["wrong"] and refused.json["cure"]


def test_what_past_runs_say_of_a_wish_is_shown_and_what_they_cannot_say_is_unknown(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaler_wizard.learn import expected, gathered, remember

    wish = {"model": "embedded", "parameters": "1.5x", "context": "2x"}
    known = remember(gathered(server.runs))
    said = server.ask("POST", "/api/expected", wish).json
    shown = server.ask("POST", "/api/plan", wish).json
    assert known is not None and shown["parameters"] > 0
    assert said["low"] < said["middle"] < said["high"] and "four of five" in said["basis"]
    recipe = Recipe(model="embedded", parameters="1.5x", context="2x")
    source = resolve("embedded")
    plan = make_plan(recipe, source, read_architecture(source.folder), detect(server.runs))
    band = expected(plan, known)
    assert band is not None and band.middle == pytest.approx(said["middle"])
    monkeypatch.setattr("scaler_wizard.server.foresee.gathered", lambda runs: ())
    with served(server.runs) as fresh:
        none = fresh.ask("POST", "/api/expected", wish).json
    assert none == {"low": None, "middle": None, "high": None, "basis": "not known: 0 runs so far, from 20 on"}


def test_a_forecast_is_fitted_again_only_where_runs_were_added(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from scaler_wizard.learn import gathered, remember
    from scaler_wizard.server import foresee

    fitted, past = [], gathered(server.runs)
    monkeypatch.setattr(foresee, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(foresee, "remember", lambda runs: (fitted.append(len(runs)), remember(runs))[1])
    with served(server.runs) as fresh:
        for known in (past, past, past[:-1]):
            monkeypatch.setattr(foresee, "gathered", lambda runs, known=known: known)
            fresh.ask("POST", "/api/expected", {"model": "embedded", "context": "2x"})
    assert fitted == [len(past), len(past) - 1]


def test_a_plan_is_read_again_only_where_its_file_has_changed(server: Served, run: Run) -> None:
    def read() -> int:
        for path in ("/api/runs", f"/api/runs/{run.id}"):
            assert server.ask("GET", path).status == 200
        return planned._read.cache_info().misses

    before, file = read(), run.folder / "plan.yaml"
    assert read() == before
    file.write_text(file.read_text(encoding="utf-8").replace("name: embedded", "name: another", 1), encoding="utf-8")
    os.utime(file, ns=(0, 0))
    assert read() == before + 1
    assert [row["model"] for row in server.ask("GET", "/api/runs").json] == ["another"]


def test_every_route_says_what_kind_of_answer_it_gives(server: Served, run: Run) -> None:
    (run.report / "report.html").write_text("<!doctype html>", encoding="utf-8")
    paths = server.ask("GET", "/api/openapi.json").json["paths"]
    for path in ("export", "report", "report.html", "difference", "preview"):
        asked = paths[f"/api/runs/{{run_id}}/{path}"]["get"]["responses"]
        got = server.ask("GET", f"/api/runs/{run.id}/{path}").headers["content-type"].partition(";")[0]
        assert list(asked["200"]["content"]) == [got], path
        assert list(asked["404"]["content"]) == ["application/json"]
    assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


def test_models_of_a_folder_are_offered_by_name(tmp_path: Path) -> None:
    from scaler_wizard.models import EMBEDDED

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(EMBEDDED)
    found = shop(tmp_path, tmp_path / "models")
    assert [row.id for row in found.model_rows()] == ["embedded", "smollm2", "mine"]
    assert found.plan(Wish(model="mine", context="2x")).base.parameters == 820_352


def test_a_run_starts_once_for_a_key_and_only_under_the_contract_that_was_shown(tmp_path: Path) -> None:
    found, wish = shop(tmp_path), Wish(model="embedded", context="2x", memory_share=0.5)
    seen = text_hash(terms_of(wish))
    ask = Start(key="k" * 16, wish=wish, sign="Ada", text_hash=seen)
    assert found.start(ask).id == found.start(ask).id
    with pytest.raises(ScalerError, match="not the one to be signed"):
        found.start(ask.model_copy(update={"key": "m" * 16, "text_hash": text_hash(Contract())}))
    assert len([path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]) == 1


# -- uploads -----------------------------------------------------------------------------------------------------------


def test_a_dropped_text_shows_what_is_kept_and_can_be_planned_with(server: Served) -> None:
    kept = server.ask("POST", "/api/uploads?name=../../evil%20name.txt", TEXT.encode()).json
    assert kept["name"] == "evil name.txt" and kept["beginning"].startswith("In the beginning")
    assert sum(kept["shares"].values()) == pytest.approx(1) and kept["shares"]["learn"] > 0.7
    plan = server.ask("POST", "/api/plan", {"model": "embedded", "context": "2x", "data": kept["id"]})
    assert plan.status == 200
    assert [one["id"] for one in server.ask("GET", "/api/uploads").json] == [kept["id"]]
    assert server.ask("DELETE", f"/api/uploads/{kept['id']}").status == 204
    assert server.ask("GET", "/api/uploads").json == []


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("weights.bin", b"x" * 2000),
        ("short.txt", b"too short"),
        ("bytes.txt", b"\xff\xfe" * 2000),
        ("zero.txt", b"a\0b" * 2000),
        ("broken.jsonl", b'{"text": \n' * 400),
        ("no-text.jsonl", b'{"words": "x"}\n' * 400),
        ("line.txt", b"x" * (2**20 + 1)),
    ],
)
def test_a_text_that_cannot_be_used_leaves_nothing_behind(server: Served, name: str, body: bytes) -> None:
    answer = server.ask("POST", f"/api/uploads?name={name}", body)
    assert answer.status == 409 and name in answer.json["wrong"], answer
    assert server.ask("GET", "/api/uploads").json == []
    assert not list((server.runs / ".uploads").glob("upload-*"))


def test_an_upload_ends_at_its_limit(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LARGEST", 1000)
    answer = server.ask("POST", "/api/uploads?name=long.txt", b"word \n" * 400)
    assert answer.status == 409 and "larger than" in answer.json["wrong"]


@pytest.mark.parametrize("wanted", ["kjv2", "upload-../../x", "upload-0123456789abcdef", "..", "/etc/passwd"])
def test_data_is_chosen_by_the_id_of_an_upload_and_never_by_a_path(server: Served, wanted: str) -> None:
    answer = server.ask("POST", "/api/plan", {"model": "embedded", "context": "2x", "data": wanted})
    assert answer.status == 409 and "no such upload" in answer.json["wrong"]


# -- to take away ------------------------------------------------------------------------------------------------------


def test_the_export_holds_the_current_checkpoint_byte_for_byte(server: Served, run: Run) -> None:
    answer = server.ask("GET", f"/api/runs/{run.id}/export")
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        packed = {Path(one.name).name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    folder = run.checkpoints / str(run.current)
    assert packed == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_report_that_is_not_written_is_not_invented(server: Served, run: Run) -> None:
    assert server.ask("GET", f"/api/runs/{run.id}/report").status == 409
    (run.report / "report.md").write_text("# Report\n", encoding="utf-8")
    assert server.ask("GET", f"/api/runs/{run.id}/report").status == 200


def test_what_changed_between_two_checkpoints_is_told(server: Served, run: Run) -> None:
    path = f"/api/runs/{run.id}/difference?first=000-baseline&second={run.current}"
    assert "parameters" in server.ask("GET", path).json["figures"]
    assert server.ask("GET", f"/api/runs/{run.id}/difference?first=../x").status == 422


def test_prometheus_reads_every_run(server: Served, run: Run) -> None:
    text = server.ask("GET", "/metrics").body.decode()
    assert 'scaler_runs{status="paused"} 1' in text
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0 for line in samples)
    assert any(line.startswith(f'scaler_run_perplexity{{run="{run.id}"}}') for line in samples)
