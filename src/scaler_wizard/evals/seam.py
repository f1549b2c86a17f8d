"""Which layers cost least to repeat: the loss on calibration text with each layer run twice (SOLAR's seam, measured).

`python -m scaler_wizard.evals.seam FOLDER TOKENS.json` prints the costs. One pass of the model for each layer, with the
weights shared; costs of several repeated layers together are not measured, only added up by whoever chooses.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaler_wizard.grow import DuplicateLayers, GrowthOperator
from scaler_wizard.record import Record, to_json

if TYPE_CHECKING:
    import torch


class RepeatCosts(Record):
    """What it costs to repeat each layer of a model."""

    nll: float
    """Loss of the model as it is, nats per token."""
    rises: tuple[float, ...]
    """Rise of the loss where a layer is run twice, by layer."""

    def cheapest(self, count: int) -> tuple[int, ...]:
        """The `count` layers that cost least, in the order of the model."""
        order = sorted(range(len(self.rises)), key=lambda layer: (self.rises[layer], layer))
        return tuple(sorted(order[:count]))

    def chosen(self, operators: Sequence[GrowthOperator]) -> tuple[GrowthOperator, ...]:
        """Operators that begin with `duplicate_layers`, with the cheapest layers in the place of those it names."""
        return DuplicateLayers(layers=self.cheapest(len(_repeated(operators)))), *operators[1:]

    def sentence(self, operators: Sequence[GrowthOperator]) -> str:
        """Why these layers are repeated."""
        layers = _repeated(operators)
        worst = max(self.rises[layer] for layer in layers)
        numbers = ", ".join(map(str, layers))
        return f"Layers {numbers} cost least of {len(self.rises)}: at most {worst:+.3f} nats per token each, measured."


def _repeated(operators: Sequence[GrowthOperator]) -> tuple[int, ...]:
    first = operators[0]
    assert isinstance(first, DuplicateLayers)
    return first.layers


def repeat_costs(model: Any, prompts: Sequence[Sequence[int]]) -> RepeatCosts:
    """Measure every layer of a loaded model on prompts of token numbers."""
    import torch

    with torch.inference_mode():
        plain = _nll(model, prompts)
        rises = [_with_repeated(layer, partial(_nll, model, prompts)) - plain for layer in model.model.layers]
    return RepeatCosts(nll=plain, rises=tuple(rises))


def _with_repeated(layer: Any, measure: Callable[[], float]) -> float:
    """The measure while `layer` runs twice; `forward` is called, since calling the layer would run the hook again."""

    def again(module: Any, inputs: Any, settings: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        repeated: torch.Tensor = module.forward(output, *inputs[1:], **settings)
        return repeated

    hook = layer.register_forward_hook(again, with_kwargs=True)
    try:
        return measure()
    finally:
        hook.remove()


def _nll(model: Any, prompts: Sequence[Sequence[int]]) -> float:
    import torch

    total, count = 0.0, 0
    for prompt in prompts:
        tokens = torch.tensor([list(prompt)], device=model.device)
        logits = model(tokens, use_cache=False).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += len(prompt) - 1
    return total / count


def _main(folder: Path, prompts: list[list[int]]) -> None:
    import torch

    from scaler_wizard.models import load_model

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    sys.stdout.write(to_json(repeat_costs(load_model(folder, dtype="float32"), prompts)) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
