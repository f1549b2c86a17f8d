import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaler_wizard.batches import Text, text_of
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.events import Evaluated, Note, Step, Telegram, WorkerEvent
from scaler_wizard.intervals import wilson
from scaler_wizard.lora import add_lora, merge_lora
from scaler_wizard.metrics import Probe
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.slices import Sliced
from scaler_wizard.snapshots import Snapshot, newest_sound, snapshots
from scaler_wizard.train import Interrupted, Trainer, Tripped
from tiny_models import load, make

WINDOW = 32


def settings(**changes: Any) -> Train:
    plain = {"steps": 12, "windows_per_step": 4, "micro_batch": 2, "window": WINDOW, "short_share": 0.0}
    pace = {"learning_rate": 3e-3, "warmup_steps": 2, "evaluate_every": 4}
    return Train(**{"train": "all", **plain, **pace, **changes})


def text(chosen: Train) -> Text:
    """A language that can be learnt: after n comes n + 1, or, at times, 3n."""
    chance = np.random.default_rng(0)
    documents = []
    for length in (400, 50, 20, 300, 9, 44):
        ids = [int(chance.integers(64))]
        while len(ids) < length:
            ids.append((ids[-1] + 1 if chance.random() < 0.8 else 3 * ids[-1]) % 64)
        documents.append(np.array(ids, dtype=np.int32))
    return text_of(documents, None, chosen, native=16, target=64, seed=0)


class Room:
    """A folder, a model in it, and what a training there says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder, list[WorkerEvent]()
        make(folder / "model")

    def trainer(self, chosen: Train, *, stop_after: int | None = None, **changes: Any) -> Trainer:
        model = changes.pop("model", None) or load(self.folder / "model", "float32")
        every = {name: None for name, _ in model.named_parameters()}
        return Trainer(
            model=model,
            text=text(chosen),
            settings=chosen,
            evaluate=changes.pop("evaluate", lambda _: 6.0),
            watch=changes.pop("watch", CircuitBreaker(Breaker())),
            emit=self.events.append,
            scratch=self.folder,
            should_stop=lambda: self.steps() == stop_after,
            seed=7,
            compute=torch.float32,
            **{"spans": every, **changes},
        )

    def steps(self) -> int:
        return max([0, *(event.step for event in self.events if isinstance(event, Step))])

    def told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr("scaler_wizard.train.EVENT_SECONDS", 0.0)  # every step is told, so that a test can count them
    return Room(tmp_path)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: Any, two: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def test_training_learns(room: Room) -> None:
    history = room.trainer(settings(steps=60)).run()
    assert history.losses[-1] < history.losses[0] - 0.5
    assert len(history.losses) == history.step == 60


def newest(room: Room) -> Snapshot:
    found, _ = newest_sound(room.folder, "grown")
    assert found is not None
    return found


def forget(room: Room) -> None:
    for one in snapshots(room.folder, "grown"):
        one.file.unlink()
    room.events.clear()


def stopped_at(room: Room, step: int) -> dict[str, Any]:
    with pytest.raises(Interrupted):
        room.trainer(settings(), stop_after=step).run()
    found: dict[str, Any] = torch.load(newest(room).file, weights_only=True)
    return found


@pytest.mark.parametrize("expected", [1e-4, 1e-1])
def test_a_search_finds_a_rate_that_learns_wherever_it_begins_and_leaves_no_trace(room: Room, expected: float) -> None:
    found = room.trainer(settings(steps=40, learning_rate=expected, find_rate=True))
    before = weights(found.model)
    rate = found._find_rate(found._optimizer(), found._prepare())
    assert same(weights(found.model), before)
    assert 3e-4 < rate < 3e-2
    history = found.run()
    assert history.peak == rate
    assert max(event.learning_rate for event in room.told(Step)) == rate
    assert "Peak learning rate" in room.told(Note)[0].text
    forget(room)
    assert history.losses[-1] < room.trainer(settings(steps=40, learning_rate=expected)).run().losses[-1]


def test_a_found_rate_is_kept_by_a_resumed_training(room: Room) -> None:
    chosen = settings(find_rate=True)
    with pytest.raises(Interrupted):
        room.trainer(chosen, stop_after=5).run()
    kept = torch.load(newest(room).file, weights_only=True)["history"]["peak"]
    searches = len([note for note in room.told(Note) if "Peak" in note.text])
    assert room.trainer(chosen).run().peak == kept
    assert len([note for note in room.told(Note) if "Peak" in note.text]) == searches == 1


def adapted(room: Room) -> Any:
    return add_lora(load(room.folder / "model", "float32"), rank=2, seed=0)


def test_adapters_that_begin_anew_learn_more_than_their_rank(room: Room) -> None:
    chosen = settings(steps=40, train="lora", lora_restarts=3)
    trainer = room.trainer(chosen, model=adapted(room), spans=None)
    trainer.run()
    before = dict(load(room.folder / "model", "float32").named_parameters())
    merged = dict(merge_lora(trainer.model.eval(), torch.arange(32)[None] % 64).named_parameters())
    name = "model.layers.1.mlp.gate_proj.weight"
    values = torch.linalg.svdvals((merged[name] - before[name]).double())
    assert int((values > 1e-6 * values[0]).sum()) == 2 * 4


@pytest.mark.parametrize("first", [5, 6, 7])
def test_a_training_that_begins_its_adapters_anew_is_resumed_bitwise(room: Room, first: int) -> None:
    chosen, states = settings(train="lora", lora_restarts=1), []
    for stops in ((9,), (first, 9)):
        forget(room)
        for stop in stops:
            with pytest.raises(Interrupted):
                room.trainer(chosen, model=adapted(room), spans=None, stop_after=stop).run()
        states.append(torch.load(newest(room).file, weights_only=True))
    assert any(name.endswith("base_layer.weight") for name in states[0]["model"])
    assert same(states[0], states[1])


@pytest.mark.parametrize("first", [1, 5])
def test_an_interrupted_training_goes_on_bitwise_as_if_nothing_had_happened(room: Room, first: int) -> None:
    straight = stopped_at(room, 9)
    forget(room)
    stopped_at(room, first)
    resumed = stopped_at(room, 9)
    assert straight["history"]["step"] == 9
    assert straight.keys() >= {"model", "optimizer", "history", "watch"}
    for part in straight:
        assert same(resumed[part], straight[part]), part


def test_a_half_written_snapshot_does_not_replace_the_last_good_one(room: Room) -> None:
    good = stopped_at(room, 3)
    (room.folder / ".grown.new").write_bytes(b"cut short")
    assert same(stopped_at(room, 3), good)


def test_a_damaged_snapshot_is_refused_and_the_one_before_is_used(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler_wizard.train.SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr("scaler_wizard.train.SNAPSHOT_SHARE", 1e9)
    good = stopped_at(room, 9)
    forget(room)
    stopped_at(room, 5)
    raw = bytearray(newest(room).file.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest(room).file.write_bytes(raw)
    again = stopped_at(room, 9)
    assert any("step 5 is damaged and is not used" in note.text for note in room.told(Note))
    assert any("goes on from step 4" in note.text for note in room.told(Note))
    assert same(again["model"], good["model"]) and same(again["optimizer"], good["optimizer"])


def test_a_stopped_training_leaves_its_best_snapshot_and_can_end_there(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler_wizard.train.SNAPSHOT_SHARE", 1e9)
    at_four = stopped_at(room, 4)
    forget(room)
    losses = iter([3.0, 2.5, math.nan])
    with pytest.raises(Tripped):
        room.trainer(settings(), evaluate=lambda _: next(losses)).run()
    assert newest(room).step == 4
    assert [one.step for one in snapshots(room.folder, "grown")] == [4, 0]
    trainer = room.trainer(settings(), until=4)
    assert trainer.run().step == 4
    assert same(weights(trainer.model), at_four["model"])


def test_a_control_that_is_stopped_ends_alone(room: Room) -> None:
    with pytest.raises(Tripped):
        room.trainer(settings(), evaluate=lambda _: math.nan, arm="control").run()
    assert [telegram.hard for telegram in room.told(Telegram)] == [False]


def test_questions_inside_the_training_are_told_with_their_interval_and_stop_a_model_that_forgets(room: Room) -> None:
    right = iter([32, 31, 12])

    def quiz(_: Any) -> Probe:
        found = next(right)
        return Probe(name="capitals", correct=found, asked=40, chance=0.25, accuracy=wilson(found, 40))

    watch = CircuitBreaker(Breaker(), base_accuracy=0.8)
    with pytest.raises(Tripped) as stopped:
        room.trainer(settings(), quiz=quiz, watch=watch).run()
    assert (stopped.value.telegram.cause, stopped.value.telegram.step) == ("accuracy", 8)
    last = room.told(Evaluated)[-1]
    assert (last.accuracy, last.asked, last.accuracy_interval) == (0.3, 40, wilson(12, 40))


def test_micro_batches_change_the_memory_and_not_the_step(room: Room) -> None:
    losses, states = [], []
    for micro_batch in (1, 4):
        trainer = room.trainer(settings(steps=3, micro_batch=micro_batch))
        losses.append(trainer.run().losses)
        states.append(weights(trainer.model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-4)


def test_recomputed_activations_give_the_same_training(room: Room) -> None:
    plain, again = (room.trainer(settings(steps=4, checkpointing=on)).run().losses for on in (False, True))
    assert plain == pytest.approx(again, rel=1e-5)


IN_PART: dict[str, Any] = {
    "model.layers.1.mlp.gate_proj.weight": ((0, 40, 48),),
    "model.layers.1.mlp.down_proj.weight": ((1, 40, 48),),
    "model.layers.2.self_attn.q_proj.weight": None,
}


def test_a_training_of_new_rows_and_columns_is_resumed_bitwise(room: Room) -> None:
    states = []
    for stops in ((9,), (4, 9)):
        forget(room)
        for stop in stops:
            with pytest.raises(Interrupted):
                room.trainer(settings(), spans=IN_PART, stop_after=stop).run()
        states.append(torch.load(newest(room).file, weights_only=True))
    assert same(states[0], states[1])
    moments = [one["exp_avg"].shape for one in states[0]["optimizer"]["state"].values()]
    assert sorted(tuple(shape) for shape in moments)[:2] == [(8, 32), (32, 8)]


def test_memory_that_runs_out_on_the_way_into_a_slice_changes_no_step(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = room.trainer(settings(steps=2, micro_batch=2), spans=IN_PART)
    smaller.run()
    forget(room)
    take, failed = Sliced._take, []

    def fails_once(self: Sliced, whole: torch.Tensor) -> None:
        if not failed:
            failed.append(whole)
            raise RuntimeError("not enough memory")
        take(self, whole)

    monkeypatch.setattr(Sliced, "_take", fails_once)
    retreated = room.trainer(settings(steps=2, micro_batch=4), spans=IN_PART)
    retreated.run()
    assert failed and room.told(Note)[-1].text.startswith("Memory ran out")
    assert same(weights(retreated.model), weights(smaller.model))


def test_only_the_new_rows_and_columns_change_even_under_weight_decay(room: Room) -> None:
    trainer = room.trainer(settings(weight_decay=0.5), spans=IN_PART)
    before = weights(trainer.model)
    trainer.run()
    after = weights(trainer.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == IN_PART.keys()
    gate, down, _ = IN_PART
    assert torch.equal(before[gate][:40], after[gate][:40]) and not torch.equal(before[gate][40:], after[gate][40:])
    assert torch.equal(before[down][:, :40], after[down][:, :40])
    assert not torch.equal(before[down][:, 40:], after[down][:, 40:])


def test_frozen_weights_that_bfloat16_can_hold_compute_in_it_and_come_back_unchanged(room: Room) -> None:
    make(room.folder / "narrow", dtype="bfloat16")
    model = load(room.folder / "narrow", "float32")
    model.model.layers[0].mlp.up_proj.weight.data += 1e-4  # bfloat16 cannot hold this one
    before = weights(model)
    seen = set[tuple[str, torch.dtype]]()

    def look(trained: Any) -> float:
        seen.update((name, parameter.dtype) for name, parameter in trained.named_parameters())
        assert trained.model.embed_tokens(torch.tensor([1])).dtype == torch.float32  # the residual stream begins here
        return 6.0

    learns = "model.layers.1.mlp.up_proj.weight"
    trainer = room.trainer(settings(), model=model, spans={learns: None}, evaluate=look)
    trainer.compute = torch.bfloat16
    trainer.run()
    wide = {name for name, dtype in seen if dtype == torch.float32 and "norm" not in name}
    assert wide == {learns, "model.layers.0.mlp.up_proj.weight"}
    for name, tensor in weights(trainer.model).items():
        assert torch.equal(tensor, before[name]) is (name != learns)


def test_a_learning_rate_that_is_far_too_high_trips_the_breaker(room: Room) -> None:
    with pytest.raises(Tripped) as caught:
        room.trainer(settings(learning_rate=30.0, steps=60, warmup_steps=0, clip=1e9)).run()
    assert caught.value.telegram.cause in ("divergence", "nonfinite")
    assert room.told(Telegram) == [caught.value.telegram]
    assert room.steps() < 60


def test_a_breaker_says_in_one_sentence_how_a_perplexity_exploded(room: Room) -> None:
    losses = iter([6.0, 300.0, 600.0, 650.0, 690.0])
    with pytest.raises(Tripped, match="more than 10,000%"):
        room.trainer(settings(evaluate_every=3), evaluate=lambda _: next(losses)).run()


def test_a_broken_weight_stops_the_training_at_the_first_step(room: Room) -> None:
    model = load(room.folder / "model", "float32")
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(Tripped, match="nan at step 1"):
        room.trainer(settings(), model=model).run()


def test_a_breaker_that_only_warns_lets_the_training_end(room: Room) -> None:
    watch = CircuitBreaker(Breaker(slope=0.01, action="warn"))
    rising = iter(range(100))
    history = room.trainer(settings(), watch=watch, evaluate=lambda _: float(next(rising))).run()
    assert history.step == 12
    assert {telegram.hard for telegram in room.told(Telegram)} == {False}


def test_the_model_is_evaluated_before_at_intervals_and_at_the_end(room: Room) -> None:
    room.trainer(settings(steps=10)).run()
    assert [event.step for event in room.told(Evaluated)] == [0, 4, 8, 10]


def test_after_three_steps_it_says_how_long_the_rest_takes(room: Room) -> None:
    room.trainer(settings(steps=10)).run()
    assert [event.text for event in room.told(Note) if event.text.endswith("7 more take about 1 min.")]
    room.events.clear()
    forget(room)
    room.trainer(settings(steps=3)).run()
    assert room.told(Note) == []


@pytest.mark.parametrize(
    ("work", "micro_batch", "pieces"),
    [(2**32, 2, (32, 32)), (2**32, 100, (32,) * 25), (1, 100, (32,) * 8), (1, 2, (32, 32))],
)
def test_a_type_to_compute_in_is_tried_on_as_much_text_as_the_model_is_small(
    room: Room, monkeypatch: pytest.MonkeyPatch, work: int, micro_batch: int, pieces: tuple[int, ...]
) -> None:
    """A whole micro-batch at most; here the text has 25 windows."""
    monkeypatch.setattr("scaler_wizard.train.PROBE_WORK", work)
    sample = room.trainer(settings(micro_batch=micro_batch, windows_per_step=micro_batch))._sample()
    assert sample.pieces == pieces and sample.ids.shape == sample.positions.shape == (1, sum(pieces))
    assert int(sample.positions.max()) == 31


def test_bfloat16_is_not_tried_on_a_processor_without_instructions_for_it(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = room.trainer(settings())
    tried: list[torch.dtype] = []
    monkeypatch.setattr(trainer, "_time", lambda batch, dtype: tried.append(dtype) or len(tried))
    for knows, then in ((False, []), (None, [torch.float32, torch.bfloat16])):
        monkeypatch.setattr("scaler_wizard.train.processor_has_bfloat16", lambda knows=knows: knows)
        trainer.compute = None
        assert trainer._compute() == torch.float32 and tried == then


def test_a_type_to_compute_in_is_chosen_by_trying_and_remembered(room: Room) -> None:
    trainer = room.trainer(settings(), stop_after=2)
    trainer.compute = None
    with pytest.raises(Interrupted):
        trainer.run()
    assert trainer.compute in (torch.float32, torch.bfloat16)
    again = room.trainer(settings())
    again.compute = None
    again.run()
    assert again.compute == trainer.compute


OUT_OF_MEMORY = """
import json, resource, sys, tempfile
from pathlib import Path
import numpy as np, torch
from tiny_models import load
from scaler_wizard.batches import text_of
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.train import Trainer

folder, room = Path(sys.argv[1]), float(sys.argv[2])
settings = Train(train="all", steps=3, windows_per_step=8, micro_batch=8, window=512, short_share=0.0,
                 learning_rate=1e-3, warmup_steps=0, evaluate_every=9)
ids = np.random.default_rng(0).integers(0, 64, 20_000).astype(np.int32)
notes = []
def emit(event):
    if event.kind == "note":
        notes.append(event.text)
model = load(folder / "model", "float32")
trainer = Trainer(model=model, text=text_of([ids], None, settings, native=512, target=512, seed=0), settings=settings,
                  evaluate=lambda _: 9.0, watch=CircuitBreaker(Breaker()), emit=emit,
                  scratch=Path(tempfile.mkdtemp(dir=folder)), should_stop=lambda: False, seed=0, compute=torch.float32,
                  spans={name: None for name, _ in model.named_parameters()})
if room:
    used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (int(used + room * 2**20), resource.RLIM_INFINITY))
try:
    print(json.dumps({"losses": trainer.run().losses, "notes": notes}))
except (MemoryError, RuntimeError) as error:
    print(json.dumps({"error": str(error)[:200], "notes": notes}))
"""


def trained_within(folder: Path, mebibytes: float) -> dict[str, Any]:
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(folder), str(mebibytes)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="the limit that plants the fault is Linux's")
def test_when_memory_runs_out_training_goes_on_with_less_at_once_and_the_same_losses(tmp_path: Path) -> None:
    make(tmp_path / "model", hidden_size=128, intermediate_size=512, num_attention_heads=4, head_dim=32)
    free, tight = trained_within(tmp_path, 0), trained_within(tmp_path, 110)
    assert free["notes"] == []
    assert tight["notes"] and tight["notes"][0].startswith("Memory ran out; training goes on with less: 4 windows")
    assert tight["losses"] == pytest.approx(free["losses"], rel=1e-4)
    nothing = trained_within(tmp_path, 4)
    assert "activations are made again" in nothing["notes"][-1] and "error" in nothing
