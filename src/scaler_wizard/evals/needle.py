"""Needles: made-up facts hidden in held-out text and asked for at its end, scored without generating.

A fact is found where every token of its answer is the model's first choice, given the right tokens before it: the
same as greedy decoding, for one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaler_wizard.evals.perplexity import TOKENS_AT_ONCE, Ints, logits_of
from scaler_wizard.facts import HELD_OUT_TEMPLATES, TEMPLATES, Fact, answer, make_facts, question, statement
from scaler_wizard.metrics import MeasureSpec, NeedleCell

DEPTHS = (0.05, 0.35, 0.65, 0.95)
TEMPLATE = len(TEMPLATES)  # the first held-out sentence: no model here was trained on it
assert HELD_OUT_TEMPLATES


@dataclass(frozen=True)
class Planted:
    """A long text with facts in it."""

    ids: Ints
    """(length,)"""
    facts: tuple[Fact, ...]
    ends: tuple[int, ...]
    """One past the last token of each fact's sentence."""
    text: np.ndarray[Any, np.dtype[np.bool_]]
    """(length,): True where the token is text, False inside a planted sentence."""


@dataclass(frozen=True)
class Score:
    """One answered question."""

    found: bool
    nll: float


def needle_grid(model: Any, tokenizer: Any, filler: list[Ints], spec: MeasureSpec) -> tuple[NeedleCell, ...]:
    """One fact per context, `spec.needles` contexts at each length, spread over four depths; contexts in batches."""
    cells = []
    for length in spec.needle_lengths:
        rng = np.random.default_rng([spec.seed, length])
        depths = [DEPTHS[number % len(DEPTHS)] for number in range(spec.needles)]
        contexts = [_context(tokenizer, filler, rng, length=length, depth=d, digits=spec.digits) for d in depths]
        rows = max(1, TOKENS_AT_ONCE // length)
        found = [score for at in range(0, len(contexts), rows) for score in _scores(model, contexts[at : at + rows])]
        for depth in DEPTHS:
            here = [score for score, own in zip(found, depths, strict=True) if own == depth]
            cells += [cell(length, depth, here)] if here else []
    return tuple(cells)


def _context(
    tokenizer: Any, filler: list[Ints], rng: np.random.Generator, *, length: int, depth: float, digits: int
) -> tuple[Ints, int]:
    """(length,) ids that end with the question and its answer, and how many of them are the answer."""
    fact = make_facts(1, digits, rng)[0]
    hidden = encode(tokenizer, f" {statement(fact, TEMPLATE)}")
    asked, told = question_and_code(tokenizer, fact)
    room = length - len(hidden) - len(asked) - len(told)
    source = filler[int(rng.integers(len(filler)))]
    start = int(rng.integers(0, max(1, len(source) - room)))
    text = np.resize(source[start : start + room], room)
    place = int(depth * room)
    ids = np.concatenate([text[:place], hidden, text[place:], asked, told]).astype(np.int32)
    return ids, len(told)


@torch.inference_mode()
def _scores(model: Any, contexts: list[tuple[Ints, int]]) -> list[Score]:
    ids = torch.from_numpy(np.stack([ids for ids, _ in contexts]).astype(np.int64)).to(model.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return [_score(model, hidden[row, -told - 1 : -1], ids[row, -told:]) for row, (_, told) in enumerate(contexts)]


def _score(model: Any, hidden: torch.Tensor, told: torch.Tensor) -> Score:
    logits = logits_of(model, hidden)
    nll = float(torch.nn.functional.cross_entropy(logits, told))
    return Score(bool((logits.argmax(-1) == told).all()), nll)


def plant(tokenizer: Any, filler: Ints, *, length: int, count: int, digits: int, seed: int) -> Planted:
    """Hide `count` facts in the first `length` tokens of `filler`, evenly spread, the first near the start."""
    facts = make_facts(count, digits, np.random.default_rng(seed))
    sentences = [encode(tokenizer, f" {statement(fact, TEMPLATE)}") for fact in facts]
    room = length - sum(map(len, sentences))
    places = [int((number + 0.5) * room / count) for number in range(count)]
    pieces: list[Ints] = []
    text: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    ends, start = [], 0
    for place, sentence in zip(places, sentences, strict=True):
        pieces += [filler[start:place], sentence]
        text += [np.ones(place - start, bool), np.zeros(len(sentence), bool)]
        ends.append(sum(map(len, pieces)))
        start = place
    pieces.append(filler[start:room])
    text.append(np.ones(room - start, bool))
    return Planted(np.concatenate(pieces).astype(np.int32), tuple(facts), tuple(ends), np.concatenate(text))


@torch.inference_mode()
def ask(model: Any, tokenizer: Any, planted: Planted, read: int, cache: Any) -> tuple[NeedleCell, ...]:
    """Ask for every fact in the first `read` tokens, on top of their cache, which is left as it was."""
    scores: dict[float, list[Score]] = {}
    for fact, end in zip(planted.facts, planted.ends, strict=True):
        if end > read:
            continue
        asked, told = question_and_code(tokenizer, fact)
        ids = torch.from_numpy(np.concatenate([asked, told]).astype(np.int64)).to(model.device)[None]
        hidden = model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0]
        cache.crop(-ids.shape[1])  # transformers 5: a negative number is how many tokens to drop
        score = _score(model, hidden[len(asked) - 1 : -1], ids[0, len(asked) :])
        scores.setdefault(min(int(end / read * 4) / 4, 0.75) + 0.125, []).append(score)
    return tuple(cell(read, depth, found) for depth, found in sorted(scores.items()))


def question_and_code(tokenizer: Any, fact: Fact, *, template: int = TEMPLATE) -> tuple[Ints, Ints]:
    """The question, and the tokens of the code: a space of its own before the digits belongs to the question."""
    asked, told = encode(tokenizer, f" {question(fact, template)}"), encode(tokenizer, answer(fact))
    spaces = next(at for at, token in enumerate(told) if tokenizer.decode([int(token)]).strip())
    return np.concatenate([asked, told[:spaces]]), told[spaces:]


def cell(length: int, depth: float, scores: list[Score]) -> NeedleCell:
    """Sum up the answers at one length and depth."""
    return NeedleCell(
        length=length,
        depth=depth,
        found=sum(score.found for score in scores),
        asked=len(scores),
        nll=float(np.mean([score.nll for score in scores])),
    )


def encode(tokenizer: Any, text: str) -> Ints:
    """Token ids without special tokens."""
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
