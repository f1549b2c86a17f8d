import pytest
import torch
from torch.nn import functional

from scaler_wizard.distill import Divergence, Hidden, Likeliest, distilled_loss

TOKENS, VOCABULARY = 700, 50  # two pieces


@pytest.fixture
def student() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, 8, generator=chance, dtype=torch.float64).requires_grad_()
    head = torch.randn(VOCABULARY, 8, generator=chance, dtype=torch.float64).requires_grad_()
    return hidden, head, torch.randint(VOCABULARY, (TOKENS,), generator=chance)


@pytest.fixture
def teacher() -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    states = torch.randn(TOKENS, 5, generator=chance, dtype=torch.float64)
    return states, torch.randn(VOCABULARY, 5, generator=chance, dtype=torch.float64)


def reference(kind: str, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """By torch's own divergence, and its own gradients."""
    if kind == "forward":
        return functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    if kind == "reverse":
        return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    parts = (functional.kl_div(log_m, one, reduction="batchmean", log_target=True) for one in (log_p, log_q))
    return sum(parts) / 2  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_and_its_gradients_are_those_of_full_logits(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, torch.Tensor],
    kind: Divergence,
    temperature: float,
    weight: float,
) -> None:
    hidden, head, targets = student
    logits, theirs = hidden @ head.T, teacher[0] @ teacher[1].T
    soft = reference(kind, *(functional.log_softmax(one / temperature, dim=-1) for one in (logits, theirs)))
    wanted = (1 - weight) * functional.cross_entropy(logits, targets) + weight * temperature**2 * soft
    view = Hidden(*teacher, temperature=temperature, kind=kind)
    found = distilled_loss(hidden, head, targets, view, weight=weight, temperature=temperature)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    ours, others = (torch.autograd.grad(loss * 2.0, (hidden, head)) for loss in (found, wanted))
    for mine, other in zip(ours, others, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-12)


def likeliest(teacher: tuple[torch.Tensor, torch.Tensor], k: int) -> Likeliest:
    log_q, tokens = functional.log_softmax(teacher[0] @ teacher[1].T, dim=-1).topk(k, dim=-1)
    return Likeliest(tokens, log_q)


def test_the_rest_of_the_probability_is_one_more_outcome_with_the_right_gradient(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, torch.Tensor]
) -> None:
    hidden, head, targets = student
    view = likeliest(teacher, 7)
    top = functional.log_softmax(hidden @ head.T, dim=-1).gather(1, view.tokens)
    outcomes = [torch.cat([one.exp(), 1 - one.exp().sum(1, keepdim=True)], dim=1).log() for one in (top, view.log_q)]
    wanted = functional.kl_div(outcomes[0], outcomes[1], reduction="batchmean", log_target=True)
    found = distilled_loss(hidden, head, targets, view, weight=1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    for mine, other in zip(*(torch.autograd.grad(one, (hidden, head)) for one in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-12)


def test_nearly_all_tokens_give_nearly_the_exact_gradient(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, torch.Tensor]
) -> None:
    hidden, head, targets = student
    views = [Hidden(*teacher), likeliest(teacher, VOCABULARY - 1), likeliest(teacher, 5)]
    exact, many, few = (
        torch.autograd.grad(distilled_loss(hidden, head, targets, view, weight=1.0), hidden)[0].flatten()
        for view in views
    )
    torch.testing.assert_close(many, exact, rtol=1e-6, atol=1e-10)
    assert 0.9 < functional.cosine_similarity(few, exact, dim=0) < 0.9999


def test_a_frozen_head_and_narrow_products_work(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, torch.Tensor]
) -> None:
    hidden, head = student[0].detach().float().requires_grad_(), student[1].detach().float()
    view = Hidden(*(part.float() for part in teacher))
    exact = distilled_loss(hidden, head, student[2], view, weight=0.5)
    narrow = distilled_loss(hidden, head, student[2], view, weight=0.5, dtype=torch.bfloat16)
    torch.testing.assert_close(narrow, exact, rtol=1e-2, atol=0)
    ours, theirs = (torch.autograd.grad(one, hidden)[0].flatten() for one in (narrow, exact))
    assert functional.cosine_similarity(ours, theirs, dim=0) > 0.999
