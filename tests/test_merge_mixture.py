"""Dense fine-tunes become a mixture that stock transformers runs; its routers know the experts' prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from scaler_wizard.cli import app
from scaler_wizard.errors import ScalerError
from scaler_wizard.mixture import GAP, Mixture, mix_models
from scaler_wizard.models import EMBEDDED, load_tokenizer
from tiny_models import load, logits, make

PROMPTS = ("The code of Adam is 4711.", "In the beginning God created the heaven and the earth.")


def tuned(source: Path, folder: Path, seed: int) -> Path:
    model, generator = load(source), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_equal_experts_are_the_dense_model(tmp_path: Path, family: str) -> None:
    base = make(tmp_path / "base", family)
    recipe = Mixture.read({"base": str(base), "experts": [{"model": str(base)}] * 3, "active": 2}, "recipe")
    mix_models(recipe, tmp_path / "out")
    assert load(tmp_path / "out").config.model_type == ("qwen2_moe" if family == "qwen2" else "mixtral")
    assert torch.allclose(logits(base), logits(tmp_path / "out"), atol=1e-4)


def test_a_zero_router_gives_all_experts_the_same_weight(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    experts = [tuned(base, tmp_path / str(seed), seed) for seed in range(2)]
    block = {"base": str(base), "experts": [{"model": str(one)} for one in experts], "router": "zero"}
    mix_models(Mixture.read(block, "recipe"), tmp_path / "out")
    layer = load(tmp_path / "out").model.layers[1]
    hidden = torch.randn(1, 5, 32)
    mixed = layer.mlp(hidden)
    mean = sum(load(one).model.layers[1].mlp(hidden) for one in experts) / 2
    assert torch.allclose(mixed[0] if isinstance(mixed, tuple) else mixed, mean, atol=1e-5)


def test_a_router_sends_the_prompts_to_their_experts(tmp_path: Path) -> None:
    experts = [tuned(EMBEDDED, tmp_path / str(seed), seed) for seed in range(2)]
    pairs = zip(experts, PROMPTS, strict=True)
    block = {
        "base": "embedded",
        "experts": [{"model": str(one), "prompts": [text]} for one, text in pairs],
        "active": 1,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"merge": block}))
    answer = CliRunner().invoke(app, ["merge", str(file), "-o", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output

    routers = [load_file(tmp_path / "out/model.safetensors")[name] for name in _router_names(tmp_path / "out")]
    base, tokenizer = load(EMBEDDED, "float32"), load_tokenizer(EMBEDDED)
    states: list[torch.Tensor] = []
    for layer in base.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][0]))
    for expert, prompt in enumerate(PROMPTS):
        states.clear()
        with torch.inference_mode():
            base(**tokenizer(prompt, return_tensors="pt"))
        means = [(state @ router.float().T).mean(0) for state, router in zip(states, routers, strict=True)]
        assert all(int(mean.argmax()) == expert for mean in means)
        assert np.isclose(np.mean([float(mean[expert] - mean.mean()) for mean in means]), GAP, rtol=0.15)


def test_routers_learn_and_nothing_else_does(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model = load(EMBEDDED)
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.data.zero_()
    model.save_pretrained(broken)
    block: dict[str, object] = {
        "base": "embedded",
        "experts": [{"model": str(broken)}, {"model": "embedded"}],
        "active": 2,
        "router": "zero",
    }
    untrained = mix_models(Mixture.read(block, "recipe"), tmp_path / "untrained")
    block["train"] = {"steps": 20, "length": 64, "learning_rate": 0.02}
    trained = mix_models(Mixture.read(block, "recipe"), tmp_path / "trained")
    losses = trained.lineage.router_losses
    assert untrained.lineage.router_losses is None
    assert losses is not None and losses.after < losses.before - 0.05  # the broken expert is asked less
    before, after = (load_file(folder / "model.safetensors") for folder in (untrained.folder, trained.folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(_router_names(trained.folder))
    assert not (trained.folder / "routers.safetensors").exists()


def _router_names(folder: Path) -> list[str]:
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith("gate.weight")]
    return sorted(names, key=lambda name: int(name.split(".")[2]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"active": 3}, "3 of 2 experts cannot be active"),
        ({"router": "zero", "active": 1}, "the same experts"),
        ({"router": "hidden"}, "needs `prompts` for every expert"),
        ({"actve": 2}, "did you mean active"),
        ({"active": 1, "train": {"steps": 2}}, "nothing is learnt"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    block = {"base": "embedded", "experts": [{"model": "embedded"}, {"model": "embedded"}], **changes}
    with pytest.raises(ScalerError, match=said):
        Mixture.read(block, "recipe")


def test_experts_of_another_base_are_refused(tmp_path: Path) -> None:
    base, stranger = make(tmp_path / "base"), make(tmp_path / "stranger", seed=5)
    block = {"base": str(base), "experts": [{"model": str(base)}, {"model": str(stranger)}]}
    with pytest.raises(ScalerError, match="no common ancestor"):
        mix_models(Mixture.read(block, "recipe"), tmp_path / "out")


def test_other_families_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base", "qwen3")
    with pytest.raises(ScalerError, match="mixture of qwen3 models"):
        mix_models(Mixture.read({"base": str(base), "experts": [{"model": str(base)}] * 2}, "r"), tmp_path / "out")
