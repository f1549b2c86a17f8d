"""A local language model answers the one question that a wish leaves open, among its choices; it is asked nothing else.

How: the likelihood of each choice's description after the wish, less that after a wish that says nothing, so that long
and common descriptions have no advantage (domain conditional PMI, arXiv:2104.08315). No text is generated, so nothing
that the model or the wish says can become a setting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaler_wizard.advise import Leaning
from scaler_wizard.evals.choices import Question, answer_all
from scaler_wizard.models import load_model, load_tokenizer, quiet, resolve
from scaler_wizard.recipe import shipped_recipes

HEAD = "Each wish is answered by the one plan that fits it.\n"
NOTHING = "anything"


class WishReader:
    """The model in `folder` (or of that name); loaded when it is first asked."""

    def __init__(self, model: str) -> None:
        self._source = resolve(model)

    def __call__(self, wish: str, choices: Sequence[str]) -> Leaning:
        """Which of the recipes `choices` fits the wish best, and with which share of the belief in all of them."""
        quiet()
        described = tuple(shipped_recipes()[choice] for choice in choices)
        questions = [Question(f"{HEAD}Wish: {said}\nPlan:", described, 0) for said in (wish, NOTHING)]
        found = answer_all(load_model(self._source.folder), load_tokenizer(self._source.folder), questions)
        after, before = (one.log_likelihoods for one in sorted(found, key=lambda one: one.number))
        belief = np.exp((gains := after - before) - gains.max())
        best = int(belief.argmax())
        return Leaning(choices[best], float(belief[best] / belief.sum()), self._source.name)
