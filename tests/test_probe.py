"""The knowledge probe: real questions, answered by likelihood."""

from __future__ import annotations

from scaler_wizard.evals.probe import ask_all, capitals, wilson
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer, settle_dtype


def test_questions_are_made_of_real_countries_and_are_the_same_for_the_same_seed() -> None:
    questions = capitals(120, seed=0)
    assert len(questions) > 100 and questions == capitals(120, seed=0) != capitals(120, seed=1)
    germany = next(question for question in questions if question.prompt == "The capital of Germany is")
    assert germany.choices[germany.right] == "Berlin"
    assert all(len(set(question.choices)) == 4 for question in questions)


def test_the_answer_is_the_choice_with_the_smallest_loss_per_character() -> None:
    settle_dtype("float32", "test")
    questions = capitals(8, seed=0)
    answers = ask_all(load_model(EMBEDDED), load_tokenizer(EMBEDDED), questions)
    assert len(answers) == len(questions)
    assert ask_all(load_model(EMBEDDED), load_tokenizer(EMBEDDED), questions[:1]) == answers[:1]


def test_ten_questions_decide_nothing() -> None:
    few, many = wilson(7, 10), wilson(153, 219)
    assert few.high - few.low > 0.49 and many.high - many.low < 0.13
