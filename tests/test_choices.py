"""A tree of choices scores as each choice alone, in every family, and reads shared examples once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaler_wizard.evals.choices import Answered, Question, _alone, _batches, _Tree, _trees, answer_all, right
from scaler_wizard.evals.perplexity import token_nll
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer
from tiny_models import load, make

EXAMPLES = "Question: Who was the son of Isaac?\nAnswer: Jacob\n\nQuestion: Who built the ark?\nAnswer: Noah\n\n"
QUESTIONS = [
    Question("Question: Who led them out?\nAnswer:", ("Moses", "Aaron the priest", "Pharaoh"), 0),
    Question("Question: Where was it, in the days of the king?\nAnswer:", ("in Judah", "Egypt", "the sea"), 0),
    Question("Q:", ("x", "x y", "z"), 2),
]


def alone(model: Any, tokenizer: Any, examples: str) -> list[Answered]:
    shared, trees = _trees(tokenizer, QUESTIONS, examples)
    return [_alone(model, shared, tree) for tree in trees]


@pytest.mark.parametrize("examples", [EXAMPLES, ""])
def test_a_tree_scores_as_each_choice_alone(examples: str) -> None:
    model, tokenizer = load_model(EMBEDDED, dtype="float32"), load_tokenizer(EMBEDDED)
    ours = {found.number: found for found in answer_all(model, tokenizer, QUESTIONS, examples=examples)}
    for expected in alone(model, tokenizer, examples):
        np.testing.assert_allclose(ours[expected.number].log_likelihoods, expected.log_likelihoods, atol=2e-4)


def test_no_question_is_padded_to_more_than_twice_its_length() -> None:
    empty = np.zeros(0, np.int32)
    trees = [_Tree(at, np.zeros(size, np.int32), (empty,), (0,)) for at, size in enumerate([9, 471, 40, 114, 60, 50])]
    lengths = [[tree.tokens for tree in batch] for batch in _batches(trees)]
    assert lengths == [[9], [471], [114, 60], [50, 40]]


def test_scores_are_those_of_whole_strings() -> None:
    model, tokenizer = load_model(EMBEDDED, dtype="float32"), load_tokenizer(EMBEDDED)
    (found, *_) = sorted(answer_all(model, tokenizer, QUESTIONS, examples=EXAMPLES), key=lambda a: a.number)
    context = tokenizer(EXAMPLES + QUESTIONS[0].prompt, add_special_tokens=False)["input_ids"]
    for choice, ours in zip(QUESTIONS[0].choices, found.log_likelihoods, strict=True):
        ids = tokenizer(f"{EXAMPLES}{QUESTIONS[0].prompt} {choice}", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        theirs = sum(float(logits[at - 1, ids[at]]) for at in range(len(context), len(ids)))
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gemma3_text", "mistral", "mixtral", "phi3"])
@pytest.mark.parametrize("window", [4096, 8])
def test_every_family_scores_trees_right_also_where_layers_slide(tmp_path: Path, family: str, window: int) -> None:
    sliding = {"sliding_window": window} if family in ("qwen2", "gemma2", "gemma3_text", "mistral") else {}
    make(tmp_path, family, vocab_size=1024, max_position_embeddings=256, **sliding)
    model, tokenizer = load(tmp_path), load_tokenizer(EMBEDDED)
    ours = {found.number: found for found in answer_all(model, tokenizer, QUESTIONS, examples=EXAMPLES)}
    for expected in alone(model, tokenizer, EXAMPLES):
        scale = np.abs(expected.log_likelihoods).max()
        np.testing.assert_allclose(ours[expected.number].log_likelihoods, expected.log_likelihoods, atol=1e-4 * scale)


@pytest.mark.parametrize("family", ["granite", "gemma2"])
def test_losses_are_those_of_the_model_with_its_scaled_or_capped_logits(tmp_path: Path, family: str) -> None:
    model = load(make(tmp_path, family))
    ids = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        theirs = torch.nn.functional.cross_entropy(
            model(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
    np.testing.assert_allclose(token_nll(model, ids.numpy()), theirs.numpy(), rtol=1e-4)


def test_right_answers_keep_the_order_of_the_questions() -> None:
    answers = [
        Answered(2, np.array([0.0, -1, -2])),
        Answered(0, np.array([0.0, -1, -2])),
        Answered(1, np.array([-3.0, 0])),
    ]
    assert right(QUESTIONS, answers) == [True, False, False]
