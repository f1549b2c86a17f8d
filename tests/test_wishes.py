"""Wishes in six languages. No rule was tuned on the held-out ones: a first part was written before the rules, a
second one, in freer words, after them; each was read once before it became a test.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scaler_wizard.recipe import load_recipe, shipped_recipes
from scaler_wizard.wishes import LANGUAGES, MODIFIERS, RULES, UNMODIFIED, WORDS, plain, understand

FOLDER = Path(__file__).parent / "wishes"
TUNING: list[dict[str, Any]] = yaml.safe_load((FOLDER / "tuning.yaml").read_text(encoding="utf-8"))
HELD_OUT: list[dict[str, Any]] = yaml.safe_load((FOLDER / "held_out.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", TUNING, ids=lambda line: line["wish"])
def test_a_wish_becomes_the_recipe_that_was_meant(line: dict[str, Any]) -> None:
    advice = understand(line["wish"])
    assert advice.recipe == line["recipe"], advice
    wanted = {key: str(value) for key, value in line.get("settings", {}).items()}
    assert wanted.items() <= advice.settings.items()
    assert (advice.question is None) == (advice.recipe is not None)


def test_nine_of_ten_held_out_wishes_become_the_recipe_that_was_meant() -> None:
    wrong = [line["wish"] for line in HELD_OUT if understand(line["wish"]).recipe != line["recipe"]]
    assert len(HELD_OUT) >= 80 and len(wrong) <= len(HELD_OUT) // 10, wrong


def test_no_held_out_wish_was_tuned_on() -> None:
    assert not {line["wish"] for line in TUNING} & {line["wish"] for line in HELD_OUT}
    assert len(TUNING) + len(HELD_OUT) >= 120


def test_what_comes_out_is_a_recipe_that_loads() -> None:
    answers = {
        (recipe, tuple(advice.settings.items()))
        for advice in (understand(line["wish"]) for line in TUNING + HELD_OUT)
        for recipe in (advice.choices if advice.recipe is None else (advice.recipe,))
    }
    assert len(answers) > 40
    for recipe, settings in answers:
        load_recipe(Path(recipe), ["model=embedded", *(f"{key}={value}" for key, value in settings)])


def test_a_question_names_its_choices_and_an_answer_settles_it() -> None:
    asked = understand("better maths and better poems, and 16K tokens")
    assert asked.recipe is None and asked.question is not None and asked.question.endswith("?")
    assert set(asked.choices) == {"reasoning", "creative"}
    settled = understand("better maths and better poems, and 16K tokens", chosen="creative")
    assert (settled.recipe, settled.settings["context"]) == ("creative", "16K")


def test_reasons_quote_the_words_that_led_there() -> None:
    reasons = " ".join(understand("budget laptop, long contracts in Portuguese, nothing slow").reasons)
    assert all(word in reasons for word in ("laptop", "contracts", "nothing slow", "budget"))


def test_the_same_wish_is_understood_the_same_way() -> None:
    assert len({repr(understand("Längere Verträge, billig, auf dem Laptop")) for _ in range(3)}) == 1


def test_accents_case_and_punctuation_do_not_matter() -> None:
    assert understand("RACIOCINIO LOGICO!!!").recipe == understand("raciocínio lógico").recipe == "reasoning"


def test_a_large_gpu_is_no_small_one() -> None:
    assert understand("bigger and longer on my 24 GB GPU").recipe == "balanced"
    assert understand("bigger and longer on my 6 GB GPU").recipe == "small-gpu"


def test_a_language_that_is_named_asks_for_texts_in_it() -> None:
    reasons = " ".join(understand("long contracts in Portuguese on my laptop").reasons)
    assert "texts in Portuguese" in reasons and "data=FOLDER" in reasons
    assert "texts in German" in " ".join(understand("längere deutsche Verträge").reasons)
    assert "texts in" not in " ".join(understand("longer context").reasons)


def test_pages_become_tokens_and_it_is_said_how() -> None:
    advice = understand("read contracts of 200 pages")
    assert advice.settings["context"] == str(200 * 650)
    assert "650 a page" in " ".join(advice.reasons)


@pytest.mark.parametrize("wish", ["", "?", "🙂🙂", "x" * 5000, "16K " * 500, "\x00\n\t"])
def test_nonsense_gets_a_question_or_an_answer_and_never_an_error(wish: str) -> None:
    advice = understand(wish)
    assert (advice.recipe is None) == (advice.question is not None)


def test_every_rule_names_a_shipped_recipe_and_every_meaning_speaks_six_languages() -> None:
    assert {rule.recipe for rule in RULES} == set(shipped_recipes())
    words = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    known = set(words) | {"long", "larger", "small_gpu"}
    assert all(rule.needs <= known for rule in RULES)
    assert set(MODIFIERS) == set(UNMODIFIED) <= known
    for meaning, languages in words.items():
        assert tuple(languages) == LANGUAGES, meaning
        assert all(
            plain(word) == word.strip("-") or plain(word) == word for group in languages.values() for word in group
        )
