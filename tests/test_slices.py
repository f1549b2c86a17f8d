import pytest
import torch

from scaler_wizard.slices import Sliced, rectangles, runs
from scaler_wizard.train import learn_only


def claimed(shape: tuple[int, ...], spans: list[tuple[int, int, int]]) -> torch.Tensor:
    """How many rectangles claim each number."""
    found = torch.zeros(shape, dtype=torch.int64)
    for place in rectangles(shape, spans):
        found[place] += 1
    return found


@pytest.mark.parametrize(
    ("shape", "spans"),
    [
        ((6,), [(0, 2, 4)]),
        ((6, 4), [(0, 4, 6), (1, 3, 4)]),
        ((6, 4), [(0, 0, 1), (0, 4, 6), (1, 1, 2), (1, 3, 4)]),
        ((6, 4), [(0, 0, 6), (1, 0, 4)]),
        ((3, 6, 4), [(1, 4, 6), (2, 0, 2)]),
        ((1, 1), [(0, 0, 1)]),
    ],
)
def test_rectangles_claim_what_the_spans_cover_once(shape: tuple[int, ...], spans: list[tuple[int, int, int]]) -> None:
    covered = torch.zeros(shape, dtype=torch.bool)
    for dim, start, stop in spans:
        covered.narrow(dim, start, stop - start).fill_(True)
    assert torch.equal(claimed(shape, spans), covered.long())


def test_overlapping_and_touching_spans_are_one_run() -> None:
    assert runs(8, [(1, 3), (2, 5), (5, 6)]) == ([slice(1, 6)], [slice(0, 1), slice(6, 8)])
    assert runs(3, []) == ([], [slice(0, 3)])


def test_gradients_add_up_in_the_slices_and_the_whole_keeps_none() -> None:
    whole = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    sliced, inputs = Sliced(whole, [(0, 2, 3), (1, 3, 4)]), torch.rand(5, 4)
    for _ in range(2):
        (inputs @ whole.T).pow(2).sum().backward()
    alone = whole.detach().clone().requires_grad_()
    (2 * (inputs @ alone.T).pow(2).sum()).backward()
    assert whole.grad is None and alone.grad is not None
    for own, place in zip(sliced.own, rectangles(whole.shape, [(0, 2, 3), (1, 3, 4)]), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad, alone.grad[place])


def test_what_is_learnt_goes_into_the_tensor_and_the_rest_keeps_its_bits() -> None:
    whole = torch.nn.Parameter(torch.rand(6, 4))
    before, sliced = whole.detach().clone(), Sliced(whole, [(0, 4, 6), (1, 0, 1)])
    with torch.no_grad():
        for own in sliced.own:
            own.add_(1)
    sliced.write()
    assert torch.equal(whole[:4, 1:], before[:4, 1:])
    assert torch.equal(whole[4:], before[4:] + 1) and torch.equal(whole[:4, :1], before[:4, :1] + 1)


def test_a_restored_tensor_is_read_again() -> None:
    whole = torch.nn.Parameter(torch.zeros(2, 2))
    sliced = Sliced(whole, [(0, 1, 2)])
    with torch.no_grad():
        whole.fill_(7)
    sliced.read()
    assert torch.equal(sliced.own[0], torch.full((1, 2), 7.0))


def test_only_the_named_tensors_learn() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    sliced = learn_only(model, {"0.weight": None, "1.weight": ((0, 2, 4),)})
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["0.weight", "1.weight"]
    assert [part.shape for one in sliced for part in one.own] == [(2, 4)]
    assert learn_only(model, None) == [] and all(one.requires_grad for one in model.parameters())
