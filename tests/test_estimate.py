from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.architecture import Architecture, Blueprint, read_architecture
from scaler_wizard.estimate import (
    adapter_rank,
    expected_compute,
    fitted,
    healing_bytes,
    rank_parameters,
    spectrum_bytes,
    spreads,
    training_bytes,
)
from scaler_wizard.hardware import Hardware
from scaler_wizard.phases import Train
from tiny_models import make


@pytest.fixture
def view(tmp_path: Path) -> Architecture:
    return read_architecture(make(tmp_path, hidden_size=256, intermediate_size=1024, num_hidden_layers=8))


def train(**changes: Any) -> Train:
    plain = {"train": "all", "steps": 10, "windows_per_step": 8, "micro_batch": 8, "window": 2048, "short_share": 0.0}
    pace = {"learning_rate": 1e-3, "warmup_steps": 0, "evaluate_every": 1}
    return Train(**{**plain, **pace, **changes})


def test_a_training_that_fits_is_left_as_it_is(view: Architecture) -> None:
    assert fitted(view, view, train(), 2**40) == train()


def test_a_training_that_does_not_fit_takes_fewer_windows_at_once_then_recomputes(view: Architecture) -> None:
    needs = [healing_bytes(view, view, train(micro_batch=size)) for size in (8, 4, 2, 1)]
    assert needs == sorted(needs, reverse=True)
    assert fitted(view, view, train(), needs[1]) == train(micro_batch=4)
    assert fitted(view, view, train(), needs[3] - 1) == train(micro_batch=1, checkpointing=True)
    assert fitted(view, view, train(), 1) == train(micro_batch=1, checkpointing=True)


def test_what_learns_less_needs_less(view: Architecture) -> None:
    adapters, new, whole = (
        training_bytes(view, train(train="lora")),
        training_bytes(view, train(train="new"), new=view.parameters // 3),
        training_bytes(view, train()),
    )
    assert adapters < new < whole


def test_bfloat16_is_expected_only_where_the_processor_is_made_for_it(view: Architecture) -> None:
    """Elsewhere float32 is faster, and takes more memory."""
    plain = {"cpus": 2, "ram_bytes": 2**34, "ram_basis": "", "free_bytes": 2**33, "gpu": None, "vram_bytes": None}
    old, new = (
        Hardware(**plain, disk_free_bytes=2**40, instructions=names) for names in (("AVX512",), ("AVX512-bf16",))
    )
    assert expected_compute(view, old) == "float32"
    assert expected_compute(view, new) == "bfloat16"
    wide, narrow = (training_bytes(view, train(expects=expected_compute(view, one))) for one in (old, new))
    assert narrow < wide == training_bytes(view, train(expects="bfloat16", compute="float32"))


def test_the_control_of_new_parameters_learns_whole_and_counts(view: Architecture) -> None:
    alone, beside = (healing_bytes(view, view, train(train="new", control=on)) for on in (False, True))
    assert alone < beside == healing_bytes(view, view, train())


def llama(hidden: int, layers: int) -> Blueprint:
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}
    return Blueprint({"model_type": "llama", **sizes, **heads})


@pytest.mark.parametrize(("hidden", "rank"), [(64, 8), (576, 16), (1024, 32), (2048, 64), (8192, 128)])
def test_a_rank_follows_the_width_where_there_is_little_to_learn(hidden: int, rank: int) -> None:
    assert adapter_rank(llama(hidden, 32), 10_000) == rank


def test_a_rank_grows_until_the_adapters_can_hold_what_the_text_teaches() -> None:
    view = llama(128, 4)
    ranks = [adapter_rank(view, tokens) for tokens in (1_000, 2 * 16 * rank_parameters(view), 10**6, 10**9)]
    assert ranks == [8, 16, 64, 128]
    assert adapter_rank(view, 2 * 16 * rank_parameters(view) + 1) == 32
    assert adapter_rank(llama(576, 30), 10**6) == 16  # a large model's adapters hold a million tokens anyway


def test_ranks_are_spread_where_that_is_a_small_part_of_the_training_and_fits(view: Architecture) -> None:
    long = train(train="lora", steps=200)
    needed = spectrum_bytes(view, long)
    assert spreads(view, long, needed) and not spreads(view, long, needed - 1)
    assert not spreads(view, train(train="lora", steps=20), needed)
    assert not spreads(view, train(train="all", steps=200), needed)
    assert not spreads(view, train(train="lora", steps=200, lora_kind="dora"), needed)
    assert healing_bytes(view, view, long.model_copy(update={"lora_ranks": "spectrum"})) >= needed
