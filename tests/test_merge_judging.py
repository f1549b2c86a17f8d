"""Before a merge: how the changes get on. After it: what it is worth, and weights that were chosen by measuring."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scaler_wizard.cli import app
from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.hops import two_hops
from scaler_wizard.judging import Answers, judge
from scaler_wizard.merge import METHODS, Method
from scaler_wizard.merge.conflicts import Conflicts, find_conflicts
from scaler_wizard.merge.knobs import knobs
from scaler_wizard.merge.recipe import WeightSearch, read_merge
from scaler_wizard.merging import MERGE, prepare
from scaler_wizard.models import EMBEDDED, load_tokenizer
from scaler_wizard.record import from_json
from scaler_wizard.searching import JUDGEMENT, Found, Try, coordinate_search, search_and_merge
from scaler_wizard.share import as_yaml, merge_pattern, read_patterns
from tiny_models import load, make


def changed(source: Path, folder: Path, change: Any) -> Path:
    """The model with `change(name, parameter)` added to every weight."""
    model = load(source)
    for name, parameter in model.named_parameters():
        parameter.data += change(name, parameter)
    model.save_pretrained(folder)
    return folder


def task(base: Path, *models: Path, **general: Any) -> Method:
    listed = [{"model": str(model), "weight": 0.5} for model in models]
    return read_merge({"method": "task_arithmetic", "base": str(base), "models": listed, **general}, "recipe", METHODS)


# -- before -----------------------------------------------------------------------------------------------------------


def conflicts(base: Path, *models: Path) -> Conflicts:
    ready = prepare(task(base, *models))
    return find_conflicts(ready.method, ready.parents)


def noise(seed: int, size: float) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda name, parameter: torch.randn(parameter.shape, generator=generator) * size


def test_opposite_changes_cancel_and_equal_ones_agree(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    one = changed(base, tmp_path / "one", noise(1, 0.02))
    twice = changed(base, tmp_path / "twice", noise(1, 0.04))
    against = changed(base, tmp_path / "against", noise(1, -0.02))
    other = changed(base, tmp_path / "other", noise(2, 0.02))
    agree, undo, apart = (conflicts(base, one, model) for model in (twice, against, other))
    assert agree.cosines[0][1] == pytest.approx(1, abs=1e-4) and agree.sizes[1] == pytest.approx(
        2 * agree.sizes[0], rel=1e-3
    )
    assert all(part.agreement > 0.999 and part.kept > 0.999 for part in agree.parts)
    assert undo.cosines[0][1] == pytest.approx(-1, abs=1e-4)
    assert all(part.agreement < 0.001 and part.kept < 0.001 for part in undo.parts)
    assert abs(apart.cosines[0][1]) < 0.05
    whole = [part for part in apart.parts if part.part == "feed-forward"]
    assert len(whole) == 3 and all(0.45 < part.agreement < 0.55 for part in whole)


def test_conflicts_are_drawn_by_the_command(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    models = [changed(base, tmp_path / str(seed), noise(seed, 0.02)) for seed in (1, 2)]
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": task(base, *models).model_dump(mode="json", exclude_none=True)}))
    answer = CliRunner().invoke(app, ["merge", str(file), "--conflicts", str(tmp_path / "heat.png")])
    assert answer.exit_code == 0 and "layer 2 feed-forward" in answer.output
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_base_there_are_no_changes_to_compare(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    one = changed(base, tmp_path / "one", noise(1, 0.02))
    ready = prepare(read_merge({"method": "linear", "models": [{"model": str(m)} for m in (base, one)]}, "r", METHODS))
    with pytest.raises(ScalerError, match="of one base"):
        find_conflicts(ready.method, ready.parents)


# -- after ------------------------------------------------------------------------------------------------------------


def read(mean: float, *, right: float = 0.5, spread: float = 0.01, seed: int = 0) -> tuple[Any, Any]:
    """Losses and accuracies of 40 windows."""
    noise = np.random.default_rng(seed).standard_normal((2, 40)) * spread
    return mean + noise[0], right + noise[1]


def answers(**domains: Any) -> Answers:
    return Answers({name: one[0] for name, one in domains.items()}, {name: one[1] for name, one in domains.items()})


PARENTS = {
    "coder": answers(code=read(2.0, right=0.6), prose=read(3.5, right=0.3)),
    "writer": answers(code=read(2.8, right=0.4), prose=read(3.0, right=0.5)),
}


def test_as_good_as_the_best_parent_everywhere_is_one() -> None:
    found = judge(answers(code=read(2.0, right=0.6), prose=read(3.0, right=0.5)), PARENTS)
    assert found.vibe.value == pytest.approx(1)
    assert [measure.best for one in found.domains for measure in one.measures] == ["coder", "coder", "writer", "writer"]
    assert "loses to no best parent" in found.sentence and "beats it nowhere" in found.sentence


def test_a_merge_that_loses_says_so() -> None:
    found = judge(answers(code=read(2.0, right=0.6), prose=read(3.2, right=0.5, seed=1)), PARENTS)
    assert "loses to the best parent in 1 of 2 domains, most on prose, by 0." in found.sentence
    assert found.vibe.value == pytest.approx((1 + (np.exp(-0.2) + 1) / 2) / 2, abs=3e-3)
    assert found.vibe.low < found.vibe.value <= found.vibe.high
    assert [one.name for one in found.losing] == ["prose"]


def test_accuracy_counts_beside_the_loss() -> None:
    found = judge(answers(code=read(2.0, right=0.45), prose=read(3.0, right=0.5)), PARENTS)
    assert found.domains[0].measures[1].kept == pytest.approx(0.75, abs=5e-3)
    assert found.vibe.value == pytest.approx((1 + 0.75) / 2 / 2 + 0.5, abs=5e-3)
    assert "most on code, by 15.0 points of accuracy" in found.sentence


def test_only_significant_gains_are_credited() -> None:
    clear = judge(answers(code=read(1.9, right=0.6), prose=read(3.2, right=0.5)), PARENTS)
    assert clear.domains[0].measures[0].credit == pytest.approx(np.exp(0.1) - 1, abs=1e-3)
    assert clear.vibe.value == pytest.approx(((np.exp(0.1) + 1) / 2 + (np.exp(-0.2) + 1) / 2) / 2, abs=1e-3)
    chance = judge(answers(code=read(1.98, right=0.6, spread=0.5, seed=3), prose=read(3.2)), PARENTS)
    assert chance.domains[0].measures[0].credit == 0.0
    everywhere = judge(answers(code=read(1.5, right=0.8), prose=read(2.5, right=0.7)), PARENTS)
    assert everywhere.vibe.value == 1.0  # never above


def test_interference_is_the_lost_share_of_the_gain_over_the_base() -> None:
    base = answers(code=read(3.0), prose=read(3.6))
    found = judge(answers(code=read(2.25), prose=read(3.0)), PARENTS, base=base)
    assert [one.interference for one in found.domains] == [pytest.approx(0.25, abs=1e-3), pytest.approx(0, abs=1e-3)]
    assert judge(answers(code=read(2.25), prose=read(3.0)), PARENTS).domains[0].interference is None


def test_questions_that_even_the_best_parent_guesses_do_not_count() -> None:
    def asked(share: float) -> Answers:
        return Answers({}, {"two hops": np.array([1.0] * int(80 * share) + [0.0] * (80 - int(80 * share)))})

    text = answers(code=read(2.0))
    guessing, knowing = asked(0.25), asked(0.9)
    both = {key: Answers(text.losses, {**text.right, **one.right}) for key, one in (("g", guessing), ("k", knowing))}
    chances = {"two hops": 0.25}
    ignored = judge(both["g"], {"parent": both["g"]}, chances=chances)
    assert not ignored.domains[1].counts and ignored.vibe.value == pytest.approx(1)
    lost = judge(both["g"], {"parent": both["k"]}, chances=chances)
    assert lost.domains[1].loses and lost.vibe.value == pytest.approx((1 + 20 / 72) / 2, abs=1e-3)


def test_two_hops_are_answered_from_the_text_alone() -> None:
    for question in two_hops(20, seed=3):
        asked = question.prompt.rpartition(" So ")[2].split("'")[0]
        friend = re.search(rf"{asked} works with (\w+)\.", question.prompt)[1]  # type: ignore[index]
        assert f"{friend} lives in {question.choices[question.right]}." in question.prompt
        assert len(set(question.choices)) == 4


# -- searching --------------------------------------------------------------------------------------------------------


def test_the_search_finds_weights_within_its_tries(tmp_path: Path) -> None:
    method = task(Path("base"), Path("one"), Path("two"))
    assert [knob.name for knob in knobs(method)] == ["scale", "one", "two"]

    def score(candidate: Method) -> Try:
        one, two = (model.weight * candidate.scale for model in candidate.models)  # type: ignore[attr-defined]
        return Try(weights={}, kept={}, score=-((one - 0.9) ** 2) - (two - 0.35) ** 2)

    seen, best = coordinate_search(method, score, tries=60)
    assert len(seen) <= 60 and seen[best][1].score > -0.005
    assert seen[0][0] == method
    high = task(Path("base"), Path("one"), Path("two"), scale=4.0)
    few, best = coordinate_search(high, score, tries=5)
    assert few[best][0].scale < 1.5  # type: ignore[attr-defined]  # how much of everything is found first
    few, best = coordinate_search(method, score, tries=5)
    assert len(few) == 5 and few[best][1].score == max(one.score for _, one in few)
    none, _ = coordinate_search(method, score, tries=60, expired=lambda: True)
    assert len(none) == 1


def test_weights_are_chosen_on_calibration_text_and_judged_on_other_text(tmp_path: Path) -> None:
    texts = {
        "rain": "The rain falls on the town and the town sleeps. ",
        "sums": "two and two is four, four and one is five; ",
    }
    for name, text in texts.items():
        words = text.split()
        order = np.random.default_rng(len(name)).integers(0, len(words), 6000)
        (tmp_path / f"{name}.txt").write_text(" ".join(words[number] for number in order))
    experts = [expert(tmp_path / f"{name}.txt", tmp_path / name) for name in texts]
    merge = {"method": "task_arithmetic", "base": "embedded"}
    merge |= {"models": [{"model": str(one), "weight": 0.2} for one in experts]}  # type: ignore[dict-item]
    search = {"texts": {name: str(tmp_path / f"{name}.txt") for name in texts}, "tries": 12, "length": 32}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": merge, "search": search}))

    answer = CliRunner().invoke(app, ["merge", str(file), "-o", str(tmp_path / "out")])

    assert answer.exit_code == 0, answer.output
    found = Found.read(from_json((tmp_path / "out" / JUDGEMENT).read_text()), "judgement")
    assert 2 <= len(found.tries) <= 12 and found.tries[found.best].score > found.tries[0].score
    recipe = from_json((tmp_path / "out" / MERGE).read_text())["recipe"]
    assert [model["weight"] for model in recipe["models"]] == list(found.tries[found.best].weights.values())[1:]
    assert {one.name for one in found.judgement.domains} == {*texts, "two hops"}
    assert found.judgement.vibe.low <= found.judgement.vibe.value <= 1
    assert found.judgement.sentence in answer.output
    shared = merge_pattern(tmp_path / "out")
    assert (shared.family, shared.merge.method, shared.merge.parents) == ("llama", "task_arithmetic", 3)
    assert "rain" not in as_yaml(shared) and str(tmp_path) not in as_yaml(shared)
    (tmp_path / "patterns").mkdir()
    (tmp_path / "patterns" / "one.yaml").write_text(as_yaml(shared))
    (tmp_path / "patterns" / "two.yaml").write_text(as_yaml(shared) + "note: hello\n")
    good, bad = read_patterns(tmp_path / "patterns")
    assert good == {"one.yaml": shared} and "no such field" in bad["two.yaml"]


def expert(text: Path, folder: Path) -> Path:
    """The embedded model after some steps on one text."""
    model, tokenizer = load(EMBEDDED, "float32").train(), load_tokenizer(EMBEDDED)
    ids = torch.tensor(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(25):
        start = step * 512 % (len(ids) - 512)
        batch = ids[start : start + 512].view(8, 64)
        model(batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    return folder


def test_a_merge_without_weights_is_not_searched(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    models = [changed(base, tmp_path / str(seed), noise(seed, 0.02)) for seed in (1, 2)]
    block = {"method": "model_stock", "base": str(base), "models": [{"model": str(model)} for model in models]}
    with pytest.raises(ScalerError, match="no single weights to turn"):
        search_and_merge(read_merge(block, "r", METHODS), WeightSearch(texts={"kjv": "kjv"}), tmp_path / "out")
