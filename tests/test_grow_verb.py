"""`scaler grow` and `scaler inspect`, as a user types them: data on standard output, talk on standard error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import called, scaler
from scaler_wizard.architecture import read_architecture
from scaler_wizard.hardware import detect
from scaler_wizard.models import resolve
from scaler_wizard.oneshot import GROWTH, grow_model
from scaler_wizard.plan import explanation, make_plan
from scaler_wizard.recipe import Recipe
from tiny_models import make


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_grow_proves_and_keeps_the_model_and_says_how_it_was_made(tmp_path: Path) -> None:
    make(tmp_path / "base")
    said = scaler("grow", tmp_path / "base", "--to", "1.3x", "-o", tmp_path / "out", "--json", "--shard-size", "50K")
    assert said.returncode == 0, said.stderr
    growth = json.loads(said.stdout)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert growth == json.loads((tmp_path / "out" / GROWTH).read_text())
    assert growth["proof"]["passed"] and growth["parameters"] == read_architecture(tmp_path / "out").parameters
    assert "writing 100%" in said.stderr and "proving" in said.stderr


def test_only_the_operators_that_are_allowed_are_used(tmp_path: Path) -> None:
    make(tmp_path / "base")
    said = called("grow", tmp_path / "base", "--to", "1.3x", "-o", tmp_path / "out", "--allow", "widen_ffn")
    assert said.returncode == 0, said.stderr
    assert "wider feed-forward blocks" in said.stdout and "identity" not in said.stdout
    assert "learnt nothing yet" in said.stderr


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--to", "0.5x", "-o", "out"], "growth only adds"),
        (["--to", "huge", "-o", "out"], "is no size"),
        (["--to", "2x", "-o", "out", "--allow", "lego"], "no such operator"),
        (["--to", "2x", "-o", "base"], "not empty"),
        (["--to", "2x", "-o", "out", "--shard-size", "big"], "no size"),
    ],
)
def test_a_slip_is_two_lines_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], wrong: str
) -> None:
    make(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    said = called("grow", "base", *words)
    assert said.returncode == 2 and wrong in said.stderr and "→" in said.stderr
    assert "Traceback" not in said.stderr and said.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_inspect_says_the_same_in_words_and_in_json() -> None:
    words, data = scaler("inspect", "embedded"), called("inspect", "embedded", "--json")
    found = json.loads(data.stdout)
    assert words.returncode == data.returncode == 0
    assert found["family"] == "llama" and found["native_context"] == 128
    assert f"{found['parameters']:,}" in words.stdout and "keeps every bit" in words.stdout
    assert {one["op"] for one in found["operators"]} >= {"identity_blocks", "widen_hidden", "upcycle"}


def test_a_model_that_is_not_there_is_named() -> None:
    said = called("inspect", "./absent")
    assert said.returncode == 2 and "no such model" in said.stderr


@pytest.mark.parametrize("wish", ["1.5x", "fit 8 MB of VRAM at 256 context", "820K -> 1.2M"])
def test_a_plan_explains_its_growth_with_alternatives(tmp_path: Path, wish: str) -> None:
    source = resolve("embedded")
    recipe = Recipe(model="embedded", parameters=wish)
    lines = list(explanation(make_plan(recipe, source, read_architecture(source.folder), detect(tmp_path))))
    assert lines[0].startswith("Chosen: ") and sum(line.startswith("Instead: ") for line in lines) >= 1
    assert any("arithmetic per token" in line for line in lines)


@pytest.mark.faults
@pytest.mark.thorough
def test_a_growth_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = make(tmp_path / "base", hidden_size=512, intermediate_size=2048, num_hidden_layers=12, vocab_size=4096)
    code = (
        "import sys, time; from pathlib import Path; from scaler_wizard.oneshot import grow_model\n"
        "grow_model(Path(sys.argv[1]), Path(sys.argv[2]), '1.5x', prove=False, shard_bytes=20_000_000,"
        " tell=lambda doing, share: time.sleep(0.02))"
    )
    whole = grow_model(source, tmp_path / "whole", "1.5x", prove=False, shard_bytes=20_000_000).growth
    child = subprocess.Popen([sys.executable, "-c", code, source, tmp_path / "out"])
    staging = tmp_path / ".out.growing"
    while len(list(staging.glob("*.safetensors"))) < 3 and child.poll() is None:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not (tmp_path / "out").exists()
    kept = {file.name: file.stat().st_ino for file in staging.glob("*.safetensors")}
    assert 3 <= len(kept) < len(whole.files) - 2

    again = grow_model(source, tmp_path / "out", "1.5x", prove=False, shard_bytes=20_000_000).growth
    assert again == whole
    same = [name for name, inode in kept.items() if (tmp_path / "out" / name).stat().st_ino == inode]
    assert len(same) >= len(kept) - 1  # the last one may have been killed between its name and its note
    assert names(tmp_path / "whole") == names(tmp_path / "out") and not staging.exists()


def test_a_growth_to_fit_memory_speaks_of_the_context_that_was_asked_for(tmp_path: Path) -> None:
    source = resolve("embedded")
    wish = "fit 8 MB of VRAM at 256 context"
    plan = make_plan(
        Recipe(model="embedded", parameters=wish), source, read_architecture(source.folder), detect(tmp_path)
    )
    assert any("cache" in note and "for 256 tokens" in note for note in plan.notes)
    assert any("for 256 tokens" in line for line in explanation(plan))


def test_what_an_earlier_growth_left_does_not_get_into_the_model(tmp_path: Path) -> None:
    source = make(tmp_path / "base")
    staging = tmp_path / ".out.growing"
    staging.mkdir()
    for name in ("model-00007-of-00009.safetensors", "model.safetensors.index.json", "x.safetensors.partial"):
        (staging / name).write_text("left by another size")
    grow_model(source, tmp_path / "out", "1.5x", prove=False)
    assert names(tmp_path / "out") == [
        "config.json",
        "generation_config.json",
        GROWTH,
        "model.safetensors",
    ]


def test_plan_explains_on_standard_error_and_writes_the_plan(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: embedded\nparameters: 1.5x\n")
    out = tmp_path / "plan.yaml"
    said = called("plan", tmp_path / "recipe.yaml", "-o", out, "--runs", tmp_path, "--explain", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["parameters"] > 1_200_000 and out.is_file()
    assert "Chosen: depth and feed-forward width together" in said.stderr and "Instead: " in said.stderr
