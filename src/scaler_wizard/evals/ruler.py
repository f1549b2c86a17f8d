"""RULER's thirteen tasks (arXiv:2404.06654) by generators of our own, scored without generating text.

An answer is found where each of its tokens is the model's first choice, given what stands before it; a task's score is
the share of its answers that are found (RULER's string_match_all; for the two question tasks, which have one answer,
string_match_part is the same). Several answers may come in any order: the one that the model begins is followed.

What differs from the original: the essays are whatever held-out text is given, words and people are invented here, and
the two question tasks ask about invented people (one hop, two hops) instead of SQuAD and HotpotQA, so that nothing can
be known by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.needle import encode
from scaler_wizard.evals.onward import onward
from scaler_wizard.evals.perplexity import CHUNK, Ints, logits_of
from scaler_wizard.intervals import wilson
from scaler_wizard.metrics import Interval
from scaler_wizard.record import Record

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ADJECTIVES = """amber bitter brisk calm clever cold crooked curious dusty early fierce gentle golden grim hollow humble
    icy jolly keen little lonely mellow misty narrow noble odd pale plain proud quiet rapid rough rusty silent silver
    slender stormy sturdy tidy vivid""".split()
NOUNS = """anchor apple arrow basin beacon bell bridge candle canyon castle cedar cloud copper coral crown desert ember
    falcon feather fiddle forest garden glacier hammer harbor island kettle lantern meadow mirror needle orchard pebble
    pepper quarry ribbon saddle spindle thunder velvet""".split()
TOWNS = """Aldmoor Brenfield Caswick Dunharrow Eastmere Fallowby Grimsey Hollowell Inverlode Kettlewick Larkham
    Mossford Northolme Oakhurst Penhallow Ravenby Stonecroft Thornwick Underhill Wexley""".split()
FIRST = "Alba Bertil Corin Dagna Edrik Fenna Gorm Hilde Ivo Jorun Kasper Liv Magnus Nessa Orla Pell Runa Sten".split()
LAST = "Ashdown Birkett Crane Dalby Ebbing Frost Garrick Holm Irving Judd Kestle Lorne Mott Nash Orme Pryor".split()
TRADES = "baker carpenter clockmaker ferryman gardener glazier mason miller painter potter saddler weaver".split()


@dataclass(frozen=True)
class Example:
    """One question about one long text."""

    text: str
    question: str
    """Ends where the first answer begins."""
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Stuff:
    """What an example is made of."""

    rng: np.random.Generator
    essay: str
    """Held-out text, as long as the longest example needs."""
    size: Callable[[str], int]
    """Tokens of a string."""
    room: int
    """Tokens for the text."""


class RulerScore(Record):
    """One task at one length."""

    task: str
    """RULER's name of the task."""
    length: int
    """Tokens of an example, its answers included."""
    score: Interval
    """Share of answers that were found, with Wilson's interval."""
    answers: int
    """Answers that were asked for."""


# -- material ----------------------------------------------------------------------------------------------------------


def _word(rng: np.random.Generator) -> str:
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """Different words."""
    every = [f"{one}-{other}" for one in ADJECTIVES for other in NOUNS]
    return [every[at] for at in rng.choice(len(every), count, replace=False)]


def _number(rng: np.random.Generator) -> str:
    return str(rng.integers(1_000_000, 10_000_000))


def _uuid(rng: np.random.Generator) -> str:
    digits = "".join(f"{value:x}" for value in rng.integers(0, 16, 32))
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _fill(stuff: Stuff, hidden: Sequence[str], unit: Callable[[int], str], joint: str) -> str:
    """As many units of haystack as there is room for, with the hidden sentences at random places, in order."""
    room = stuff.room - sum(stuff.size(sentence + joint) for sentence in hidden)
    units: list[str] = []
    used, number = 0, 0
    while True:
        piece = unit(number)
        used += stuff.size(piece + joint)
        if used > room:
            break
        units.append(piece)
        number += 1
    for place, sentence in sorted(
        zip(stuff.rng.integers(0, len(units) + 1, len(hidden)), hidden, strict=True), key=lambda pair: -int(pair[0])
    ):
        units.insert(int(place), sentence)
    return joint.join(units)


def _noise(number: int) -> str:
    return NOISE


def _sentences(stuff: Stuff) -> Callable[[int], str]:
    """Sentences of the essay, from a random place on, over and over."""
    listed = [one.strip() + "." for one in stuff.essay.replace("\n", " ").split(".") if one.strip()]
    start = int(stuff.rng.integers(len(listed)))
    return lambda number: listed[(start + number) % len(listed)]


# -- tasks -------------------------------------------------------------------------------------------------------------


def _needle(key: str, value: str, kind: str = "number") -> str:
    return f"One of the special magic {kind}s for {key} is: {value}."


def _ask(keys: Sequence[str], kind: str, *, several: bool = False) -> str:
    names = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    if len(keys) == 1 and not several:
        what = f"What is the special magic {kind} for {names} mentioned in the provided text?"
        return f"\n{what} The special magic {kind} for {names} mentioned in the provided text is"
    what = f"What are all the special magic {kind}s for {names} mentioned in the provided text?"
    return f"\n{what} The special magic {kind}s for {names} mentioned in the provided text are"


def _retrieve(
    haystack: str, *, keys: int = 1, values: int = 1, queries: int = 1, uuid: str = ""
) -> Callable[[Stuff], Example]:
    """Needles in noise, an essay or other needles; `uuid` says what is one: "value" or "both"."""

    def make(stuff: Stuff) -> Example:
        rng, kind = stuff.rng, "uuid" if uuid else "number"
        value: Callable[[np.random.Generator], str] = _uuid if uuid else _number
        key: Callable[[np.random.Generator], str] = _uuid if uuid == "both" else _word
        known = _words(rng, keys) if uuid != "both" else [_uuid(rng) for _ in range(keys)]
        told = {name: [value(rng) for _ in range(values)] for name in known}
        hidden = [_needle(name, one, kind) for name, several in told.items() for one in several]
        hidden = [hidden[at] for at in rng.permutation(len(hidden))]
        unit = {
            "noise": _noise,
            "essay": _sentences(stuff),
            "needles": lambda number: _needle(_other(rng, key, told), value(rng), kind),
        }[haystack]
        text = _fill(stuff, hidden, unit, "\n" if haystack != "essay" else " ")
        asked = known[:queries]
        answers = tuple(one for name in asked for one in told[name])
        return Example(text, _ask(asked, kind, several=values > 1), answers)

    return make


def _other(rng: np.random.Generator, key: Callable[[np.random.Generator], str], taken: Mapping[str, Any]) -> str:
    name = key(rng)
    while name in taken:
        name = key(rng)
    return name


def _variables(stuff: Stuff) -> Example:
    """One chain of four hops: X1 = number, X2 = X1 ...; which variables hold the number?"""
    rng = stuff.rng
    names: list[str] = []
    while len(names) < 5:
        name = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 5))
        names += [] if name in names else [name]
    number = str(rng.integers(10_000, 100_000))
    hidden = [f"VAR {names[0]} = {number}."]
    hidden += [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
    text = _in_order(stuff, hidden)
    question = f"\nQuestion: Find all variables that are assigned the value {number} in the text above. Answer: "
    question += (
        f"According to the chain of variable assignment, {len(names)} variables are assigned the value {number}:"
    )
    return Example(text, question, tuple(names))


def _in_order(stuff: Stuff, hidden: Sequence[str]) -> str:
    """Hidden sentences in noise that keep their order: a chain is told before it is used."""
    room = stuff.room - sum(stuff.size(sentence + "\n") for sentence in hidden)
    units = [NOISE] * max(0, room // stuff.size(NOISE + "\n"))
    places = sorted(int(place) for place in stuff.rng.integers(0, len(units) + 1, len(hidden)))
    for shift, (place, sentence) in enumerate(zip(places, hidden, strict=True)):
        units.insert(place + shift, sentence)
    return "\n".join(units)


def _common_words(stuff: Stuff) -> Example:
    """Ten words stand 30 times, all others 3 times (6 and 1 below 4,096 tokens); which are the ten?"""
    rng, often, seldom = stuff.rng, 30, 3
    if stuff.room < 4096:
        often, seldom = 6, 1
    every = _words(rng, len(ADJECTIVES) * len(NOUNS))
    common, rare = every[:10], iter(every[10:])
    listed = common * often
    used = sum(stuff.size(f"{len(listed)}. {word} ") for word in listed)
    for word in rare:
        used += seldom * stuff.size(f"{len(listed)}. {word} ")
        if used > stuff.room:
            break
        listed += [word] * seldom
    order = rng.permutation(len(listed))
    text = " ".join(f"{number}. {listed[at]}" for number, at in enumerate(order, start=1))
    question = "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear "
    return Example(text, question + "most often in the list are:", tuple(common))


def _frequent_words(stuff: Stuff) -> Example:
    """Coded words in the proportions of a zeta law with exponent 2, the first of them dots; which three come next?"""
    rng = stuff.rng
    letters = list("abcdefghijklmnopqrstuvwxyz")
    coded = ["...", *("".join(rng.choice(letters, 6)) for _ in range(200))]
    zeta = math.pi**2 / 6
    words: list[str] = []
    for wished in range(40, 40 + stuff.room, 20):
        longer = [word for rank, word in enumerate(coded, start=1) for _ in range(int(wished / rank**2 / zeta))]
        if stuff.size(" ".join(longer)) > stuff.room:
            break
        words = longer
    text = " ".join(words[at] for at in rng.permutation(len(words)))
    question = "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
    question += (
        "frequently appeared words in the above coded text? Answer: According to the coded text above, the three "
    )
    return Example(text, question + "most frequently appeared words are:", tuple(coded[1:4]))


def _people(hops: int) -> Callable[[Stuff], Example]:
    """Short documents about invented people; a question about one, or about the neighbour of one."""

    def make(stuff: Stuff) -> Example:
        rng = stuff.rng
        every = [f"{first} {middle}. {last}" for first in FIRST for middle in "ABCDEFGHIJKLM" for last in LAST]
        names = [every[at] for at in rng.permutation(len(every))]
        town = {name: str(rng.choice(TOWNS)) for name in names}
        friend = {name: names[(at + 1) % len(names)] for at, name in enumerate(names)}
        listed: list[str] = []
        used = 0
        for number, name in enumerate(names):
            told = f"{name}, a {rng.choice(TRADES)}, was born in {town[name]} and later worked with {friend[name]}."
            used += stuff.size(f"Document {number + 1}:\n{told}\n\n")
            if used > stuff.room:
                break
            listed.append(told)
        asked = names[int(rng.integers(0, max(1, len(listed) - 1)))]
        text = "\n\n".join(
            f"Document {at + 1}:\n{listed[place]}" for at, place in enumerate(rng.permutation(len(listed)))
        )
        if hops == 1:
            return Example(text, f"\n\nQuestion: Where was {asked} born?\nAnswer:", (town[asked],))
        question = f"\n\nQuestion: Where was the person born with whom {asked} later worked?\nAnswer:"
        return Example(text, question, (town[friend[asked]],))

    return make


TASKS: Mapping[str, Callable[[Stuff], Example]] = {
    "niah_single_1": _retrieve("noise"),
    "niah_single_2": _retrieve("essay"),
    "niah_single_3": _retrieve("essay", uuid="value"),
    "niah_multikey_1": _retrieve("essay", keys=4),
    "niah_multikey_2": _retrieve("needles"),
    "niah_multikey_3": _retrieve("needles", uuid="both"),
    "niah_multivalue": _retrieve("essay", values=4),
    "niah_multiquery": _retrieve("essay", keys=4, queries=4),
    "vt": _variables,
    "cwe": _common_words,
    "fwe": _frequent_words,
    "qa_1": _people(1),
    "qa_2": _people(2),
}


# -- scoring -----------------------------------------------------------------------------------------------------------


def ruler(
    model: Any,
    tokenizer: Any,
    essay: str,
    *,
    lengths: Sequence[int],
    tasks: Sequence[str],
    examples: int,
    seed: int = 0,
) -> tuple[RulerScore, ...]:
    """Score `examples` of each task at each length, in tokens; the essay is repeated where it is too short."""
    found = []
    for length in lengths:
        for task in tasks:
            rng = np.random.default_rng([seed, length, list(TASKS).index(task)])
            answers = [
                right for _ in range(examples) for right in _answered(model, tokenizer, task, length, essay, rng)
            ]
            score = wilson(sum(answers), len(answers))
            found.append(RulerScore(task=task, length=length, score=score, answers=len(answers)))
    return tuple(found)


def example(tokenizer: Any, task: str, length: int, essay: str, rng: np.random.Generator) -> Example:
    """One example whose text, question and answers fit into `length` tokens."""

    def size(text: str) -> int:
        return len(encode(tokenizer, text))

    spare = 96 if length <= 2048 else 256  # question, answers, and seams between pieces that tokenise otherwise
    return TASKS[task](Stuff(rng, essay, size, length - spare))


def _answered(model: Any, tokenizer: Any, task: str, length: int, essay: str, rng: np.random.Generator) -> list[bool]:
    made = example(tokenizer, task, length, essay, rng)
    context = encode(tokenizer, made.text + made.question)
    needed = len(context) + sum(len(encode(tokenizer, f" {answer},")) for answer in made.answers)
    if needed > length:
        raise ScalerError(f"{task} needs {needed} tokens with this tokenizer, more than {length}", "ask for more")
    found: list[bool] = found_answers(model, tokenizer, context, made.answers)
    return found


@torch.inference_mode()
def found_answers(model: Any, tokenizer: Any, context: Ints, answers: Sequence[str]) -> list[bool]:
    """Which answers the model would give after `context`, in whatever order it gives them."""
    cache, hidden = _read(model, context)
    left = [np.append(encode(tokenizer, f" {answer}"), encode(tokenizer, ",")) for answer in answers]
    found: list[bool] = []
    while left:
        first = int(logits_of(model, hidden[None])[0].argmax())
        begun = [ids for ids in left if int(ids[0]) == first] or left
        follow = (
            max(begun, key=lambda ids: _begins(model, cache, ids)) if len(begun) > 1 and begun is not left else begun[0]
        )
        left = [ids for ids in left if ids is not follow]
        ids = torch.from_numpy(follow.astype(np.int64)).to(model.device)[None]
        states = model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0]
        choices = [first, *logits_of(model, states[:-2]).argmax(-1).tolist()] if ids.shape[1] > 2 else [first]
        found.append(choices == follow[:-1].tolist())
        hidden = states[-1]
    return found


def _begins(model: Any, cache: Any, ids: Ints) -> int:
    """How many tokens of an answer are first choices; the cache is left as it was."""
    tokens = torch.from_numpy(ids.astype(np.int64)).to(model.device)[None]
    states = model.model(input_ids=tokens, past_key_values=cache, use_cache=True).last_hidden_state[0]
    cache.crop(-tokens.shape[1])
    right = logits_of(model, states[:-1]).argmax(-1).eq(tokens[0, 1:]).long()
    return int(right.cumprod(0).sum())


def _read(model: Any, context: Ints) -> tuple[Any, torch.Tensor]:
    """The cache of a context, read in pieces, and its last hidden state."""
    ids = torch.from_numpy(context.astype(np.int64)).to(model.device)[None]
    cache, answer = None, None
    with onward(model):
        for start in range(0, ids.shape[1], CHUNK):
            answer = model.model(input_ids=ids[:, start : start + CHUNK], past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
    assert answer is not None
    return cache, answer.last_hidden_state[0, -1]


def effective_length(scores: Mapping[int, float], *, reference: float, share: float = 0.85) -> int | None:
    """The longest length up to which every score is at least `share` of `reference`; None where even the first is not.

    RULER compares with Llama-2-7B at 4K (85.6 points); small models are compared with their own base
    at half its window.
    """
    good = None
    for length in sorted(scores):
        if scores[length] < share * reference:
            break
        good = length
    return good
