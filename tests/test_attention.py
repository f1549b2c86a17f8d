from pathlib import Path

import pytest
import torch

from scaler_wizard.attention import by_piece
from scaler_wizard.recompute import recompute
from tiny_models import FAMILIES, load, make

PIECES = (13, 9, 9, 1, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_in_one_row_are_read_as_if_each_stood_alone(tmp_path: Path, family: str) -> None:
    model = load(make(tmp_path, family))
    ids = torch.randint(0, 64, (1, sum(PIECES)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in PIECES])[None]
    with torch.no_grad(), by_piece(model):
        together = model(input_ids=ids, position_ids=positions, pieces=PIECES, use_cache=False).logits[0]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        apart = [model(part, use_cache=False).logits[0] for part in ids.split(PIECES, dim=1)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_separate_texts_also_when_activations_are_made_again(tmp_path: Path) -> None:
    model = load(make(tmp_path)).train()
    ids = torch.randint(0, 64, (1, sum(PIECES)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in PIECES])[None]
    weights = torch.rand(sum(PIECES), 64)

    def flat() -> list[torch.Tensor]:
        with by_piece(model):
            logits = model(input_ids=ids, position_ids=positions, pieces=PIECES, use_cache=False).logits[0]
            model.zero_grad()
            (logits * weights).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    apart = torch.cat([model(part, use_cache=False).logits[0] for part in ids.split(PIECES, dim=1)])
    theirs = torch.autograd.grad((apart * weights).sum(), list(model.parameters()))
    plain = flat()
    recompute(model.model.layers)
    for mine, again, other in zip(plain, flat(), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again, mine, rtol=1e-4, atol=1e-4)


def test_the_model_attends_as_before_afterwards(tmp_path: Path) -> None:
    model = load(make(tmp_path))
    ids = torch.arange(12)[None]
    before = model(ids).logits
    with pytest.raises(ZeroDivisionError), by_piece(model):
        _ = 1 / 0
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
