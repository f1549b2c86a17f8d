"""What is learnt between adapters: the slopes are those of the merge that is written, the start is never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scaler_wizard.cli import app
from scaler_wizard.core_merge import ADAPTER, learn_core, stacked_adapters
from scaler_wizard.core_search import By, Stack, core_search
from scaler_wizard.data import Tokens
from scaler_wizard.errors import ScalerError
from scaler_wizard.lora import add_lora
from scaler_wizard.merge import METHODS, TaskArithmetic
from scaler_wizard.merge.adapters import Fused, read_adapter
from scaler_wizard.merge.knobs import refuse_search
from scaler_wizard.merge.recipe import WeightSearch, read_merge
from scaler_wizard.merging import MERGE, merge_models, prepare
from scaler_wizard.models import EMBEDDED
from scaler_wizard.record import from_json
from scaler_wizard.searching import JUDGEMENT, Found
from tiny_models import load, make

KINDS: tuple[By, By] = ("direction", "core")


def adapter(base: Path, folder: Path, number: int, *, size: float = 0.1) -> Path:
    """A LoRA adapter of rank 4 + number with random numbers on both sides."""
    model, generator = add_lora(load(base, "float32"), rank=4 + number, seed=number), torch.Generator()
    generator.manual_seed(number)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * size
    model.save_pretrained(folder)
    return folder


def family(root: Path) -> tuple[Path, list[Path]]:
    base = make(root / "base")
    return base, [adapter(base, root / str(number), number) for number in range(2)]


def task(base: Path | str, adapters: list[Path], **general: Any) -> TaskArithmetic:
    listed = [{"model": f"{base}+{one}", "weight": 0.5} for one in adapters]
    found = read_merge({"method": "task_arithmetic", "base": str(base), "models": listed, **general}, "r", METHODS)
    assert isinstance(found, TaskArithmetic)
    return found


def own_text(stack: Stack, number: int, windows: int) -> Tokens:
    """Text that the base with one adapter would write itself."""
    torch.manual_seed(number)
    stack.alone(number)
    first = torch.randint(3, 60, (windows, 1))
    ids = stack.model.generate(first, do_sample=True, max_new_tokens=31, min_new_tokens=31, pad_token_id=0)
    found: Tokens = ids.numpy().astype(np.int32)
    return found


def put(model: Any, fused: Fused) -> Any:
    """The model with what a merged adapter adds to its matrices."""
    for module, part in fused.items():
        weight = model.get_submodule(module).weight
        weight.data += torch.from_numpy(part.left @ part.right).to(weight.dtype)
    return model


@pytest.mark.parametrize("by", KINDS)
def test_the_layers_compute_what_the_written_adapter_adds(tmp_path: Path, by: By) -> None:
    base, folders = family(tmp_path)
    stack = Stack(load(base).double(), [read_adapter(folder) for folder in folders], by)
    generator = torch.Generator().manual_seed(0)
    for core in stack.cores:
        core.data = torch.randn(core.shape, generator=generator)
    ids = torch.randint(3, 60, (2, 16), generator=generator)
    with torch.no_grad():
        found = stack.model(ids).logits
        assert torch.allclose(found, put(load(base).double(), stack.fused())(ids).logits, atol=1e-6)
        assert not torch.allclose(found, load(base).double()(ids).logits, atol=1e-2)


@pytest.mark.parametrize("by", KINDS)
def test_no_step_is_the_weighted_sum_that_the_recipe_asks_for(tmp_path: Path, by: By) -> None:
    base, folders = family(tmp_path)
    method = task(base, folders, scale=0.8)
    ready = prepare(method)
    texts = {"any": np.random.default_rng(0).integers(3, 60, (8, 16)).astype(np.int32)}
    learnt = learn_core(method, ready.parents, texts, by=by, steps=0, dtype="float32")
    asked = load(merge_models(method, tmp_path / "asked").folder)
    for name, parameter in put(load(base), learnt.fused).named_parameters():
        assert torch.allclose(parameter, asked.get_parameter(name), atol=1e-6), name
    assert learnt.step == 0


@pytest.mark.parametrize("by", KINDS)
def test_what_is_learnt_keeps_more_of_both_on_windows_that_nothing_read(tmp_path: Path, by: By) -> None:
    base, folders = family(tmp_path)
    stack = Stack(load(base), [read_adapter(folder) for folder in folders], by)
    texts = {"one": own_text(stack, 0, 96), "two": own_text(stack, 1, 96)}
    learnt = core_search(stack, {name: ids[:64] for name, ids in texts.items()}, uneven, steps=48)
    begun, best = learnt.trace[0], learnt.trace[learnt.step]
    assert learnt.step > 0 and min(best.values()) > min(begun.values())
    assert min(kept(stack, learnt.fused, base, texts)) > min(begun.values())


def kept(stack: Stack, fused: Fused, base: Path, texts: dict[str, Tokens]) -> list[float]:
    """Share of each adapter's own gain on windows that nothing has read."""
    found = []
    for number, ids in enumerate(texts.values()):
        rows, losses = torch.from_numpy(ids[64:].astype(np.int64)), []
        for alone in (None, number):
            stack.alone(alone)
            losses.append(stack.losses(rows).mean())
        found.append(float(losses[0] - _loss(put(load(base), fused), rows)) / float(losses[0] - losses[1]))
    return found


def uneven(module: str, number: int) -> float:
    return (0.9, 0.1)[number]


def _loss(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def test_time_that_is_up_leaves_the_best_so_far(tmp_path: Path) -> None:
    base, folders = family(tmp_path)
    method = task(base, folders)
    texts = {"any": np.random.default_rng(0).integers(3, 60, (8, 16)).astype(np.int32)}
    learnt = learn_core(
        method, prepare(method).parents, texts, by="core", steps=9, dtype="float32", go_on=lambda: False
    )
    assert learnt.step == 0 and set(learnt.trace) == {0}


def test_the_command_writes_the_learnt_adapter_into_the_merged_model(tmp_path: Path) -> None:
    folders = [adapter(EMBEDDED, tmp_path / str(number), number, size=0.3) for number in range(2)]
    words = "the king said unto the people that they should go down to the river and drink".split()
    order = np.random.default_rng(0).integers(0, len(words), 5000)
    (tmp_path / "text.txt").write_text(" ".join(words[place] for place in order))
    models = [{"model": f"embedded+{folder}"} for folder in folders]
    merge = {"method": "task_arithmetic", "base": "embedded", "models": models}
    search = {"texts": {"words": str(tmp_path / "text.txt")}, "by": "core", "tries": 16, "length": 32}
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(json.dumps({"merge": merge, "search": search}))

    answer = CliRunner().invoke(app, ["merge", str(file), "-o", str(out)])

    assert answer.exit_code == 0, answer.output
    found = Found.read(from_json((out / JUDGEMENT).read_text()), "judgement")
    assert found.tries[found.best].score > found.tries[0].score  # spoilt models, so that their weights have to fall
    learnt = read_adapter(out / ADAPTER)
    assert {one.rank for one in learnt.products.values()} == {9}
    again = read_merge(from_json((out / MERGE).read_text())["recipe"], "again", METHODS)
    written = merge_models(again, tmp_path / "again").folder
    assert (written / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


# -- refused ----------------------------------------------------------------------------------------------------------


def test_whole_models_have_nothing_to_stack(tmp_path: Path) -> None:
    base, folders = family(tmp_path)
    whole = merge_models(task(base, folders[:1]), tmp_path / "whole").folder
    models = [{"model": f"{base}+{folders[0]}"}, {"model": str(whole)}]
    block = read_merge({"method": "task_arithmetic", "base": str(base), "models": models}, "r", METHODS)
    assert isinstance(block, TaskArithmetic)
    with pytest.raises(ScalerError, match="are for adapters of the base") as refused:
        stacked_adapters(block, prepare(block).parents)
    assert "by: matrix" in refused.value.cure


@pytest.mark.parametrize("by", KINDS)
def test_other_methods_are_refused_by_name(by: By) -> None:
    models = [{"model": "a+b"}, {"model": "a+c"}]
    block = read_merge({"method": "ties", "base": "a", "models": models}, "recipe", METHODS)
    with pytest.raises(ScalerError, match=f"search.by: {by}: not for ties"):
        refuse_search(block, WeightSearch(texts={"kjv": "kjv"}, by=by))


def test_a_place_that_is_taken_is_known_before_anything_is_learnt(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"merge": {}, "search": {"texts": {"kjv": "kjv"}, "by": "core"}}))
    answer = CliRunner().invoke(app, ["merge", str(recipe), "-o", str(tmp_path / "out")])
    assert isinstance(answer.exception, ScalerError) and "not empty" in str(answer.exception.wrong)
