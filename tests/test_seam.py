"""Repeating layers is measured before it is done: the cheapest are chosen, and the costs are the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import scaler
from scaler_wizard.architecture import read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.seam import RepeatCosts, repeat_costs
from scaler_wizard.grow import DuplicateLayers, IdentityBlocks, grow_program
from scaler_wizard.hardware import detect
from scaler_wizard.models import EMBEDDED, resolve
from scaler_wizard.phases import Grow, Plan, Train
from scaler_wizard.plan import make_plan
from scaler_wizard.recipe import Distil, Recipe
from scaler_wizard.run import Run
from scaler_wizard.weights import write
from tiny_models import load, make

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8, 2, 8, 1, 8]]


def loss(folder: Path) -> float:
    model = load(folder)
    total = 0.0
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        with torch.inference_mode():
            total += float(model(tokens, labels=tokens).loss) * (len(prompt) - 1)
    return total / sum(len(prompt) - 1 for prompt in PROMPTS)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "olmo2", "smollm3", "mixtral"])
def test_the_measured_cost_is_what_the_repeated_layer_costs(tmp_path: Path, family: str) -> None:
    make(tmp_path, family)
    costs = repeat_costs(load(tmp_path), PROMPTS)
    assert costs.nll == pytest.approx(loss(tmp_path), abs=1e-5)
    for layer in range(3):
        program = grow_program(read_architecture(tmp_path), [DuplicateLayers(layers=(layer,))])
        write(program, tmp_path / str(layer), durable=False)
        assert costs.nll + costs.rises[layer] == pytest.approx(loss(tmp_path / str(layer)), abs=1e-4)


def test_the_cheapest_layers_are_chosen_in_the_order_of_the_model() -> None:
    assert RepeatCosts(nll=3.0, rises=(0.9, 0.1, 0.5, 0.1, 0.2)).cheapest(3) == (1, 3, 4)


def test_grow_repeats_the_layers_that_were_measured_to_cost_least(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scaler_wizard", "grow", "embedded", "--to", "1.2x", "-o", str(tmp_path / "out")]
    said = subprocess.run([*command, "--allow", "duplicate_layers"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    growth = json.loads((tmp_path / "out/growth.json").read_text())
    assert growth["preserves"] == "no" and growth["operators"][0]["op"] == "duplicate_layers"
    assert "cost least of 4" in said.stderr and "must be healed" in said.stdout


# -- in a run ---------------------------------------------------------------------------------------------------------


def plan(tmp_path: Path, **wishes: Any) -> Plan:
    base = read_architecture(EMBEDDED)
    return make_plan(Recipe(model="embedded", **wishes), resolve("embedded"), base, detect(tmp_path))


def trainings(made: Plan) -> dict[str, Train]:
    return {phase.name: phase.change for phase in made.phases if isinstance(phase.change, Train)}


def test_a_plan_that_repeats_layers_measures_them_and_heals_on_the_base_first(tmp_path: Path) -> None:
    made = plan(tmp_path, parameters="1.2x", allow=("duplicate_layers",))
    assert next(phase.change for phase in made.phases if isinstance(phase.change, Grow)).cheapest
    assert trainings(made)["heal"].distil == Distil(teacher="base", first=0.5)
    kept = plan(tmp_path, parameters="1.2x")
    assert trainings(kept)["heal"].distil is None
    assert not next(phase.change for phase in kept.phases if isinstance(phase.change, Grow)).cheapest


def test_a_changed_model_is_healed_before_its_window_grows_and_the_teacher_that_was_named_stays(tmp_path: Path) -> None:
    wish = {"distil": {"teacher": "base", "weight": 0.9}, "tokens": "100K"}
    made = plan(tmp_path, parameters="1.4x", context="2x", allow=("stack_layers",), heal=wish)
    assert [phase.name for phase in made.phases][1:5] == ["grow", "heal-first", "extend-256", "heal"]
    first = trainings(made)["heal-first"]
    assert (first.target, first.distil) == (128, Distil(teacher="base", weight=0.9))


def test_a_growth_that_nothing_mends_is_said_aloud(tmp_path: Path) -> None:
    made = plan(tmp_path, parameters="1.2x", allow=("duplicate_layers",), heal=False)
    assert any("nothing mends it" in note for note in made.notes)


def test_a_plan_says_where_the_base_is_no_teacher_for_a_changed_model(tmp_path: Path) -> None:
    source = resolve(str(make(tmp_path / "capped", "gemma2")))
    wish = Recipe(model=str(source.folder), parameters="1.3x", allow=("duplicate_layers",))
    made = make_plan(wish, source, read_architecture(source.folder), detect(tmp_path))
    assert any("healed on text alone" in note for note in made.notes)
    assert trainings(made)["heal"].distil is None
    assert not any(
        "text alone" in note for note in plan(tmp_path, parameters="1.2x", allow=("duplicate_layers",)).notes
    )


def test_a_run_remembers_which_layers_it_repeated(tmp_path: Path) -> None:
    made = plan(tmp_path, parameters="1.2x", allow=("duplicate_layers",))
    (named,) = made.grown_by("001-grow", {})
    done = DuplicateLayers(layers=(3,))
    assert named != done and made.grown_by("000-baseline", {}) == () == made.grown_by(None, {})
    assert made.grown_by("002-heal", {"001-grow": {"operators": [done.model_dump(mode="json")]}}) == (done,)


def test_only_repeated_layers_can_be_measured() -> None:
    blocks = IdentityBlocks(blocks=1).model_dump()
    with pytest.raises(ScalerError, match="duplicate_layers as the first"):
        Grow.read({"operators": [blocks], "parameters": 9, "cheapest": True}, "plan")


@pytest.mark.e2e
def test_a_run_repeats_the_cheapest_layers_and_heals_most_of_what_that_cost(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: embedded\nparameters: 1.4x\nallow: [duplicate_layers]\nheal: {tokens: 98304, control: false}\n"
        "measure: {windows: 4, needles: 8}\nlimits: {threads: 1}\ngate: {short_regression: 9}\n"
    )
    runs = tmp_path / "runs"
    command = ("run", recipe, "--runs", runs, "--sign", "Ada", "--approve-within-limits")
    said = scaler(*command, SCALER_CACHE=str(tmp_path / "cache"))
    assert said.returncode == 0, said.stderr
    run = Run(next(runs.iterdir()))
    grown, healed = (row.data for row in run.committed()[1:3])
    costs = RepeatCosts.read(grown["evidence"]["repeating"], "costs")
    (done,) = grown["evidence"]["operators"]
    assert tuple(done["layers"]) == costs.cheapest(len(done["layers"])) and len(costs.rises) == 4
    base = run.committed()[0].data["measurement"]["short_nll"]
    jump, left = (row["measurement"]["short_nll"] - base for row in (grown, healed))
    assert jump > 0.1 and left < 0.5 * jump
    assert f"layers {tuple(done['layers'])}" in (run.checkpoints / run.current / "README.md").read_text()
