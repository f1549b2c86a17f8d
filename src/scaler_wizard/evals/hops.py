"""Two steps of thought: two facts about invented people stand in the question, and the answer needs both.

"Mara works with Otto. Otto lives in Lisbon. ... So Mara's colleague lives in": the likeliest of four towns, all of
which stand in the text, so that neither knowledge nor a town's fame answers it. One in four is chance.
"""

from __future__ import annotations

import numpy as np

from scaler_wizard.evals.choices import Question

PEOPLE = ("Mara", "Otto", "Iven", "Petra", "Luca", "Nina", "Samir", "Clara", "Hugo", "Elsa", "Milan", "Rosa")
TOWNS = ("Lisbon", "Oslo", "Cairo", "Quito", "Vienna", "Dublin", "Havana", "Prague")
PAIRS = 4


def two_hops(count: int, *, seed: int) -> list[Question]:
    """`count` questions of PAIRS pairs of people; the facts stand in random order."""
    rng = np.random.default_rng(seed)
    return [_question(rng) for _ in range(count)]


def _question(rng: np.random.Generator) -> Question:
    people = [str(name) for name in rng.choice(PEOPLE, 2 * PAIRS, replace=False)]
    towns = [str(town) for town in rng.choice(TOWNS, PAIRS, replace=False)]
    asked, friends = people[:PAIRS], people[PAIRS:]
    facts = [f"{one} works with {other}." for one, other in zip(asked, friends, strict=True)]
    facts += [f"{other} lives in {town}." for other, town in zip(friends, towns, strict=True)]
    ordered = [facts[place] for place in rng.permutation(len(facts))]
    right = int(rng.integers(PAIRS))
    return Question(f"{' '.join(ordered)} So {asked[right]}'s colleague lives in", tuple(towns), right)
