from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from healing_room import WINDOW, Room
from scaler_wizard.architecture import read_architecture
from scaler_wizard.estimate import learning_parameters
from scaler_wizard.events import Note, Step, Telegram
from scaler_wizard.grow.depth import IdentityBlocks
from scaler_wizard.models import load_model
from scaler_wizard.recipe import Distil
from scaler_wizard.train import Interrupted, Tripped


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_without_growth_the_control_is_the_very_same_training(room: Room) -> None:
    evidence = room.heal()
    assert evidence["grown"]["nll_by_window"] == evidence["control"]["nll_by_window"]
    assert evidence["gain_over_control"]["value"] == 0.0
    assert evidence["grown"]["nll"] < evidence["before"]


def test_with_growth_both_arms_see_the_same_number_of_tokens_and_the_grown_one_is_staged(room: Room) -> None:
    evidence = room.grow(IdentityBlocks(blocks=2)).heal()
    steps = [event for event in room.events if isinstance(event, Step)]
    last = {event.arm: event.tokens for event in steps}
    assert last == {"grown": 3 * 4 * WINDOW, "control": 3 * 4 * WINDOW}
    assert evidence["grown"]["parameters"] > evidence["control"]["parameters"] == 820_352
    assert read_architecture(room.folder / "staging").parameters == evidence["grown"]["parameters"]


def test_training_new_parameters_only_leaves_every_old_bit(room: Room) -> None:
    room.grow(IdentityBlocks(blocks=2)).heal(train="new", control=False)
    before, after = (dict(load_model(room.folder / name).named_parameters()) for name in ("grown", "staging"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert {name.split(".")[2] for name in changed} == {"2", "5"}


def test_norms_and_embeddings_alone_learn_as_many_as_the_plan_counts(room: Room) -> None:
    evidence = room.heal(train="norms", control=False)
    before, after = (dict(load_model(room.folder / name).named_parameters()) for name in ("base", "staging"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "norm" in name or "embed" in name}
    assert evidence["grown"]["nll"] < evidence["before"]
    counted = learning_parameters(read_architecture(room.folder / "base"), room.task(train="norms").phase.change, None)
    assert counted == sum(before[name].numel() for name in changed)


@pytest.mark.parametrize(
    "how", [{}, {"lora_kind": "eva"}, {"lora_ranks": "spectrum"}, {"lora_restarts": 1}, {"find_rate": True}]
)
def test_adapters_are_merged_into_a_stock_folder(room: Room, how: dict[str, str]) -> None:
    evidence = room.heal(train="lora", lora_rank=4, control=False, **how)
    assert read_architecture(room.folder / "staging").parameters == 820_352
    assert evidence["grown"]["nll"] < evidence["before"]


def test_the_adapters_are_kept_beside_the_model_that_has_merged_them(room: Room) -> None:
    from peft import PeftModel

    room.heal(train="lora", lora_rank=4, lora_ranks="spectrum", control=False, learning_rate=1e-2)
    base = load_model(room.folder / "base", dtype="float32")
    ids = torch.randint(0, 1024, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(room.folder / "staging" / "adapter"))(ids).logits
        merged = load_model(room.folder / "staging", dtype="float32")(ids).logits
    assert not torch.allclose(plain, merged, atol=1e-2)
    torch.testing.assert_close(adapted, merged, rtol=1e-3, atol=1e-3)
    said = json.loads((room.folder / "staging" / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(room.folder / "base")


def test_a_healing_with_the_base_as_teacher_stays_nearer_to_it(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_CACHE", str(tmp_path / "cache"))
    room.heal(steps=8, control=False, distil=Distil(weight=0.9))
    told = [event.text for event in room.events if isinstance(event, Note)]
    assert any("The teacher read" in text for text in told)
    moved = distance(room)
    for name in ("staging", "scratch"):
        shutil.rmtree(room.folder / name)
        (room.folder / name).mkdir()
    room.heal(steps=8, control=False)
    assert moved < 0.7 * distance(room)


def test_a_teacher_for_the_first_steps_is_not_heard_after_them(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_CACHE", str(tmp_path / "cache"))
    losses = {}
    for first in (None, 0.5, 1.0):
        room.events.clear()
        room.heal(steps=4, control=False, distil=None if first is None else Distil(weight=1.0, first=first))
        losses[first] = [event.loss for event in room.events if isinstance(event, Step)]
        for name in ("staging", "scratch"):
            shutil.rmtree(room.folder / name)
            (room.folder / name).mkdir()
    assert losses[0.5][0] == losses[1.0][0] < 1e-3 < losses[None][0]  # it learns from itself: nothing to say
    assert losses[0.5][-1] > 1 > losses[1.0][-1]


def test_blocks_that_imitate_the_teachers_stay_nearer_to_them_and_resume_bitwise(
    room: Room, tmp_path_factory: Any
) -> None:
    how = Distil(weight=0.1, keep="nothing", hidden=3.0, attention=3.0, layers=((3, 3), (1, 2)))
    room.heal(steps=4, distil=how)
    near = unlike(room)
    steps = [event.loss for event in room.events if isinstance(event, Step)]
    other = Room(tmp_path_factory.mktemp("plain"))
    other.heal(steps=4, control=False, distil=Distil(weight=0.1, keep="nothing"))
    assert near < 0.8 * unlike(other)
    again = Room(tmp_path_factory.mktemp("again"))
    answers = iter([False, False, True])
    with pytest.raises(Interrupted):
        again.heal(steps=4, distil=how, should_stop=lambda: next(answers))
    again.heal(steps=4, distil=how)
    assert [event.loss for event in again.events if isinstance(event, Step)][-1] == steps[-1]


def unlike(room: Room) -> float:
    """How far what the last block puts out is from the base's."""
    ids = torch.randint(0, 1024, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, base = (
            load_model(room.folder / name, dtype="float32")(ids, output_hidden_states=True).hidden_states[-2]
            for name in ("staging", "base")
        )
    return float((mine - base).square().mean())


def distance(room: Room) -> float:
    """How far the healed model's predictions are from the base's, on text of neither."""
    ids = torch.randint(0, 1024, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p, log_q = (
            load_model(room.folder / name, dtype="float32")(ids).logits.log_softmax(-1) for name in ("base", "staging")
        )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_a_training_that_diverges_stages_nothing(room: Room) -> None:
    with pytest.raises(Tripped):
        room.heal(learning_rate=100.0, steps=40, clip=1e9)
    assert list((room.folder / "staging").iterdir()) == []


def test_a_control_that_is_stopped_leaves_the_grown_model_without_a_comparison(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Telegram(cause="nonfinite", step=1, value=None, limit=None, sentence="The loss is nan.")

    def stopped(*_: object, **__: object) -> None:
        raise Tripped(told)

    monkeypatch.setattr("scaler_wizard.heal._control", stopped)
    evidence = room.heal()
    assert evidence["control"] is None and evidence["gain_over_control"] is None
    assert read_architecture(room.folder / "staging").parameters == evidence["grown"]["parameters"]
    assert any("nothing is compared with it" in event.text for event in room.events if isinstance(event, Note))


def test_an_interrupted_healing_goes_on_to_the_same_result(room: Room, tmp_path_factory: Any) -> None:
    straight = room.heal()
    other = Room(tmp_path_factory.mktemp("other"))
    for looks in (2, 4):  # in the middle of the grown arm, then in the middle of the control
        answers = iter([False] * (looks - 1) + [True])
        with pytest.raises(Interrupted):
            other.heal(should_stop=lambda answers=answers: next(answers))
    assert (other.folder / "scratch" / "grown.json").exists()
    evidence = other.heal()
    assert evidence["grown"]["nll_by_window"] == straight["grown"]["nll_by_window"]
    assert evidence["control"]["nll_by_window"] == straight["control"]["nll_by_window"]


def test_a_control_stands_under_the_window_settings_of_the_grown_model(room: Room) -> None:
    room.grow(IdentityBlocks(blocks=2))
    config = room.folder / "grown" / "config.json"
    settings = json.loads(config.read_text())
    settings["max_position_embeddings"] = 512
    settings["rope_parameters"] = {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128,
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    room.heal()
    control = json.loads((room.folder / "scratch" / "control" / "config.json").read_text())
    assert control["rope_parameters"]["rope_type"] == "yarn"
    assert control["num_hidden_layers"] == 4
    assert json.loads((room.folder / "base" / "config.json").read_text())["max_position_embeddings"] == 128
