from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from scaler_wizard.attention import Attended, attention_shares, by_piece
from scaler_wizard.batches import Batch
from scaler_wizard.errors import ScalerError
from scaler_wizard.imitate import Imitation, Inside, pairs_of, watched
from scaler_wizard.recipe import Distil
from tiny_models import load, make

PIECES = (12, 9, 9)
BATCH = Batch(
    torch.randint(0, 64, (1, 30), generator=torch.Generator().manual_seed(0)),
    torch.cat([torch.arange(length) for length in PIECES])[None],
    PIECES,
)


def read(model: Any, batch: Batch, blocks: tuple[int, ...]) -> Inside:
    with by_piece(model), watched(model.model.layers, blocks) as inside:
        model.model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            pieces=batch.pieces,
            use_cache=False,
            seen=inside.attended,
        )
    return inside


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3_moe"])
def test_what_is_kept_is_what_the_stock_model_puts_out_and_where_it_looks(tmp_path: Path, family: str) -> None:
    model = load(make(tmp_path, family), "float32")
    inside = read(model, BATCH, (0, 1))
    start = 0
    for length in PIECES:
        model.set_attn_implementation("eager")
        stock = model(BATCH.ids[:, start : start + length], output_hidden_states=True, output_attentions=True)
        for block in (0, 1):
            kept = inside.states[block][start : start + length]
            torch.testing.assert_close(kept, stock.hidden_states[block + 1][0], rtol=1e-4, atol=1e-5)
            attended = inside.attended[block]
            assert attended is not None
            shares = attention_shares(attended, slice(start, start + length), torch.arange(length))
            torch.testing.assert_close(shares, stock.attentions[block][0].mean(dim=0), rtol=1e-4, atol=1e-5)
        start += length


def settings(**changes: Any) -> Distil:
    return Distil(keep="nothing", **{"hidden": 1.0, "attention": 1.0, **changes})


@pytest.mark.parametrize("wish", [{"hidden": 1.0, "attention": 0.0}, {"hidden": 0.0, "attention": 1.0}])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_and_another_has(tmp_path: Path, wish: Any) -> None:
    model, other = load(make(tmp_path / "a"), "float32"), load(make(tmp_path / "b", seed=5), "float32")
    how = settings(**wish)
    imitation = Imitation(how, pairs_of(how, ours=3, theirs=3), ours=32, theirs=32)
    mine = read(model, BATCH, imitation.ours)
    same = imitation(mine, mine, pieces=PIECES, taught=(True,) * 3)
    assert float(same.detach()) == pytest.approx(0.0, abs=1e-5)
    unlike = imitation(mine, read(other, BATCH, imitation.theirs), pieces=PIECES, taught=(True,) * 3)
    assert float(unlike.detach()) > 0.01


def test_a_narrow_student_is_taught_by_a_wide_teacher_with_other_heads_on_the_pieces_that_fit(tmp_path: Path) -> None:
    student = load(make(tmp_path / "s"), "float32")
    teacher = load(make(tmp_path / "t", hidden_size=64, num_attention_heads=8, num_hidden_layers=6), "float32")
    imitation = Imitation(settings(), ((1, 3), (2, 5)), ours=32, theirs=64)
    taught = Batch(BATCH.ids[:, 12:], BATCH.positions[:, 12:], PIECES[1:])
    with torch.no_grad():
        other = read(teacher, taught, imitation.theirs)
    student.train()
    optimizer = torch.optim.Adam([*student.parameters(), *imitation.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        mine = read(student, BATCH, imitation.ours)
        loss = imitation(mine, other, pieces=PIECES, taught=(False, True, True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    rows = torch.cat([imitation.projections[0](mine.states[1][12:]), imitation.projections[1](mine.states[2][12:])])
    aims = torch.cat([other.states[3], other.states[5]])
    assert functional.cosine_similarity(rows.detach(), aims).mean() > 0.5


def test_looks_are_compared_by_their_divergence() -> None:
    one, two = (Attended(torch.randn(2, 5, 4), torch.randn(1, 5, 4), 0.5, None, None) for _ in range(2))
    imitation = Imitation(settings(hidden=0.0), ((0, 0),), ours=4, theirs=4)
    mine, other = (Inside({0: torch.zeros(5, 4)}, {0: looked}) for looked in (one, two))
    p, q = (attention_shares(looked, slice(0, 5), torch.arange(1, 5)) for looked in (one, two))
    wanted = functional.kl_div((p + 1e-30).log(), q, reduction="none").sum() / 4
    torch.testing.assert_close(imitation(mine, other, pieces=(5,), taught=(True,)), wanted)


def test_blocks_pair_evenly_unless_they_are_named_and_must_exist() -> None:
    assert pairs_of(settings(), ours=8, theirs=12) == ((1, 2), (3, 5), (5, 8), (7, 11))
    assert pairs_of(settings(), ours=2, theirs=12) == ((0, 5), (1, 11))
    named = settings(layers=((0, 3),))
    assert pairs_of(named, ours=8, theirs=12) == ((0, 3),)
    assert pairs_of(named, ours=8, theirs=12, named=False) == ((1, 2), (3, 5), (5, 8), (7, 11))
    with pytest.raises(ScalerError, match="block 3: the teacher has 3 blocks"):
        pairs_of(named, ours=8, theirs=3)


@pytest.mark.parametrize(
    ("wish", "wrong"),
    [
        ({"hidden": 1.0, "keep": "states"}, "need keep: nothing"),
        ({"layers": ((0, 0),)}, "does nothing without hidden or attention"),
    ],
)
def test_wishes_that_would_do_nothing_are_refused(wish: Any, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        Distil(**wish)


def test_a_piece_of_one_token_looks_nowhere_else(tmp_path: Path) -> None:
    model = load(make(tmp_path), "float32")
    one = Batch(BATCH.ids[:, :1], BATCH.positions[:, :1], (1,))
    imitation = Imitation(settings(), ((0, 0),), ours=32, theirs=32)
    inside = read(model, one, (0,))
    assert float(imitation(inside, inside, pieces=(1,), taught=(True,)).detach()) == pytest.approx(0.0, abs=1e-6)
