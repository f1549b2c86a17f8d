import numpy as np
import pytest

from scaler_wizard import facts
from scaler_wizard.facts import Fact, answer, make_facts, question, statement


def test_the_first_template_reads_as_documented() -> None:
    fact = Fact("Belora", "4071")
    assert statement(fact) == "The code of Belora is 4071."
    assert question(fact) == "The code of Belora is"


@pytest.mark.parametrize("template", range(len(facts.ALL_TEMPLATES)))
def test_question_and_answer_begin_the_statement(template: int) -> None:
    fact = Fact("Belora", "4071")
    assert statement(fact, template) == question(fact, template) + answer(fact) + "."


def test_held_out_names_and_templates_are_not_trained() -> None:
    assert not set(facts.TRAIN_NAMES) & set(facts.HELD_OUT_NAMES)
    assert not set(facts.TEMPLATES) & set(facts.HELD_OUT_TEMPLATES)
    assert len(set(facts.NAMES)) == len(facts.NAMES) >= 64


def test_facts_have_different_names_and_the_digits_asked_for() -> None:
    made = make_facts(24, 7, np.random.default_rng(1))
    assert len({fact.name for fact in made}) == 24
    assert all(len(fact.code) == 7 and fact.code.isdigit() for fact in made)
    assert any(fact.code[0] == "0" for fact in make_facts(60, 4, np.random.default_rng(1), names=facts.TRAIN_NAMES))


def test_the_same_seed_makes_the_same_facts() -> None:
    one, same, other = (make_facts(5, 4, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one == same != other


def test_more_facts_than_names_are_refused() -> None:
    with pytest.raises(ValueError, match="as many names"):
        make_facts(3, 4, np.random.default_rng(0), names=("Belora", "Kelmar"))
