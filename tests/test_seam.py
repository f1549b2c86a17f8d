"""Repeating layers is measured before it is done: the cheapest are chosen, and the costs are the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scaler_wizard.architecture import read_architecture
from scaler_wizard.evals.seam import RepeatCosts, repeat_costs
from scaler_wizard.grow import DuplicateLayers, grow_program
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
