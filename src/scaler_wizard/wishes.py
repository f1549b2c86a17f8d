"""From a wish in plain words to a recipe and its settings, with the reasons, or to one question. No model is asked.

How: the words of `wish_words.yaml` (six languages, stems, phrases, small slips of spelling) become meanings; numbers
with a unit become settings; a table of rules turns meanings into recipes, the strongest rule wins, a tie is a question.
Not covered: other languages, irony, and wishes about things that no recipe has.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from scaler_wizard.recipe import shipped_recipes

WORDS = Path(__file__).parent / "wish_words.yaml"
LANGUAGES = ("en", "pt", "es", "fr", "de", "zh")
FUNCTION_WORDS = {  # without accents; they tell the language, nothing else
    "en": "the a an to of and my i it with for is that be must in on not this want need give make should as you me but "
    "what when they have would could more take takes still only we our",
    "pt": "o a os as um uma de do da no na num com para que nao quero meu minha e em mais sem mas preciso tenho ele "
    "muito pode deve agora fazer queria",
    "es": "el la los las un una de del con para que no quiero mi y en mas sin pero necesito tengo lo ahora puede tiene "
    "muy hacer debe quisiera",
    "fr": "le la les un une des du de avec pour que ne pas mon ma je et en plus sans sur mais d j il elle peut doit "
    "faire tres veux avoir",
    "de": "der die das den ein eine einen und mit fur ich mein meinem meinen nicht es auf aus ohne mehr aber so im zu "
    "machen haben werden soll kann will wird beim nur sein muss mochte",
}
SIMILAR = 0.83  # of letters that a misspelt word shares with the word that is meant; the first letter is right
SHORTEST_FUZZY = 5
SMALL_GPU_GB = 12
TOKENS_PER_PAGE = 650  # 500 words of English, 1.3 tokens each
NUMBERS = {
    "two": 2, "twice": 2, "double": 2, "three": 3, "triple": 3, "four": 4, "eight": 8, "half again": 1.5,
    "dobr": 2, "duas vezes": 2, "triplicar": 3, "quatro vezes": 4,
    "duplicar": 2, "dos veces": 2, "cuatro veces": 4, "el doble": 2,
    "doubl": 2, "deux fois": 2, "tripl": 3, "quatre fois": 4,
    "doppelt": 2, "verdoppel": 2, "verdreifach": 3, "viermal": 4,
    "el triple": 3, "两倍": 2, "翻倍": 2, "三倍": 3, "四倍": 4, "八倍": 8,
}  # fmt: skip


SPOKEN = {  # how a language is named in the six languages: beginnings of words, without accents
    "Portuguese": ("portug", "葡萄牙"),
    "Spanish": ("spanish", "espanhol", "espanol", "espagnol", "spanisch", "西班牙"),
    "French": ("french", "frances", "francais", "franzosisch", "法语", "法文"),
    "German": ("german", "alema", "aleman", "allemand", "deutsch", "德语", "德文"),
    "Chinese": ("chinese", "chines", "chino", "chinois", "chinesisch", "中文", "汉语"),
    "English": ("english", "ingles", "anglais", "englisch", "英语", "英文"),
}


@dataclass(frozen=True)
class Rule:
    """Meanings that together point to a recipe."""

    recipe: str
    needs: frozenset[str]
    strength: float
    why: str


def _rule(recipe: str, needs: str, strength: float, why: str) -> Rule:
    return Rule(recipe, frozenset(needs.split()), strength, why)


RULES = (
    _rule("moe-upcycle", "experts", 9, "a mixture of experts is asked for by name"),
    _rule("room-only", "untrained", 9, "nothing is to be trained here"),
    _rule("laptop-documents", "laptop long", 8, "long text on a machine without a strong GPU"),
    _rule("quick-look", "trial", 7, "a first look, in little time"),
    _rule("budget-context", "budget long", 6.5, "a longer window for little"),
    _rule("reasoning", "reasoning", 6, "thinking in steps gains from depth"),
    _rule("creative", "creative", 6, "new parameters learn a voice, the old ones stay"),
    _rule("small-gpu", "small_gpu", 5, "what is trained has to fit a small GPU"),
    _rule("max-context", "most long", 5, "the longest window is asked for"),
    _rule("max-parameters", "most larger", 5, "as many parameters as possible are asked for"),
    _rule("fast-answers", "speed larger", 5.5, "more parameters, but no more layers: each token stays quick"),
    _rule("balanced", "larger long", 4.5, "both more parameters and a longer window"),
    _rule("careful", "careful", 4, "nothing may get worse"),
    _rule("balanced", "balance", 3.5, "a bit of both"),
    _rule("max-context", "long", 3, "a longer window"),
    _rule("max-parameters", "larger", 3, "more parameters"),
    _rule("fast-answers", "speed", 2, "each token must stay quick: width only"),
)
MODIFIERS: Mapping[str, tuple[dict[str, str], str]] = {
    "careful": (
        {"gate.short_regression": "0.0125", "gate.accuracy_drop": "0.0125"},
        "gates four times as strict, since nothing may get worse",
    ),
    "budget": ({"heal.tokens": "8K"}, "few training tokens, since it has to be cheap"),
    "small_gpu": ({"heal.train": "lora", "heal.window": "512"}, "adapters and short windows, to fit a small GPU"),
}
UNMODIFIED = {  # recipes that are so already, or train nothing
    "careful": {"careful"},
    "budget": {"budget-context", "quick-look", "room-only"},
    "small_gpu": {"small-gpu", "room-only"},
}
FIELDS = {"context": "long", "parameters": "larger"}


@dataclass(frozen=True)
class Advice:
    """What was understood."""

    recipe: str | None
    """Name of a shipped recipe; None where a question has to be answered first."""
    settings: dict[str, str]
    """To lay over it, as `--set` writes them."""
    reasons: tuple[str, ...]
    """Why, one sentence each, with the words that led there."""
    question: str | None = None
    """The one question that decides; None where there is none."""
    choices: tuple[str, ...] = ()
    """Recipes that answer it."""


@dataclass(frozen=True)
class Heard:
    """A meaning and the words that carried it."""

    meaning: str
    words: str
    at: int


def understand(wish: str, *, chosen: str | None = None) -> Advice:
    """Recipe and settings for a wish; `chosen` is a recipe that the person named in answer to the question."""
    text = plain(wish)
    heard = tuple(_heard(text))
    meanings = _meanings(heard, text)
    settings, notes = _numbers(text, heard)
    ranked = _ranked(meanings, settings)
    if chosen is None and (not ranked or _tied(ranked)):
        return _ask(ranked, heard, settings)
    recipe, why = (chosen, "you chose it") if chosen else (ranked[0].recipe, ranked[0].why)
    settings, modified = _modified(recipe, meanings, settings)
    modified += [f"texts in {name}: heal and measure on such, --set data=FOLDER" for name in _spoken(text)]
    said = "; ".join(dict.fromkeys(f"“{one.words}” → {one.meaning}" for one in heard)) or "nothing that a rule knows"
    return Advice(recipe, settings, (f"understood: {said}", f"{recipe}: {why}", *modified, *notes))


def plain(wish: str) -> str:
    """Lower case, no accents, no punctuation; Chinese stays as it is."""
    letters = unicodedata.normalize("NFKD", wish.casefold())
    kept = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return re.sub(r"\s+", " ", re.sub(r"[^\w.,->]+", " ", kept)).strip()


# -- words -> meanings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pattern:
    meaning: str
    source: str
    regex: re.Pattern[str]


@cache
def _patterns(language: str) -> tuple[_Pattern, ...]:
    table: dict[str, dict[str, list[str]]] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    return tuple(
        _Pattern(meaning, source, _regex(source, chinese=language == "zh"))
        for meaning, languages in table.items()
        for source in languages[language]
    )


def _regex(source: str, *, chinese: bool) -> re.Pattern[str]:
    """Each literal word is a group: the words in a gap stay free for other meanings."""
    gap = ".{0,6}?" if chinese else r"(?:[^\w]+\w+){0,3}?[^\w]+"
    pieces = [piece.split() for piece in source.split(" .. ")]
    return re.compile(gap.join(r"[^\w]+".join(_literal(word, chinese) for word in piece) for piece in pieces))


def _literal(word: str, chinese: bool) -> str:
    if chinese:
        return f"({re.escape(word)})"
    start, end = (r"\w*" if word.startswith("-") else "", r"\w*" if word.endswith("-") else "")
    return rf"\b({start}{re.escape(word.strip('-'))}{end})\b"


def _heard(text: str) -> Iterator[Heard]:
    """Meanings in the wish's language; in every language where that finds none."""
    language = _language(text)
    found = list(_matches(text, (language,)))
    yield from found or _matches(text, LANGUAGES)


def _language(text: str) -> str:
    if re.search(r"[\u4e00-\u9fff]", text):
        return "zh"
    words = re.findall(r"\w+", text)
    counts = {
        language: sum(word in known.split() for word in words) + sum(1 for _ in _matches(text, (language,)))
        for language, known in FUNCTION_WORDS.items()
    }
    return max(counts, key=lambda language: counts[language])


def _matches(text: str, languages: Iterable[str]) -> Iterator[Heard]:
    """Longest phrases first; a word inside a phrase means nothing else than the phrase does."""
    taken: dict[int, str] = {}
    found = [
        (match, pattern)
        for language in languages
        for pattern in _patterns(language)
        for match in pattern.regex.finditer(text)
    ]
    found.sort(key=lambda pair: -sum(len(group) for group in pair[0].groups()))
    for match, pattern in found:
        places = {place for group in range(1, len(match.groups()) + 1) for place in range(*match.span(group))}
        owners = {taken.get(place) for place in places} - {None}
        if not owners or owners == {_key(places)}:
            taken |= dict.fromkeys(places, _key(places))
            yield Heard(pattern.meaning, match[0], match.start())
    yield from _misspelt(text, taken, languages)


def _key(places: set[int]) -> str:
    return f"{min(places)}-{max(places)}-{len(places)}"


def _misspelt(text: str, taken: Mapping[int, str], languages: Iterable[str]) -> Iterator[Heard]:
    single = {
        pattern.source.strip("-"): pattern.meaning
        for language in languages
        for pattern in _patterns(language)
        if " " not in pattern.source and len(pattern.source) >= SHORTEST_FUZZY and pattern.source.isascii()
    }
    common = {word for words in FUNCTION_WORDS.values() for word in words.split()}
    for match in re.finditer(r"[a-z]{5,}", text):
        if match.start() not in taken and match[0] not in common:
            alike = [word for word in single if word[0] == match[0][0]]
            close = difflib.get_close_matches(match[0], alike, n=1, cutoff=SIMILAR)
            yield from (Heard(single[word], match[0], match.start()) for word in close)


def _meanings(heard: Iterable[Heard], text: str) -> set[str]:
    """What was heard, and what follows from it."""
    found = {one.meaning for one in heard}
    if found & {"window", "length", "documents"}:
        found.add("long")
    about_window = "window" in found and "length" not in found
    if "size" in found or ("bigger" in found and not about_window):
        found.add("larger")
    memory = _gigabytes(text)
    if "graphics" in found and (memory is None or memory <= SMALL_GPU_GB):
        found.add("small_gpu")
    return found


# -- numbers -> settings -----------------------------------------------------------------------------------------------

_TOKENS = re.compile(r"(\d+(?:[.,]\d+)?)\s*(k)?\s*(?:-\s*)?(?:tokens?|toks?|jetons?)\b")
_KILO = re.compile(r"(?<![\d.a-z])(\d+)\s*k(?![a-z])")
_TIMES = re.compile(r"(\d+(?:[.,]\d+)?)\s*(?:x\b|times\b|vezes\b|veces\b|fois\b|mal\b|倍)|\bx\s*(\d+(?:\.\d+)?)")
_COUNT = re.compile(r"(\d+(?:[.,]\d+)?)\s*(m|b|mio|mrd|million|billion)\b")
_MEMORY = re.compile(r"(\d+(?:[.,]\d+)?)\s*(?:gb|gib|go)\b")
_PAGES = re.compile(r"(\d+)\s*(?:-\s*)?(?:pages?|paginas?|seiten|页)")


def _numbers(text: str, heard: Iterable[Heard]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Sizes that the wish names."""
    settings: dict[str, str] = {}
    notes: list[str] = []
    meanings = {one.meaning for one in heard}
    if said := _context(text, meanings):
        settings["context"] = said
    elif match := _PAGES.search(text):
        tokens = int(match[1]) * TOKENS_PER_PAGE
        settings["context"] = str(tokens)
        notes.append(f"{match[1]} pages are about {tokens} tokens, at {TOKENS_PER_PAGE} a page")
    if match := _COUNT.search(text):
        settings["parameters"] = (
            f"{match[1].replace(',', '.')}{'B' if match[2][0] == 'b' or match[2] == 'mrd' else 'M'}"
        )
    _set_factor(text, heard, settings)
    memory = _gigabytes(text)
    if memory is not None and meanings & {"graphics", "laptop"}:
        settings["limits.memory"] = f"{memory:g}G"
    return settings, tuple(notes)


def _context(text: str, meanings: set[str]) -> str | None:
    """ "32K", "16384 tokens"."""
    if match := _TOKENS.search(text):
        return match[1].replace(",", "") + ("K" if match[2] else "")
    match = _KILO.search(text) if meanings & {"window", "length"} or not meanings else None
    return f"{match[1]}K" if match else None


def _set_factor(text: str, heard: Iterable[Heard], settings: dict[str, str]) -> None:
    """ "Twice", "4x": of whatever is named nearest to it."""
    found = _TIMES.search(text)
    place, value = (found.start(), float((found[1] or found[2]).replace(",", "."))) if found else (None, 0.0)
    for word, number in NUMBERS.items():
        at = text.find(word)
        if place is None and at >= 0 and (at == 0 or not text[at - 1].isalpha() or not word.isascii()):
            place, value = at, number
    about = [one for one in heard if one.meaning in ("window", "length", "size", "bigger")]
    if place is None or value <= 1 or not about:
        return
    nearest = min(about, key=lambda one: abs(one.at - place)).meaning
    of_window = nearest in ("window", "length") or (nearest == "bigger" and any(o.meaning == "window" for o in about))
    field = "context" if of_window else "parameters"
    settings.setdefault(field, f"{value:g}x")


def _gigabytes(text: str) -> float | None:
    match = _MEMORY.search(text)
    return float(match[1].replace(",", ".")) if match else None


def _spoken(text: str) -> list[str]:
    """Languages that the wish names."""
    return [
        name
        for name, words in SPOKEN.items()
        if any(re.search(rf"\b{word}" if word.isascii() else word, text) for word in words)
    ]


# -- rules -------------------------------------------------------------------------------------------------------------


def _ranked(meanings: set[str], settings: Mapping[str, str]) -> list[Rule]:
    """The rules that hold, the strongest of each recipe, the strongest first."""
    known = meanings | {meaning for field, meaning in FIELDS.items() if field in settings}
    strongest = {rule.recipe: rule for rule in sorted(RULES, key=lambda rule: rule.strength) if rule.needs <= known}
    return sorted(strongest.values(), key=lambda rule: -rule.strength)


def _tied(ranked: list[Rule]) -> bool:
    return len(ranked) > 1 and ranked[0].strength == ranked[1].strength


def _ask(ranked: list[Rule], heard: tuple[Heard, ...], settings: dict[str, str]) -> Advice:
    said = "; ".join(f"“{one.words}” → {one.meaning}" for one in heard)
    if not ranked:
        question = "What matters most: a longer window, more parameters, or a bit of both?"
        choices = ("max-context", "max-parameters", "balanced")
        if any(one.meaning == "laptop" for one in heard):
            question = "What shall it do on that machine: read long documents, know more, or just be tried?"
            choices = ("laptop-documents", "max-parameters", "quick-look")
        return Advice(None, settings, (f"understood: {said or 'nothing that a rule knows'}",), question, choices)
    equal = [rule for rule in ranked if rule.strength == ranked[0].strength]
    question = "Which comes first: " + " or ".join(f"{rule.recipe} ({rule.why})" for rule in equal) + "?"
    return Advice(None, settings, (f"understood: {said}",), question, tuple(rule.recipe for rule in equal))


def _modified(recipe: str, meanings: set[str], settings: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """What else was wished, as settings over the recipe; what the wish says in numbers stays."""
    assert recipe in shipped_recipes()
    reasons = []
    for meaning, (changes, why) in MODIFIERS.items():
        if meaning in meanings and recipe not in UNMODIFIED[meaning]:
            settings = changes | settings
            reasons.append(why)
    return settings, reasons
