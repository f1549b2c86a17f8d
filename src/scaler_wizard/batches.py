"""What a training step sees: windows of text and their variants, laid end to end in flat micro-batches.

A pure function of (text, settings, step, seed): a resumed training and a control arm see the very same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaler_wizard.data import Tokens, TrainingWindows, training_windows
from scaler_wizard.facts import TRAIN_NAMES, answer, make_facts, question, statement
from scaler_wizard.phases import Train


@dataclass(frozen=True)
class Text:
    """What to train on: windows of text, and how to make variants of them."""

    windows: TrainingWindows
    tokenizer: Any
    native: int
    """Tokens of the base's window: the length of short pieces."""
    target: int
    """Tokens that skipped positions reach."""


@dataclass(frozen=True)
class Piece:
    """One continuous stretch of text: nothing in it sees anything outside it."""

    ids: Tokens
    """(tokens,)"""
    positions: Any
    """(tokens,), rising; a gap in them is text that was skipped."""


@dataclass(frozen=True)
class Batch:
    """Pieces end to end in one row."""

    ids: torch.Tensor
    """(1, tokens)"""
    positions: torch.Tensor
    """(1, tokens)"""
    pieces: tuple[int, ...]
    """Length of each piece."""

    @property
    def targets(self) -> int:
        """Tokens that are predicted: all but the first of each piece."""
        return int(self.ids.shape[1]) - len(self.pieces)


def text_of(encoded: list[Tokens], tokenizer: Any, settings: Train, *, native: int, target: int, seed: int) -> Text:
    """Training text from encoded documents."""
    return Text(training_windows(encoded, settings.window, seed), tokenizer, native, target)


def batches(text: Text, settings: Train, step: int, seed: int, *, at_once: int | None = None) -> list[Batch]:
    """The micro-batches of one step, of `at_once` windows (as in the settings); depends on its arguments alone."""
    at_once = at_once or settings.micro_batch
    first = step * settings.windows_per_step
    rows = [_pieces(text, settings, first + number, seed) for number in range(settings.windows_per_step)]
    return [_flat(rows[at : at + at_once]) for at in range(0, len(rows), at_once)]


def _pieces(text: Text, settings: Train, index: int, seed: int) -> list[Piece]:
    """One window of text, in the variant that its number draws."""
    row = index % len(text.windows.ids)
    ids, documents = text.windows.ids[row], text.windows.document_ids[row]
    chance = np.random.default_rng([seed, index])
    draw = chance.random()
    if draw < settings.short_share and settings.window > text.native:
        return _cut(ids, sorted({*_boundaries(documents), *range(text.native, len(ids), text.native)}))
    if draw < settings.short_share + settings.skip_share:
        return [Piece(ids, _skipped(len(ids), text.target, chance))]
    if draw > 1 - settings.needle_share:
        return _with_facts(ids, text, chance)
    return _cut(ids, _boundaries(documents))


def _boundaries(documents: Tokens) -> list[int]:
    """Where the text is not continuous."""
    return [int(place) + 1 for place in np.flatnonzero(np.diff(documents))]


def _cut(ids: Tokens, places: Sequence[int]) -> list[Piece]:
    """Pieces between `places`, each with positions from 0."""
    return [Piece(part, np.arange(len(part))) for part in np.split(ids, places)]


def _flat(rows: list[list[Piece]]) -> Batch:
    """Equal lengths stand side by side, since attention takes them together."""
    pieces = sorted((piece for row in rows for piece in row), key=lambda piece: -len(piece.ids))
    ids, positions = (
        torch.from_numpy(np.concatenate(parts).astype(np.int64))[None]
        for parts in zip(*((piece.ids, piece.positions) for piece in pieces), strict=True)
    )
    return Batch(ids, positions, tuple(len(piece.ids) for piece in pieces))


def targets_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens are predicted from which: two (targets,) index tensors into the row, predictor and predicted."""
    predicted = torch.ones(batch.ids.shape[1], dtype=torch.bool)
    predicted[torch.tensor([0, *batch.pieces[:-1]]).cumsum(0)] = False
    places = predicted.nonzero()[:, 0]
    return places - 1, places


def _skipped(length: int, target: int, chance: np.random.Generator) -> Any:
    """Positions of two neighbouring pieces with a gap between them (PoSE, arXiv:2309.10400)."""
    positions = np.arange(length)
    if target > length:
        positions[int(chance.integers(1, length // 2 + 1)) :] += int(chance.integers(0, target - length + 1))
    return positions


def _with_facts(ids: Tokens, text: Text, chance: np.random.Generator) -> list[Piece]:
    """Pieces of one of the lengths from half the native window to the whole one, each with a fact and its question.

    Facts in whole windows only would teach the model to look far back and no longer nearby.
    """
    halves = [len(ids) // 2**times for times in range(16)]
    length = int(chance.choice([half for half in halves if half >= text.native // 2] or [len(ids)]))
    return [
        Piece(_with_fact(part, text.tokenizer, chance), np.arange(len(part)))
        for part in np.split(ids, range(length, len(ids), length))
    ]


def _with_fact(ids: Tokens, tokenizer: Any, chance: np.random.Generator) -> Tokens:
    """The window with a fact written over a random place, and its question and answer over the end."""
    fact, template = make_facts(1, 4, chance, names=TRAIN_NAMES)[0], int(chance.integers(4))
    told = tokenizer(f" {statement(fact, template)}", add_special_tokens=False)["input_ids"]
    asked = tokenizer(f" {question(fact, template)}{answer(fact)}", add_special_tokens=False)["input_ids"]
    if len(told) + len(asked) > len(ids):
        return ids
    place = int(chance.integers(0, len(ids) - len(told) - len(asked) + 1))
    changed = ids.copy()
    changed[place : place + len(told)] = told
    changed[-len(asked) :] = asked
    return changed
