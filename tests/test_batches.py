from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from scaler_wizard.batches import Batch, Text, batches, targets_of, text_of
from scaler_wizard.data import Tokens
from scaler_wizard.phases import Train

NATIVE, WINDOW, TARGET = 8, 24, 96


def letters(text: str, **_: bool) -> dict[str, list[int]]:
    return {"input_ids": [10_000 + ord(letter) for letter in text]}


@pytest.fixture
def text() -> Text:
    """Documents whose tokens follow each other; no number stands in two of them."""
    starts = np.cumsum([0, 100, 7, 61, 12, 5, 30])
    documents: list[Tokens] = [np.arange(a, b, dtype=np.int32) for a, b in pairwise(starts)]
    return text_of(documents, letters, settings(), native=NATIVE, target=TARGET, seed=0)


def settings(**changes: Any) -> Train:
    plain = {"short_share": 0.0, "steps": 4, "windows_per_step": 4, "micro_batch": 2, "window": WINDOW}
    return Train(train="all", learning_rate=1.0, warmup_steps=0, evaluate_every=1, **{**plain, **changes})


def pieces(batch: Batch) -> list[tuple[Any, Any]]:
    parts = zip(*(row[0].split(batch.pieces) for row in (batch.ids, batch.positions)), strict=True)
    return [(ids.numpy(), positions.numpy()) for ids, positions in parts]


def all_pieces(text: Text, chosen: Train, steps: int = 4) -> list[tuple[Any, Any]]:
    return [piece for step in range(steps) for batch in batches(text, chosen, step, 0) for piece in pieces(batch)]


def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(text: Text) -> None:
    def tokens(**how: int) -> list[tuple[int, int]]:
        parts = batches(text, settings(), 1, 0, **how)
        return sorted((int(i), int(p)) for part in parts for i, p in zip(part.ids[0], part.positions[0], strict=True))

    assert tokens() == tokens(at_once=1) == tokens(at_once=4)
    assert [len(batches(text, settings(), 1, 0, at_once=n)) for n in (1, 2, 4)] == [4, 2, 1]


def test_steps_follow_each_other_through_the_text_and_depend_on_nothing_else(text: Text) -> None:
    rows = len(text.windows.ids)
    seen = [
        int(token) for step in range(rows // 4) for part in batches(text, settings(), step, 0) for token in part.ids[0]
    ]
    assert len(set(seen)) == len(seen) == rows // 4 * 4 * WINDOW
    again = batches(text, settings(), 2, 0)
    for one, two in zip(batches(text, settings(), 2, 0), again, strict=True):
        assert torch.equal(one.ids, two.ids) and torch.equal(one.positions, two.positions)


@pytest.mark.parametrize("shares", [{}, {"short_share": 1.0}])
def test_a_piece_is_continuous_text_with_positions_from_zero(text: Text, shares: dict[str, float]) -> None:
    found = all_pieces(text, settings(**shares))
    assert any(len(ids) not in (NATIVE, WINDOW) for ids, _ in found), "no packed window among them"
    for ids, positions in found:
        assert (np.diff(ids) == 1).all()
        assert positions.tolist() == list(range(len(ids)))


def test_short_pieces_are_no_longer_than_the_native_window_and_lose_no_token(text: Text) -> None:
    found = all_pieces(text, settings(short_share=1.0))
    assert max(len(ids) for ids, _ in found) == NATIVE
    assert sum(len(ids) for ids, _ in found) == 4 * 4 * WINDOW


def test_skipped_positions_rise_once_by_more_than_one_and_stay_inside_the_target(text: Text) -> None:
    jumps = [np.diff(positions) for _, positions in all_pieces(text, settings(skip_share=1.0))]
    assert all((jump >= 1).all() and (jump > 1).sum() <= 1 for jump in jumps)
    ends = [positions[-1] for _, positions in all_pieces(text, settings(skip_share=1.0))]
    assert WINDOW <= max(ends) < TARGET
    assert len(set(ends)) > 4


def test_facts_are_stated_before_they_are_asked_for_nearby_and_far_away() -> None:
    wide = settings(needle_share=0.1, window=320, steps=90, windows_per_step=1, micro_batch=1)
    text = text_of([np.arange(9000, dtype=np.int32)], letters, wide, native=160, target=320, seed=0)
    told = [
        (len(ids), "".join(chr(token - 10_000) for token in ids if token >= 10_000))
        for ids, _ in all_pieces(text, wide, steps=90)
        if (ids >= 10_000).any()
    ]
    assert {length for length, _ in told} == {80, 160, 320}
    assert 5 <= sum(length for length, _ in told) / 320 <= 14
    for _, words in told:
        code = words[-4:]
        assert code.isdigit() and words.count(code) == 2


def test_the_first_token_of_a_piece_is_never_predicted() -> None:
    batch = Batch(torch.arange(9)[None], torch.zeros(1, 9), (4, 1, 3, 1))
    predictors, predicted = targets_of(batch)
    assert predicted.tolist() == [1, 2, 3, 6, 7]
    assert predictors.tolist() == [0, 1, 2, 5, 6]
    assert batch.targets == 5
