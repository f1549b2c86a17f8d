"""Weights for every matrix by the gradient: the slopes are true, what hurts is left out, what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scaler_wizard.cli import app
from scaler_wizard.data import Tokens
from scaler_wizard.errors import ScalerError
from scaler_wizard.gradient_search import MixedMatrix, gradient_search
from scaler_wizard.merge import METHODS, Method, TaskArithmetic
from scaler_wizard.merge.knobs import Knob, refuse_search, told
from scaler_wizard.merge.recipe import WeightSearch, read_merge
from scaler_wizard.merging import MERGE, merge_models, prepare
from scaler_wizard.models import EMBEDDED
from scaler_wizard.record import from_json
from scaler_wizard.searching import JUDGEMENT, Found
from tiny_models import load, make


def family(root: Path, count: int) -> tuple[Path, list[Path]]:
    """A base, and models with noise on its matrices."""
    base = make(root / "base")
    folders = []
    for number in range(count):
        model, generator = load(base), torch.Generator().manual_seed(number)
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
        model.save_pretrained(root / str(number))
        folders.append(root / str(number))
    return base, folders


def task(base: Path, models: list[Path], **general: Any) -> TaskArithmetic:
    listed = [{"model": str(model), "weight": 0.5} for model in models]
    block = {"method": "task_arithmetic", "base": str(base), "models": listed, **general}
    found = read_merge(block, "recipe", METHODS)
    assert isinstance(found, TaskArithmetic)
    return found


def own_text(folder: Path, seed: int, windows: int = 6) -> Tokens:
    """Text that the model itself would write: nobody reads it better."""
    torch.manual_seed(seed)
    ids = load(folder).generate(
        torch.randint(3, 60, (windows, 1)), do_sample=True, max_new_tokens=31, min_new_tokens=31, pad_token_id=0
    )
    found: Tokens = ids.numpy().astype(np.int32)
    return found


def written(root: Path, before: Method, after: Method) -> list[Path]:
    return [merge_models(each, root / name).folder for name, each in (("before", before), ("after", after))]


def mean_loss(model: Any, ids: Tokens) -> float:
    batch = torch.from_numpy(ids.astype(np.int64))
    return float(model(batch, labels=batch).loss.detach())


def test_a_weight_has_the_slope_that_small_steps_show() -> None:
    generator = torch.Generator().manual_seed(0)
    base, changes = torch.randn(12, generator=generator), torch.randn(3, 12, generator=generator)
    x, goal = torch.randn(5, 4, generator=generator), torch.randn(5, 3, generator=generator)

    def loss(weights: list[float]) -> float:
        matrix = (base.double() + torch.tensor(weights, dtype=torch.float64) @ changes.double()).view(3, 4)
        return float(((x.double() @ matrix.T - goal.double()) ** 2).sum())

    layer = torch.nn.Linear(4, 3, bias=False)
    mixed = MixedMatrix("layer", layer.weight, base, changes, start=[0.3, -0.2, 0.9])
    ((layer(x) - goal) ** 2).sum().backward()
    found = mixed.weights.grad
    assert found is not None and layer.weight.grad is None
    for place in range(3):
        step = [0.3, -0.2, 0.9]
        step[place] += 1e-4
        above = loss(step)
        step[place] -= 2e-4
        assert float(found[place]) == pytest.approx((above - loss(step)) / 2e-4, rel=1e-4)


def test_the_learnt_recipe_reads_better_than_the_one_it_began_with(tmp_path: Path) -> None:
    base, (one, two) = family(tmp_path, 2)
    method = task(base, [one, two])
    texts = {"one": own_text(one, 0)}
    found = gradient_search(method, prepare(method).parents, texts, {"one": 0.1}, steps=30)
    before, after = written(tmp_path, method, found)
    assert mean_loss(load(after), texts["one"]) < mean_loss(load(before), texts["one"]) - 0.01
    assert told(found)[str(one)] > told(found)[str(two)] + 0.2  # the text is the first model's
    filters = {entry.filter for entry in found.models[0].weight}  # type: ignore[union-attr]
    assert filters == {name for name, _ in load(base).named_parameters() if name.endswith("_proj.weight")} | {"*"}


def test_no_step_leaves_every_weight_as_the_recipe_has_it(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    method = Knob(str(models[0]), 0).set(task(base, models, scale=0.8, normalize=True), 1.5)
    assert isinstance(method, TaskArithmetic)
    found = gradient_search(method, prepare(method).parents, {"any": own_text(base, 0)}, {"any": 1.0}, steps=0)
    before, after = written(tmp_path, method, found)
    for name, parameter in load(before).named_parameters():
        assert torch.allclose(parameter, load(after).get_parameter(name), atol=1e-6), name


def test_the_command_learns_weights_and_judges_them_on_other_text(tmp_path: Path) -> None:
    model, generator = load(EMBEDDED, "float32"), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("down_proj.weight"):  # spoilt, so that its weight has to fall
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(tmp_path / "spoilt")
    words = "the king said unto the people that they should go down to the river and drink".split()
    order = np.random.default_rng(0).integers(0, len(words), 5000)
    (tmp_path / "text.txt").write_text(" ".join(words[place] for place in order))
    merge = {"method": "task_arithmetic", "base": "embedded", "models": [{"model": str(tmp_path / "spoilt")}]}
    search = {"texts": {"words": str(tmp_path / "text.txt")}, "by": "matrix", "tries": 8, "length": 32}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": merge, "search": search}))

    answer = CliRunner().invoke(app, ["merge", str(file), "-o", str(tmp_path / "out")])

    assert answer.exit_code == 0, answer.output
    found = Found.read(from_json((tmp_path / "out" / JUDGEMENT).read_text()), "judgement")
    assert len(found.tries) == 2 and found.best == 1 and found.tries[1].score > found.tries[0].score
    learnt = from_json((tmp_path / "out" / MERGE).read_text())["recipe"]["models"][0]["weight"]
    assert len(learnt) == model.config.num_hidden_layers + 1 and all(one["value"] < 1 for one in learnt)


def test_time_that_is_up_ends_the_steps(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    method = task(base, models)
    answers = iter([True, False])
    gradient_search(
        method, prepare(method).parents, {"any": own_text(base, 0)}, {"any": 1.0}, steps=9, go_on=lambda: next(answers)
    )
    with pytest.raises(StopIteration):
        next(answers)


@pytest.mark.parametrize(("method", "said"), [("ties", "not for ties"), ("model_stock", "not for model_stock")])
def test_other_methods_have_no_weights_for_the_gradient(tmp_path: Path, method: str, said: str) -> None:
    models = [{"model": "a"}, {"model": "b"}]
    block: Method = read_merge({"method": method, "base": "base", "models": models}, "recipe", METHODS)
    with pytest.raises(ScalerError, match=said) as refused:
        refuse_search(block, WeightSearch(texts={"kjv": "kjv"}, by="matrix"))
    assert "task_arithmetic" in refused.value.cure
