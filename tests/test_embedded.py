"""The model that ships with the package, and the scripts that made and measured it."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import scaler_wizard
from scaler_wizard.data import Tokens, encode, load_corpus

EMBEDDED = Path(scaler_wizard.__file__).parent / "embedded"
SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def card() -> ModuleType:
    return script("card_embedded")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def books(tokenizer: Any) -> list[Tokens]:
    return encode(load_corpus("kjv").heldout, tokenizer)


def test_it_is_a_stock_llama_of_0_82_million_parameters_in_3_megabytes() -> None:
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.num_parameters() == 820_352
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 128
    assert model.config.rope_parameters["rope_type"] == "default"
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 3.4e6


def test_every_digit_is_a_token_and_text_survives_the_tokenizer(tokenizer: Any) -> None:
    text = "The code of Belora is 4071. Naïve ☃\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize(" 4071")[-4:] == ["4", "0", "7", "1"]
    assert len(tokenizer) == 1024


def test_it_finds_unseen_facts_inside_its_window(card: ModuleType, tokenizer: Any, books: list[Tokens]) -> None:
    asked = card.needles(books, tokenizer, 128, count=32)
    assert card.retrieve(card.load(EMBEDDED), asked).exact >= 28


def test_it_is_lost_beyond_its_window_until_yarn_extends_it(
    card: ModuleType, tokenizer: Any, books: list[Tokens]
) -> None:
    asked = card.needles(books, tokenizer, 512, count=12)
    assert card.retrieve(card.load(EMBEDDED), asked).exact <= 1
    assert card.retrieve(card.load(EMBEDDED, 4), asked).exact >= 9


def test_it_reads_held_out_text_better_than_a_table_of_word_pieces(
    card: ModuleType, tokenizer: Any, books: list[Tokens]
) -> None:
    text = card.held_out_windows(books, 128, limit=32)
    counts = torch.bincount(text.flatten(), minlength=1024).double()
    unigram = -(counts / counts.sum() * torch.log(counts / counts.sum()).nan_to_num(neginf=0)).sum()
    assert card.text_nll(card.load(EMBEDDED), text, 127) < float(unigram) - 1.5


def test_the_model_card_names_the_parameters_that_the_weights_have() -> None:
    text = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert "820,352 parameters" in text
    assert "public domain" in text


def train(out: Path, seed: int) -> str:
    script("train_embedded").train(out, seed, rows=6, copy_rows=4, copy_steps=2, steps=3)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def test_the_training_script_makes_the_same_loadable_model_for_the_same_seed(tmp_path: Path) -> None:
    assert train(tmp_path / "one", 7) == train(tmp_path / "same", 7)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "one").num_parameters() == 820_352
    assert AutoTokenizer.from_pretrained(tmp_path / "one").tokenize("42") == ["4", "2"]
    log = [json.loads(line) for line in (tmp_path / "one" / "training.jsonl").read_text().splitlines()]
    assert any("text_nll" in entry for entry in log)


def test_the_committed_tokenizer_is_the_one_the_script_trains(tmp_path: Path, tokenizer: Any) -> None:
    again = script("train_embedded").train_tokenizer(load_corpus("kjv").train)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_training_batch_asks_for_something_it_has_told(tokenizer: Any) -> None:
    training = script("train_embedded")
    stream = np.full(1000, 5, dtype=np.int64)

    def encoded(text: str) -> Any:
        return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    batch = training.retrievals(8, 128, stream, np.random.default_rng(0), encoded=encoded)
    for ids, weights in zip(batch.ids, batch.weights, strict=True):
        answer = "".join(tokenizer.convert_ids_to_tokens(ids[weights == 5].tolist()))
        assert answer.isdigit()
        assert tokenizer.decode(ids).count(answer) >= 2
