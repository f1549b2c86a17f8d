import json
import shutil
from pathlib import Path

import pytest

from commands import called
from machines import machine
from scaler_wizard.architecture import read_architecture
from scaler_wizard.early import refuse_no_text
from scaler_wizard.errors import ScalerError
from scaler_wizard.estimate import healing_bytes
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.phases import Train
from scaler_wizard.plan import Setting, _that_fits, make_plan
from scaler_wizard.recipe import Distil, Heal, Limits, Recipe
from tiny_models import make

SOURCE = Source(EMBEDDED, "embedded", None, "")


def planned(**wish: object) -> Train:
    recipe = Recipe.model_validate({"model": "embedded", "context": "2x", **wish})
    plan = make_plan(recipe, SOURCE, read_architecture(EMBEDDED), machine(16))
    return next(phase.change for phase in plan.phases if isinstance(phase.change, Train))


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("a.txt", b"", "too short (0 bytes)"),
        ("a.txt", b"one\ntwo\nthree\n", "too short (14 bytes)"),
        ("a.jsonl", b'{"text": "a"}\n' * 3, "too short (42 bytes)"),
        ("a.txt", b"\x00\x01" * 2000, "binary, not text"),
        ("a.jsonl", b'{"number": 1}\n' * 200, "no text column"),
        ("a.bin", b"x" * 2000, ""),
    ],
)
def test_text_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, wrong: str) -> None:
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        if name == "a.bin" and source.is_file():
            continue
        with pytest.raises(ScalerError) as refused:
            refuse_no_text(str(source))
        assert wrong in refused.value.wrong
        assert "\n" not in refused.value.wrong + refused.value.cure


def test_a_missing_text_is_refused_by_the_command_and_a_good_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match="no such file or folder"):
        refuse_no_text(str(tmp_path / "none.txt"))
    (tmp_path / "a.txt").write_text("A long story. " * 200)
    for source in (str(tmp_path / "a.txt"), str(tmp_path), "kjv", "hub:org/name"):
        refuse_no_text(source)
    (tmp_path / "r.yaml").write_text("model: embedded\ncontext: 2x\ndata: nowhere.txt\n")
    said = called("plan", tmp_path / "r.yaml", "-o", tmp_path / "plan.yaml")
    assert said.returncode == 2 and "nowhere.txt: no such file or folder" in said.stderr


def test_a_teacher_with_another_vocabulary_is_refused_by_the_plan_and_one_with_the_same_counts(tmp_path: Path) -> None:
    teacher = shutil.copytree(EMBEDDED, tmp_path / "teacher")
    train = planned(heal=Heal(distil=Distil(teacher=str(teacher))))
    assert train.teacher_parameters == read_architecture(EMBEDDED).parameters
    file = teacher / "tokenizer.json"
    said = json.loads(file.read_text())
    first, second = list(said["model"]["vocab"])[300:302]
    vocabulary = said["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(said))
    with pytest.raises(ScalerError, match="another vocabulary \\(2 of 1024 tokens differ\\)"):
        planned(heal=Heal(distil=Distil(teacher=str(teacher))))


def healed(**wish: object) -> Train:
    """The training alone: of the other phases some need more than a small model's training."""
    recipe = Recipe.model_validate({"model": "embedded", "context": "2x", **wish})
    base = read_architecture(EMBEDDED)
    return _that_fits(Setting(recipe, base, machine(16)), recipe.heal, base, 256, grows=False)


def test_where_memory_is_short_windows_are_shortened_unless_the_recipe_names_one() -> None:
    heal, base = Heal(lora_ranks="uniform", train="lora", lora_rank=8), read_architecture(EMBEDDED)
    named = healed(limits={"memory": 1}, heal=heal.model_copy(update={"window": 256}))
    assert (named.window, named.micro_batch, named.checkpointing) == (256, 1, True)
    free = healed(heal=heal)
    tight = healed(limits={"memory": healing_bytes(base, base, named) - 1}, heal=heal)
    assert free.window == 256 and not free.checkpointing
    assert tight.window == 128 and tight.micro_batch == 1
    assert tight.windows_per_step * tight.window == free.windows_per_step * free.window


def test_where_shorter_windows_do_not_do_ranks_are_lower_unless_the_recipe_names_one(tmp_path: Path) -> None:
    base, recipe = read_architecture(make(tmp_path / "wide", hidden_size=512)), Recipe(model="embedded")
    heal = Heal(lora_ranks="uniform", train="lora")

    def least(memory: int, **changes: object) -> Train:
        setting = Setting(recipe.model_copy(update={"limits": Limits(memory=memory)}), base, machine(16))
        return _that_fits(setting, heal.model_copy(update=changes), base, 64, grows=False)

    tight, roomy = least(1), least(2**40)  # as small as it gets, and as it would be
    assert (tight.lora_rank, tight.window, tight.checkpointing) == (8, 64, True)
    assert least(1, lora_rank=16).lora_rank == 16
    needs = healing_bytes(base, base, tight)
    assert least(needs).lora_rank == 8 and least(2 * needs).lora_rank == roomy.lora_rank > 8


def test_a_training_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ScalerError, match="heal needs about"):
        planned(parameters="12x", limits={"memory": "600M"}, heal=Heal(train="all", window=256))
