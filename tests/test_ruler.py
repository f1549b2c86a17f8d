"""RULER's tasks fit their length, hide what they ask for, and score what greedy decoding would answer."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from scaler_wizard.data import load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.needle import encode
from scaler_wizard.evals.ruler import TASKS, effective_length, example, found_answers, ruler
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer

TOKENIZER = load_tokenizer(EMBEDDED)
ESSAY = load_corpus("kjv").heldout[-1].text
SHORT = 3072  # a UUID is 36 tokens for this tokenizer


def made(task: str, length: int = SHORT, seed: int = 0):
    return example(TOKENIZER, task, length, ESSAY, np.random.default_rng(seed))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [SHORT, 4096])
def test_examples_fit_their_length_and_use_it(task: str, length: int) -> None:
    one = made(task, length)
    tokens = len(encode(TOKENIZER, one.text + one.question)) + sum(
        len(encode(TOKENIZER, f" {a},")) for a in one.answers
    )
    assert 0.8 * length < tokens <= length or task == "qa_1" or task == "qa_2"
    assert tokens <= length


@pytest.mark.parametrize("task", [task for task in TASKS if task.startswith("niah")])
def test_every_needle_asked_for_stands_in_the_text_once(task: str) -> None:
    one = made(task)
    for answer in one.answers:
        (key,) = re.findall(rf"magic \w+s for (\S+) is: {answer}\.", one.text)
        assert key in one.question
    assert len(one.answers) == {"niah_multivalue": 4, "niah_multiquery": 4}.get(task, 1)


def test_distractors_of_multikey_outnumber_the_needle() -> None:
    assert len(re.findall("special magic", made("niah_multikey_1").text)) == 4
    assert len(re.findall("special magic", made("niah_multikey_2").text)) > 20


def test_the_chain_of_variables_leads_to_every_answer() -> None:
    one = made("vt")
    value, holds = re.search(r"value (\d+)", one.question)[1], {}
    for name, given in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", one.text):
        holds[name] = holds.get(given, given)
    assert {name for name, held in holds.items() if held == value} == set(one.answers) and len(one.answers) == 5


@pytest.mark.parametrize(("length", "often", "seldom"), [(SHORT, 6, 1), (8192, 30, 3)])
def test_common_words_are_the_common_ones(length: int, often: int, seldom: int) -> None:
    one = made("cwe", length)
    counts = Counter(re.findall(r"\d+\. (\S+)", one.text))
    assert {counts[word] for word in one.answers} == {often}
    assert {count for word, count in counts.items() if word not in one.answers} == {seldom}


def test_frequent_words_are_the_first_three_after_the_dots() -> None:
    one = made("fwe")
    ranked = [word for word, _ in Counter(one.text.split()).most_common(5)]
    assert ranked[0] == "..." and tuple(ranked[1:4]) == one.answers


def test_two_hops_lead_to_the_answer() -> None:
    one = made("qa_2")
    name = re.search(r"whom (.+) later", one.question)[1]
    friend = re.search(rf"{name}, .* worked with (.+)\.", one.text)[1]
    assert re.search(rf"{friend}, .* born in (\w+) ", one.text)[1] == one.answers[0]


def test_an_answer_is_found_exactly_where_greedy_decoding_gives_it() -> None:
    model = load_model(EMBEDDED, dtype="float32")
    context = encode(TOKENIZER, "And the LORD spake unto")
    ids = torch.from_numpy(context.astype(np.int64))[None]
    greedy = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    said = TOKENIZER.decode(greedy).removeprefix(" ")
    assert encode(TOKENIZER, f" {said}").tolist() == greedy.tolist()
    assert found_answers(model, TOKENIZER, context, [said]) == [True]
    assert found_answers(model, TOKENIZER, context, [said + "zz"]) == [False]
    assert sorted(found_answers(model, TOKENIZER, context, ["Xerxes", said])) == [False, True], "in whatever order"


def test_scores_carry_their_intervals() -> None:
    model = load_model(EMBEDDED, dtype="float32")
    scores = ruler(model, TOKENIZER, ESSAY, lengths=[768], tasks=["niah_single_1", "vt"], examples=2)
    assert [(score.task, score.answers) for score in scores] == [("niah_single_1", 2), ("vt", 10)]
    assert all(score.score.low <= score.score.value <= score.score.high for score in scores)


def test_a_length_that_a_task_cannot_fit_into_says_what_it_needs() -> None:
    model = load_model(EMBEDDED, dtype="float32")
    with pytest.raises(ScalerError, match=r"niah_multiquery needs \d+ tokens with this tokenizer, more than 128"):
        ruler(model, TOKENIZER, ESSAY, lengths=[128], tasks=["niah_multiquery"], examples=1)


def test_the_command_scores_ruler_in_words_and_refuses_a_length_that_is_none() -> None:
    command = [sys.executable, "-m", "scaler_wizard", "eval", "embedded"]
    slip = subprocess.run([*command, "--ruler", "long"], capture_output=True, text=True, check=False)
    assert slip.returncode == 2 and "--ruler: expected a number" in slip.stderr


def test_the_effective_length_ends_at_the_first_weak_length() -> None:
    assert effective_length({128: 1.0, 256: 0.9, 512: 0.5, 1024: 0.9}, reference=1.0) == 256
    assert effective_length({128: 0.2}, reference=1.0) is None
