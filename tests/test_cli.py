"""The verbs, through the real command, on a real run of the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from commands import RECIPE, called, scaler
from scaler_wizard.journal import Journal
from scaler_wizard.run import Run, list_runs

SCHEMAS = Path(__file__).parents[1] / "schemas"
SHORT = RECIPE.replace("context: 2x\n", "").replace("extend: {search: false}\n", "")
"""For runs that are ended after their first phase: nothing longer than the base's own window is measured."""


def only_run(runs: Path) -> Run:
    (folder,) = list_runs(runs)
    return Run(folder)


def test_a_run_is_complete_with_a_checkpoint_for_every_phase(made: Path) -> None:
    run = only_run(made)
    phases = ["000-baseline", "001-grow", "002-extend-256", "003-heal", "004-export"]
    assert run.status == "completed"
    assert [row.data["slug"] for row in run.committed()] == phases
    assert run.current == phases[-1]
    metadata = json.loads((run.folder / "run.json").read_text())
    assert metadata["phases"] == phases and metadata["checkpointPath"] == "checkpoints/004-export"
    assert (run.report / "report.html").stat().st_size > 1000 and (run.report / "report.md").exists()


def test_every_gate_was_answered_by_someone_on_its_evidence(made: Path) -> None:
    run = only_run(made)
    gates = run.journal.events(kinds=("gate",))
    assert len(gates) == 5
    for gate in gates:
        decided = run.decision(gate.data["gate"])
        assert decided is not None and decided.data["evidence_hash"] == gate.data["evidence_hash"]
        assert decided.data["how"] == "standing approval within limits" and decided.data["who"]
        assert len(gate.data["sentence"]) <= 120


def test_growth_was_proved_and_training_had_a_control(made: Path) -> None:
    grown, healed = (only_run(made).committed()[number].data["evidence"] for number in (1, 3))
    assert grown["proof"]["passed"] and grown["proof"]["largest_difference"] <= 1e-3
    training = healed["training"]
    assert training["grown"]["parameters"] > training["control"]["parameters"]
    assert training["gain_over_control"]["low"] <= training["gain_over_control"]["high"]


def test_the_export_is_a_stock_model(made: Path) -> None:
    from tiny_models import load

    run = only_run(made)
    model = load(run.checkpoints / "004-export")
    assert model.config.max_position_embeddings == 256 and type(model).__name__ == "LlamaForCausalLM"
    assert not any(name.suffix == ".py" for name in (run.checkpoints / "004-export").iterdir())


def test_the_flight_log_is_the_journal_line_by_line(made: Path) -> None:
    run = only_run(made)
    lines = [json.loads(line) for line in (run.folder / "flight_log.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == [row.seq for row in run.journal.events()][: len(lines)]
    assert lines[-1]["kind"] in ("committed", "status") and {line["traceId"] for line in lines} == {
        run.journal.get("uuid")
    }


def test_status_as_json_is_the_cockpits_payload(made: Path) -> None:
    payload = json.loads(called("status", "--json", "--runs", made).stdout)
    Draft202012Validator(json.loads((SCHEMAS / "cockpit.schema.json").read_text())).validate(payload)
    assert payload["status"] == "completed" and payload["phase"] == "P4"
    assert payload["qualityMetrics"]["perplexity"] > 1 and payload["qualityMetrics"]["accuracy"] is None
    assert "Rollback" in payload["actions"] and "Resume" not in payload["actions"]


def test_reading_verbs_show_the_run(made: Path) -> None:
    status, listed, log, changed = (
        scaler(*verb, "--runs", made).stdout for verb in (["status"], ["runs"], ["log"], ["diff"])
    )
    assert "-> current   004-export" in status and "completed" in listed
    assert "gate" in log and "standing approval" in log
    assert changed.startswith("Parameters 1.21x, context doubled")


def test_rollback_copies_nothing_and_undo_takes_it_back(runs: Path) -> None:
    run = only_run(runs)
    before = sorted(path.stat().st_ino for path in run.checkpoints.rglob("*"))
    answer = scaler("rollback", "--to", "1", "--runs", runs)
    assert answer.returncode == 0 and answer.stdout.strip() == "Rollback complete; you are now at phase 1 (grow)."
    assert run.current == "001-grow"
    assert sorted(path.stat().st_ino for path in run.checkpoints.rglob("*")) == before
    assert scaler("undo", "--runs", runs).returncode == 0 and run.current == "004-export"
    again = called("undo", "--runs", runs)
    assert again.returncode == 2 and "no rollback to undo" in again.stderr


def test_a_rollback_to_a_damaged_checkpoint_is_refused(runs: Path) -> None:
    run = only_run(runs)
    weights = run.checkpoints / "001-grow" / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"short")
    answer = called("rollback", "--to", "grow", "--runs", runs)
    assert answer.returncode == 2 and "damaged" in answer.stderr and run.current == "004-export"


def test_after_a_rollback_the_run_goes_on_from_there(runs: Path) -> None:
    run = only_run(runs)
    assert called("rollback", "--to", "3", "--runs", runs).returncode == 0
    answer = scaler("resume", "--approve-within-limits", "--runs", runs)
    assert answer.returncode == 0, answer.stderr
    assert run.current == "004-export" and run.status == "completed"
    assert len(list((run.folder / "superseded").iterdir())) == 1


def test_a_finished_recipe_starts_anew_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SHORT, encoding="utf-8")
    command = ["run", str(recipe), "--runs", str(tmp_path / "runs"), "--sign", "Ada", "--approve-within-limits"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "scaler_wizard", *command], stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert worker.stderr is not None
    for line in worker.stderr:
        if "checkpoint 000-baseline" in line:
            break
    worker.kill()
    worker.wait()
    run = only_run(tmp_path / "runs")
    assert run.current == "000-baseline" and run.status == "paused"
    assert scaler("pause", "--runs", tmp_path / "runs").returncode == 2
    answer = called("run", recipe, "--runs", tmp_path / "runs", "--set", "heal=false")
    assert answer.returncode == 2 and "not signed" in answer.stderr  # another plan is another run
    other = subprocess.Popen(
        [sys.executable, "-m", "scaler_wizard", *command], stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert other.stderr is not None
    first = other.stderr.readline()
    other.terminate()
    other.wait()
    assert "Going on with" in first and "000-baseline" in first
    assert len(list_runs(tmp_path / "runs")) == 1


def test_nobody_at_the_gate_means_paused_and_an_answer_is_carried_out_later(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SHORT.replace("heal:", "heal: false #"), encoding="utf-8")
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "scaler_wizard", "run", str(recipe), "--runs", str(runs), "--sign", "Ada"],
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("  =  "):
            break
    process.terminate()  # as closing the terminal does
    process.wait()
    assert process.returncode == 3
    run = only_run(runs)
    assert run.status == "paused" and run.current is None
    shown = scaler("status", "--runs", runs).stdout
    assert "baseline done" in shown and "scaler approve" in shown
    assert scaler("approve", "--runs", runs).returncode == 0
    assert called("approve", "--runs", runs).returncode == 2  # exactly one answer
    resumed = subprocess.Popen(
        [sys.executable, "-m", "scaler_wizard", "resume", "--runs", str(runs)],
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert resumed.stderr is not None
    for line in resumed.stderr:
        if "checkpoint 000-baseline" in line:
            break
    resumed.terminate()
    resumed.wait()
    assert run.current == "000-baseline"


def test_abort_at_the_gate_of_a_paused_run_keeps_what_was_committed(runs: Path) -> None:
    answer = scaler("abort", "--runs", runs)
    assert answer.returncode == 2 and "nothing to abort" in answer.stderr


def test_the_current_model_is_exported_whole_or_not_at_all(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert scaler("export", out, "--runs", runs).returncode == 0
    assert (out / "model.safetensors").exists() and not (out / "manifest.json").exists()
    assert called("export", out, "--runs", runs).returncode == 2
    weights = only_run(runs).checkpoints / "004-export" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    answer = called("export", tmp_path / "other", "--runs", runs)
    assert answer.returncode == 2 and "damaged" in answer.stderr and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("model: embedded\ncontxt: 2x\n", ["contxt: no such field", "did you mean context?"]),
        ("model: embedded\n", ["asks for nothing"]),
        ("model: embedded\ncontext: 64\n", ["window is 128 already"]),
        ("model: embedded\nparameters: 0.5x\n", ["not above"]),
        ("model: nowhere\ncontext: 2x\n", ["no such model"]),
        ("model: embedded\ncontext: 2x\nlimits: {memory_share: 0.99}\n", ["memory_share", "0.9"]),
        ("model: embedded\ncontext: 2x\nlimits: {memory: 100M}\n", ["the limit is"]),
        ("model: [\n", ["not valid YAML"]),
    ],
)
def test_bad_input_is_two_lines_and_changes_nothing(tmp_path: Path, recipe: str, words: list[str]) -> None:
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    answer = called("run", tmp_path / "r.yaml", "--sign", "Ada", "--runs", tmp_path / "runs")
    assert answer.returncode == 2 and len(answer.stderr.strip().splitlines()) == 2, answer.stderr
    assert all(word in answer.stderr for word in words), answer.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_signature_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    answer = called("run", tmp_path / "r.yaml", "--runs", tmp_path / "runs")
    assert answer.returncode == 2 and "not signed" in answer.stderr and not list_runs(tmp_path / "runs")


@pytest.mark.parametrize("change", ["version: '2.0'", "memory_share: 0.5"])
def test_a_contract_that_was_changed_after_it_was_signed_does_not_count(runs: Path, change: str) -> None:
    run = only_run(runs)
    text = (run.folder / "contract.yaml").read_text()
    old = "version: '1.0'" if "version" in change else "memory_share: 0.9"
    assert old in text
    (run.folder / "contract.yaml").write_text(text.replace(old, change))
    answer = scaler("resume", "--runs", runs)
    assert answer.returncode == 0 and "is again as it was signed" in answer.stderr
    assert (run.folder / "contract.yaml").read_text() == text


def test_an_unknown_run_names_the_known_ones(made: Path, tmp_path: Path) -> None:
    answer = called("status", "nothing", "--runs", made)
    assert answer.returncode == 2 and only_run(made).id in answer.stderr
    empty = called("status", "--runs", tmp_path / "none")
    assert empty.returncode == 2 and "scaler demo" in empty.stderr


def test_a_plan_is_an_editable_file_that_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: embedded\ncontext: 4x\n", encoding="utf-8")
    answer = scaler("plan", tmp_path / "r.yaml", "-o", tmp_path / "plan.yaml", "--json", "--runs", tmp_path / "runs")
    assert answer.returncode == 0 and json.loads(answer.stdout)["context"] == 512
    text = (tmp_path / "plan.yaml").read_text()
    assert "steps:" in text and not (tmp_path / "runs").exists()
    (tmp_path / "plan.yaml").write_text(text.replace("length: 256", "lenght: 256", 1))
    broken = called("run", tmp_path / "plan.yaml", "--sign", "Ada", "--runs", tmp_path / "runs")
    assert broken.returncode == 2 and "did you mean length?" in broken.stderr and not (tmp_path / "runs").exists()


def test_rollback_plan_and_status_load_no_torch() -> None:
    code = (
        "import sys, scaler_wizard.cli, scaler_wizard.supervisor, scaler_wizard.plan, scaler_wizard.gate,"
        " scaler_wizard.breaker, scaler_wizard.run, scaler_wizard.weights, scaler_wizard.grow, scaler_wizard.payload,"
        " scaler_wizard.view, scaler_wizard.screen, scaler_wizard.evaluate, scaler_wizard.doctor\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_journal_that_a_newer_release_wrote_is_refused(runs: Path) -> None:
    run = only_run(runs)
    journal = Journal(run.folder / "run.db")
    journal.set("schema", "99")
    journal.close()
    answer = called("status", "--runs", runs)
    assert answer.returncode == 2 and "newer release" in answer.stderr
