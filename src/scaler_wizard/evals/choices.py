"""Multiple choice by log-likelihood, reading every shared token once: the examples in front, and each question.

A row holds one question and all its choices side by side; attention forms a tree in which a choice sees the examples,
its question and itself, never another choice. Positions run on along each branch, so the scores are those of reading
each choice alone. Questions of like length share a batch, the batch shares the examples' cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from scaler_wizard.evals.perplexity import Floats, Ints, nll_of

ROWS_AT_ONCE = 16
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Question:
    """One question; `choices[right]` is the answer."""

    prompt: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Answered:
    """What a model says to one question."""

    number: int
    """Which question, by its place in the list."""
    log_likelihoods: Floats
    """(choices,): sum over the tokens of each choice, nats."""


@dataclass(frozen=True)
class _Tree:
    """One question in tokens, without the examples that all questions share."""

    number: int
    trunk: Ints
    """What all its choices begin with."""
    branches: tuple[Ints, ...]
    scored: tuple[int, ...]
    """How many tokens at the end of each branch are the choice."""

    @property
    def tokens(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


def answer_all(model: Any, tokenizer: Any, questions: Sequence[Question], *, examples: str = "") -> Iterator[Answered]:
    """Score `examples + prompt + " " + choice` for every choice, in batches of like length; yields as batches end.

    Strings are tokenised whole, as every harness does it, and what they share is found in their tokens.
    """
    shared, trees = _trees(tokenizer, questions, examples)
    if _slides(model, len(shared) + max(tree.tokens for tree in trees)):
        yield from (_alone(model, shared, tree) for tree in trees)
        return
    cache, last = _read(model, shared)
    for batch in _batches(trees):
        yield from _scored(model, batch, cache, len(shared), last)


def right(questions: Sequence[Question], answers: Sequence[Answered]) -> list[bool]:
    """Which questions have their answer as the likeliest choice, in the order of the questions."""
    found = {answer.number: int(np.argmax(answer.log_likelihoods)) for answer in answers}
    return [found[number] == question.right for number, question in enumerate(questions)]


def _trees(tokenizer: Any, questions: Sequence[Question], examples: str) -> tuple[Ints, list[_Tree]]:
    contexts = [examples + question.prompt for question in questions]
    whole = [
        f"{context} {choice}"
        for context, question in zip(contexts, questions, strict=True)
        for choice in question.choices
    ]
    before, after = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (contexts, whole))
    ids, grouped = iter(after), []
    for question, context in zip(questions, before, strict=True):
        grouped.append(([next(ids) for _ in question.choices], len(context)))
    common = _common([row for rows, _ in grouped for row in rows], most=min(length for _, length in grouped) - 1)
    trees = []
    for number, (rows, length) in enumerate(grouped):
        trunk = _common(rows, most=length)
        trees.append(
            _Tree(
                number,
                np.asarray(rows[0][common:trunk], np.int32),
                tuple(np.asarray(row[trunk:], np.int32) for row in rows),
                tuple(len(row) - length for row in rows),
            )
        )
    return np.asarray(after[0][:common], np.int32), trees


def _common(rows: Sequence[Sequence[int]], *, most: int) -> int:
    """How many tokens all rows begin with, at most `most`."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*(row[:most] for row in rows))))  # noqa: B905


def _slides(model: Any, tokens: int) -> bool:
    """Whether some layer looks back over fewer tokens than a row has: then a tree's mask would be wrong there."""
    window: int | None = getattr(model.config, "sliding_window", None)
    types = getattr(model.config, "layer_types", None)
    return window is not None and 0 < window < tokens and (types is None or "sliding_attention" in types)


def _batches(trees: Sequence[_Tree]) -> Iterator[list[_Tree]]:
    """Trees of like length together, at most ROWS_AT_ONCE and TOKENS_AT_ONCE; the shortest one alone, at once.

    A tree that would be padded to more than twice its length begins a new batch.
    """
    first, *rest = sorted(trees, key=lambda tree: tree.tokens)
    yield [first]
    batch: list[_Tree] = []
    for tree in reversed(rest):
        if batch and not _fits(tree, batch):
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _fits(tree: _Tree, batch: Sequence[_Tree]) -> bool:
    longest, rows = batch[0].tokens, len(batch) + 1
    return rows <= ROWS_AT_ONCE and rows * longest <= TOKENS_AT_ONCE and 2 * tree.tokens >= longest


@torch.inference_mode()
def _read(model: Any, shared: Ints) -> tuple[Any, torch.Tensor | None]:
    """The examples' cache, and the hidden state of their last token."""
    cache = DynamicCache()  # without a configuration: no layer forgets
    if not len(shared):
        return cache, None
    ids = torch.from_numpy(shared.astype(np.int64)).to(model.device)[None]
    return cache, model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]


def _copied(cache: Any, rows: int) -> Any:
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers):
        copy.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
    return copy


@torch.inference_mode()
def _scored(
    model: Any, batch: Sequence[_Tree], cache: Any, before: int, last: torch.Tensor | None
) -> Iterator[Answered]:
    width = max(tree.tokens for tree in batch)
    ids, positions = np.zeros((2, len(batch), width), np.int64)
    mask = np.zeros((len(batch), 1, width, before + width), bool)
    mask[..., :before] = True
    mask[..., range(width), range(before, before + width)] = True  # padding sees itself, so that nothing is undefined
    for row, tree in enumerate(batch):
        _plant(tree, before, ids[row], positions[row], mask[row, 0, :, before:])
    hidden = model.model(
        input_ids=torch.from_numpy(ids).to(model.device),
        position_ids=torch.from_numpy(positions).to(model.device),
        attention_mask=_additive(mask, model),
        past_key_values=_copied(cache, len(batch)),
        use_cache=True,
    ).last_hidden_state
    asked = [_asked(tree, row, last) for tree, row in zip(batch, hidden, strict=True)]
    states, targets = (torch.cat(parts) for parts in zip(*asked, strict=True))
    sizes = [scored for tree in batch for scored in tree.scored]
    sums = -np.add.reduceat(nll_of(model, states, targets), np.cumsum([0, *sizes[:-1]]))
    ends = np.cumsum([len(tree.scored) for tree in batch])[:-1]
    for tree, found in zip(batch, np.split(sums, ends), strict=True):
        yield Answered(tree.number, found)


def _additive(mask: np.ndarray[Any, np.dtype[np.bool_]], model: Any) -> torch.Tensor:
    """0 where a token is seen: eager attention would add a boolean mask to its scores as numbers."""
    closed = torch.from_numpy(~mask).to(model.device)
    return torch.zeros(mask.shape, dtype=model.dtype, device=model.device).masked_fill(
        closed, torch.finfo(model.dtype).min
    )


def _plant(tree: _Tree, before: int, ids: Ints, positions: Ints, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Lay a tree into one row."""
    trunk = len(tree.trunk)
    ids[:trunk], positions[:trunk] = tree.trunk, before + np.arange(trunk)
    mask[:trunk, :trunk] = np.tri(trunk, dtype=bool)
    start = trunk
    for branch in tree.branches:
        end = start + len(branch)
        ids[start:end], positions[start:end] = branch, before + trunk + np.arange(len(branch))
        mask[start:end, :trunk] = True
        mask[start:end, start:end] = np.tri(len(branch), dtype=bool)
        start = end


def _asked(tree: _Tree, hidden: torch.Tensor, last: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The states (tokens, hidden) that foretell the scored tokens of all branches, and these tokens, from one row."""
    states, targets, place = [], [], len(tree.trunk)
    root = hidden[place - 1] if place else last
    for branch, scored in zip(tree.branches, tree.scored, strict=True):
        along = torch.cat([root[None], hidden[place : place + len(branch) - 1]])  # type: ignore[index]
        states.append(along[len(branch) - scored :])
        targets.append(torch.from_numpy(branch[len(branch) - scored :].astype(np.int64)))
        place += len(branch)
    return torch.cat(states), torch.cat(targets).to(hidden.device)


@torch.inference_mode()
def _alone(model: Any, shared: Ints, tree: _Tree) -> Answered:
    """Each choice in a pass of its own."""
    found = []
    for branch, scored in zip(tree.branches, tree.scored, strict=True):
        row = np.concatenate([shared, tree.trunk, branch]).astype(np.int64)
        ids = torch.from_numpy(row).to(model.device)[None]
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, -scored - 1 : -1]
        found.append(-nll_of(model, hidden, ids[0, -scored:]).sum())
    return Answered(tree.number, np.array(found))
