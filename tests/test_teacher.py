from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from scaler_wizard.batches import Batch, targets_of
from scaler_wizard.errors import ScalerError
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer
from scaler_wizard.recipe import Distil
from scaler_wizard.teacher import Teacher, hire


def taught_by(folder: Path, **settings: Any) -> Teacher:
    """In fp32, so that only what is kept rounds."""
    teacher = hire(Distil(**settings), folder=EMBEDDED, student=load_tokenizer(EMBEDDED), cache=folder)
    teacher.model = load_model(EMBEDDED, dtype="float32")
    teacher.compute = torch.float32
    return teacher


@pytest.fixture
def batch() -> Batch:
    """A long piece, two that a window of 128 holds, one with a gap in its positions."""
    pieces = (200, 60, 40, 30)
    ids = torch.randint(0, 1024, (1, 330), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in pieces])
    positions[-10:] += 50
    return Batch(ids, positions[None], pieces)


def places(teacher: Teacher, batch: Batch) -> torch.Tensor:
    predictors, _ = targets_of(batch)
    return predictors[teacher.teaches(batch)[predictors]]


def exact(batch: Batch) -> torch.Tensor:
    """Log-probabilities of the two pieces that it can teach, all but their last tokens."""
    model, rows = load_model(EMBEDDED, dtype="float32"), []
    with torch.no_grad():
        for piece in batch.ids[:, 200:300].split([60, 40], dim=1):
            rows.append(functional.log_softmax(model(piece).logits[0, :-1], dim=-1))
    return torch.cat(rows)


def test_it_teaches_what_fits_its_window_at_plain_positions(tmp_path: Path, batch: Batch) -> None:
    teaches = taught_by(tmp_path).teaches(batch)
    assert not teaches[:200].any() and teaches[200:300].all() and not teaches[300:].any()


@pytest.mark.parametrize("keep", ["states", "nothing"])
def test_states_make_its_distribution_again(tmp_path: Path, batch: Batch, keep: Any) -> None:
    teacher = taught_by(tmp_path, keep=keep)
    log_p = torch.full((98, 1024), 1 / 1024).log()
    found = teacher.view(batch, places(teacher, batch)).divergence(log_p.clone(), slice(0, 98))
    wanted = (exact(batch).exp() * (exact(batch) - log_p)).sum(dim=1)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.01)


def test_what_is_kept_of_likeliest_tokens_takes_under_300_bytes_and_says_nearly_the_same(
    tmp_path: Path, batch: Batch
) -> None:
    teacher = taught_by(tmp_path)
    view = teacher.view(batch, places(teacher, batch))
    unsaid = float((1 - exact(batch).topk(64, dim=-1).values.exp().sum(-1)).mean())
    assert f"{unsaid:.2%}"[:-2] in teacher.account()
    log_q = exact(batch).topk(64, dim=-1).values
    assert view.tokens.shape == (98, 64)  # type: ignore[attr-defined]
    torch.testing.assert_close(view.log_q.float(), log_q, rtol=2e-2, atol=2e-2)  # type: ignore[attr-defined]
    with teacher._database() as store:
        (size,) = store.execute("SELECT sum(length(view) + length(piece)) FROM views").fetchone()
    assert size / 100 < 300


@pytest.mark.parametrize("keep", ["likeliest", "states"])
def test_a_second_run_costs_no_teacher_and_says_the_same(tmp_path: Path, batch: Batch, keep: Any) -> None:
    log_p = torch.full((98, 1024), 1 / 1024).log()
    teacher = taught_by(tmp_path, keep=keep)
    first = teacher.view(batch, places(teacher, batch)).divergence(log_p.clone(), slice(0, 98))
    assert teacher.asked == 100
    again = taught_by(tmp_path, keep=keep)
    second = again.view(batch, places(again, batch)).divergence(log_p.clone(), slice(0, 98))
    assert again.asked == 0
    assert torch.equal(first, second)
    other = taught_by(tmp_path, keep=keep, temperature=2.0)
    other.view(batch, places(other, batch))
    assert other.asked == 100, "another temperature is another view"


def test_a_teacher_with_another_vocabulary_is_refused_in_two_lines(tmp_path: Path) -> None:
    student = load_tokenizer(EMBEDDED)
    student.add_tokens(["<new>"])
    with pytest.raises(ScalerError, match="another vocabulary \\(1 of 1025 tokens differ\\)") as caught:
        hire(Distil(), folder=EMBEDDED, student=student, cache=tmp_path)
    assert len(str(caught.value).splitlines()) == 2
