import pytest
import torch
from torch.nn import functional

from scaler_wizard.losses import linear_cross_entropy

TOKENS, HIDDEN, VOCABULARY = 1100, 12, 37  # three pieces, the last one shorter


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=chance, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=chance, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=chance)
    return (
        hidden.requires_grad_(),
        weight.requires_grad_(),
        targets,
        torch.rand(TOKENS, generator=chance, dtype=torch.float64),
    )


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss * 3.0, leaves))


@pytest.mark.parametrize("softcap", [None, 2.5])
def test_loss_and_gradients_are_those_of_torch(inputs: tuple[torch.Tensor, ...], softcap: float | None) -> None:
    hidden, weight, targets, _ = inputs
    logits = hidden @ weight.T
    theirs = functional.cross_entropy(logits if softcap is None else softcap * torch.tanh(logits / softcap), targets)
    ours = linear_cross_entropy(hidden, weight, targets, softcap=softcap)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)


def test_tokens_count_as_much_as_their_weights_say(inputs: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, weights = inputs
    each = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    theirs = (each * weights).sum() / weights.sum()
    ours = linear_cross_entropy(hidden, weight, targets, weights=weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)


def test_a_frozen_head_gets_no_gradient_and_costs_none(inputs: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, _ = inputs
    frozen = weight.detach()
    (mine,) = gradients(linear_cross_entropy(hidden, frozen, targets), hidden)
    (theirs,) = gradients(functional.cross_entropy(hidden @ frozen.T, targets), hidden)
    torch.testing.assert_close(mine, theirs)


def test_products_in_bfloat16_stay_near_those_in_fp32(inputs: tuple[torch.Tensor, ...]) -> None:
    hidden, weight = (part.detach().float().requires_grad_() for part in inputs[:2])
    exact, rounded = (linear_cross_entropy(hidden, weight, inputs[2], dtype=d) for d in (None, torch.bfloat16))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=3e-3, atol=0)
    for mine, other in zip(gradients(rounded, hidden, weight), gradients(exact, hidden, weight), strict=True):
        assert mine.dtype == torch.float32
        assert functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.9999
