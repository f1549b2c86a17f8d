from pathlib import Path

import pytest
import torch

from scaler_wizard.architecture import read_architecture as view_of
from scaler_wizard.estimate import rank_parameters
from scaler_wizard.fused import fuse_adapters
from scaler_wizard.lora import Kind, add_lora, merge_lora, moved_lora, spectrum_ranks, spread
from tiny_models import load, make

IDS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def shaken(folder: Path, dtype: str = "float32", family: str = "llama") -> torch.nn.Module:
    """A model with adapters that say something."""
    model = add_lora(load(make(folder, family), dtype), rank=4, seed=0).to(getattr(torch, dtype))
    for module in model.modules():
        module.__dict__.pop("forward", None)  # as PEFT computes it
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model.eval()


def test_new_adapters_leave_the_function_as_it_was_and_are_all_that_learns(tmp_path: Path) -> None:
    base = load(make(tmp_path), "float32")
    before = logits(base)
    model = add_lora(base, rank=4, seed=0)
    assert torch.equal(logits(model), before)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning and all("lora_" in name for name in learning)
    assert len(learning) == 3 * 7 * 2  # three layers of seven matrices, two factors each; none on the head
    assert sum(one.numel() for one in model.parameters() if one.requires_grad) == 4 * rank_parameters(view_of(tmp_path))


def test_the_merged_model_is_stock_and_says_the_same(tmp_path: Path) -> None:
    model = shaken(tmp_path)
    before = logits(model)
    assert not torch.allclose(before, logits(load(tmp_path, "float32")), atol=0.1)
    merged = merge_lora(model, IDS)
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-4)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in load(tmp_path).named_parameters()}


def test_a_merge_that_would_change_the_function_is_refused(tmp_path: Path) -> None:
    model = shaken(tmp_path)
    model.base_model.model.model.layers[0].mlp.up_proj.base_layer.to(torch.bfloat16).to(torch.float32)
    for layer in model.base_model.model.model.layers:
        layer.mlp.up_proj.base_layer.to(torch.bfloat16)  # too coarse to hold the sum
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(AssertionError, match="changed a logit"):
        merge_lora(model, IDS)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_the_fused_function_and_its_gradients_are_those_of_peft(tmp_path: Path, family: str) -> None:
    model = shaken(tmp_path, "float64", family).train()
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chance = torch.rand(2, 16, 64)

    def run() -> list[torch.Tensor]:
        found = model(IDS).logits
        return [found, *torch.autograd.grad((found * chance).sum(), leaves)]

    theirs = run()
    assert fuse_adapters(model) == 3 * 7
    for mine, other in zip(run(), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)  # norms and softmax of the model are fp32


def test_layers_that_read_the_same_text_keep_one_copy_of_it_and_a_gated_one_keeps_two_halves(tmp_path: Path) -> None:
    model = shaken(tmp_path).train()
    plain = kept_bytes(model)
    fuse_adapters(model)
    assert kept_bytes(model) < 0.7 * plain


def kept_bytes(model: torch.nn.Module) -> int:
    """What a forward pass in bfloat16 keeps for the backward one, without the parameters."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    many = IDS.repeat(1, 16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.base_model.model.model(many, use_cache=False)
    return sum(kept.values())


def test_adapters_that_are_switched_off_or_merged_stay_so_when_fused(tmp_path: Path) -> None:
    base = logits(load(make(tmp_path / "base"), "float32"))
    model = shaken(tmp_path / "base")
    before = logits(model)
    fuse_adapters(model)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(merge_lora(model, IDS)), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_move_to_another_copy_of_their_base(tmp_path: Path, kind: Kind) -> None:
    model = add_lora(load(make(tmp_path), "float32"), rank=4, seed=0, kind=kind)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    there = moved_lora(model, load(tmp_path, "float32"), rank=4, seed=1, kind=kind)
    assert torch.equal(logits(there.eval()), logits(model.eval()))
    assert not torch.equal(logits(there), logits(load(tmp_path, "float32")))


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "eva"])
def test_every_kind_begins_as_the_base_learns_and_merges_exactly(tmp_path: Path, kind: Kind) -> None:
    base = load(make(tmp_path), "float32")
    before = logits(base)
    model = add_lora(base, rank=4, seed=0, kind=kind, text=[IDS])
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=2e-4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        loss = model(IDS, labels=IDS).loss
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    trained = logits(model.eval())
    merged = merge_lora(model, IDS)
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(merged), trained, rtol=1e-3, atol=1e-3)


def test_adapters_that_begin_in_the_text_read_where_it_lies(tmp_path: Path) -> None:
    model = add_lora(load(make(tmp_path), "float32"), rank=4, seed=0, kind="eva", text=[IDS])
    layer = model.base_model.model.model.layers[0].mlp.gate_proj
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().flatten(0, 1)))
    logits(model)
    directions = layer.lora_A["default"].weight
    torch.testing.assert_close(directions @ directions.T, torch.eye(4), rtol=0, atol=1e-4)
    kept = (seen[0] @ directions.T).square().sum()
    assert kept > 0.98 * torch.linalg.svdvals(seen[0])[:4].square().sum()


def test_ranks_follow_the_gradient_within_the_parameters_of_the_uniform_rank(tmp_path: Path) -> None:
    base = load(make(tmp_path), "float32")
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    ranks = spectrum_ranks(base, [lambda model: model(IDS, labels=IDS).loss], rank=4)
    assert len(ranks) == 3 * 7 and len(set(ranks.values())) > 2
    assert all(torch.equal(before[name], parameter) for name, parameter in base.named_parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in base.parameters())
    uniform, spread_out = (
        trainable(add_lora(load(tmp_path, "float32"), rank=4, seed=0, ranks=r)) for r in (None, ranks)
    )
    assert 0.97 * uniform < spread_out <= uniform


def test_adapters_of_different_ranks_have_the_scale_of_the_uniform_one(tmp_path: Path) -> None:
    ranks = {"model.layers.0.mlp.up_proj": 1, "model.layers.1.mlp.up_proj": 16}
    model = add_lora(load(make(tmp_path), "float32"), rank=4, seed=0, ranks=ranks)
    found = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert found == {8.0}
    sizes = {module.r["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert sizes == {1, 4, 16}


def trainable(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_the_budget_goes_to_the_largest_singular_values_for_their_cost() -> None:
    values = {"flat": torch.tensor([1.0, 1.0, 1.0, 1.0]), "steep": torch.tensor([9.0, 0.1, 0.1, 0.1])}
    assert spread(values, {"flat": 10, "steep": 10}, rank=2) == {"flat": 3, "steep": 1}
    assert spread(values, {"flat": 30, "steep": 10}, rank=1) == {"flat": 1, "steep": 1}
