"""Small made-up facts ("The code of NAME is 4071.") that a text can hide and a model can be asked for.

Training, needle evaluation and healing share these sentences. Names and templates have a train part and a held-out
part, so that a measured retrieval is not the memory of a trained sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TRAIN_NAMES = tuple(
    """Abaril Belora Cadwin Dorvane Elsimo Farnok Gelwyn Hadrix Imbera Jorvel Kelmar Lunosa Mardex Nelvira Orbanu
    Pelgrin Quenta Rosdal Selkor Tamrel Ulmera Vandor Wexfar Xandor Yorbel Zelmira Ardosan Brimal Corvine Drusken
    Eridon Fenwick Galdora Hestor Ivando Jasmere Kordun Lethan Morwick Nardello Ostrane Pinwell Quillon Ravenor Sildar
    Torvane Umbrel Velkan Wistern Xerona Yandral Zorvan Alcovar Bastor Crinan Delphar Embrook Foxglen Gorland Hollin
    Islaverd Jundar Kestrin Lombrel""".split()
)
HELD_OUT_NAMES = tuple(
    """Amboril Bravik Caldune Denwist Evoran Fulmore Grendal Harvisk Ilmarin Jelsor Krovan Lindral Mestova Norvell
    Oxmere Pardona Quorin Rendale Sorbik Tolvane Ustrim Verdola Winslet Zandrik""".split()
)
CALIBRATION_NAMES = tuple(
    """Ashvane Berolin Corwith Dunmar Estrill Farolde Gunthar Hesmond Isolvar Jarnick Kolvane Larmond Midrath Nostrel
    Ovandur Perrick Rothane Sumarel Thorvin Ulverin Varnose Wystan Yestor Zulmire""".split()
)
NAMES = TRAIN_NAMES + HELD_OUT_NAMES

TEMPLATES = (
    "The code of {name} is {code}.",
    "The number of {name} is {code}.",
    "And the key of {name} was {code}.",
    "For {name} the sign is {code}.",
)
HELD_OUT_TEMPLATES = (
    "The seal of {name} is {code}.",
    "Now the price of {name} was {code}.",
)
CALIBRATION_TEMPLATES = (
    "The tax of {name} is {code}.",
    "And the lot of {name} is {code}.",
    "The mark of {name} was {code}.",
)
"""To choose settings by: neither trained on, so that they are not too easy, nor reported."""
ALL_TEMPLATES = TEMPLATES + HELD_OUT_TEMPLATES + CALIBRATION_TEMPLATES
"""A template's number is its place in this tuple: the trained ones come first."""


@dataclass(frozen=True)
class Fact:
    """Something that can only be known from the text: `code` is a string of digits, leading zeros included."""

    name: str
    code: str


def statement(fact: Fact, template: int = 0) -> str:
    """The sentence to hide in a text: "The code of NAME is 4071."."""
    return ALL_TEMPLATES[template].format(name=fact.name, code=fact.code)


def question(fact: Fact, template: int = 0) -> str:
    """The beginning of the same sentence: "The code of NAME is"; `answer(fact)` follows."""
    return ALL_TEMPLATES[template].split(" {code}")[0].format(name=fact.name)


def answer(fact: Fact) -> str:
    """What has to follow the question: a space, then the digits."""
    return f" {fact.code}"


def make_facts(
    count: int, digits: int, rng: np.random.Generator, *, names: Sequence[str] = HELD_OUT_NAMES
) -> list[Fact]:
    """`count` facts about different names, each code drawn uniformly from 10**digits; the same for the same rng."""
    if count > len(names):
        raise ValueError(f"{count} facts need as many names; there are {len(names)}")
    chosen = rng.choice(len(names), size=count, replace=False)
    codes = rng.integers(0, 10, size=(count, digits))
    return [Fact(names[name], "".join(map(str, code))) for name, code in zip(chosen, codes, strict=True)]
