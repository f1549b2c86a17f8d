from typing import Any

import pytest
import torch
from pydantic import ValidationError

from machines import machine
from scaler_wizard.accelerators import refuse_without_gpu
from scaler_wizard.architecture import read_architecture
from scaler_wizard.attention import has_varlen, piece_ends
from scaler_wizard.errors import ScalerError
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.plan import make_plan
from scaler_wizard.recipe import Heal, Recipe

SOURCE = Source(EMBEDDED, "embedded", None, "")


def planned(**heal: Any) -> Any:
    recipe = Recipe(model="embedded", context="2x", heal=Heal(train="lora", **heal))
    return make_plan(recipe, SOURCE, read_architecture(EMBEDDED), machine(16))


@pytest.mark.parametrize(("field", "value"), [("optimizer", "adamw-8bit"), ("lora_base", "nf4"), ("kernels", "liger")])
def test_what_needs_a_gpu_is_refused_by_the_plan_of_a_machine_without_one(field: str, value: str) -> None:
    with pytest.raises(ScalerError) as refused:
        planned(**{field: value})
    assert refused.value.wrong.startswith(f"heal.{field}: needs an NVIDIA GPU")
    assert "leave it out" in refused.value.cure


def test_a_missing_package_names_its_cure() -> None:
    with pytest.raises(ScalerError) as refused:
        refuse_without_gpu("kernels", has_gpu=True)
    assert refused.value.wrong == "heal.kernels: liger_kernel is not installed"
    assert refused.value.cure == 'pip install "scaler-wizard[gpu]"'


@pytest.mark.parametrize(
    "heal",
    [
        {"lora_restarts": 2, "lora_kind": "dora"},
        {"lora_restarts": 2, "lora_base": "nf4"},
        {"lora_base": "nf4", "lora_ranks": "spectrum"},
        {"lora_base": "nf4", "lora_kind": "pissa"},
    ],
)
def test_choices_that_exclude_each_other_are_refused(heal: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="needs lora_kind"):
        Heal(train="lora", **heal)


def test_a_wish_for_adapters_where_none_are_trained_is_refused() -> None:
    recipe = Recipe(model="embedded", context="2x", heal=Heal(lora_restarts=2))
    with pytest.raises(ScalerError, match="lora_restarts: no adapters are trained"):
        make_plan(recipe, SOURCE, read_architecture(EMBEDDED), machine(16))


def test_the_plan_takes_over_what_the_recipe_says_of_training() -> None:
    change = planned(learning_rate="find", lora_restarts=2, long_share=0.5).phases[-2].change
    assert (change.find_rate, change.learning_rate, change.lora_restarts, change.long_share) == (True, 2e-3, 2, 0.5)
    assert planned(learning_rate=0.5).phases[-2].change.learning_rate == 0.5


def test_pieces_end_where_the_kernel_of_a_gpu_expects_it_and_a_processor_has_none() -> None:
    assert piece_ends((5, 3, 3)).tolist() == [0, 5, 8, 11]
    assert piece_ends((5,)).dtype == torch.int32
    assert not has_varlen(torch.ones(1, 2, 4, 8, dtype=torch.bfloat16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 24])
def test_the_kernel_of_a_gpu_attends_as_the_pieces_do(window: int | None) -> None:
    from scaler_wizard.attention import _attend, _causal

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 96, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
    found, _ = _attend(torch.nn.Identity(), query, key, value, None, pieces=(64, 32), sliding_window=window)
    parts = zip(*(one.split([64, 32], dim=2) for one in (query, key, value)), strict=True)
    wanted = [_causal(*part, scaling=None, window=window, softcap=None)[0].transpose(0, 1) for part in parts]
    torch.testing.assert_close(found[0], torch.cat(wanted), rtol=2e-2, atol=2e-2)
