"""Measure the embedded model on held-out text and write its model card.

    OMP_NUM_THREADS=1 python scripts/card_embedded.py src/scaler_wizard/embedded

Every figure in the card is measured here, on books, names and codes that the training never saw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from scaler_wizard import facts
from scaler_wizard.data import Corpus, Tokens, encode, load_corpus, windows

WINDOW = 128
DIGITS = 4


@dataclass(frozen=True)
class Retrieval:
    """How many of `asked` codes were named exactly, and the mean negative log likelihood of their digits."""

    exact: int
    asked: int
    nll: float


def load(folder: Path, factor: int = 1, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model, with static YaRN (arXiv:2309.00071) to `factor` windows; computed in float32, stored in `dtype`."""
    config = LlamaConfig.from_pretrained(folder)
    if factor > 1:
        yarn = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": WINDOW}
        config.rope_parameters = {**yarn, "rope_theta": config.rope_parameters["rope_theta"]}
        config.max_position_embeddings = factor * WINDOW
    return LlamaForCausalLM.from_pretrained(folder, config=config, dtype=dtype).float().eval()


def needles(books: Sequence[Tokens], tokenizer: Any, length: int, *, count: int, template: int = 0) -> torch.Tensor:
    """Windows (count, length): one fact in the first quarter of held-out text, asked and answered at the end."""
    rng = np.random.default_rng(length + template)
    long = [book for book in books if len(book) > 2 * length]
    rows = []
    for fact, book in zip((_fact(rng) for _ in range(count)), long * count, strict=False):
        told = _ids(tokenizer, " " + facts.statement(fact, template))
        asked = _ids(tokenizer, " " + facts.question(fact, template) + facts.answer(fact))
        room = length - len(told) - len(asked)
        start = int(rng.integers(0, len(book) - room))
        depth = int(rng.integers(0, length // 4))
        filler = book[start : start + room]
        rows.append(np.concatenate([filler[:depth], told, filler[depth:], asked]))
    return torch.from_numpy(np.stack(rows)).long()


def _fact(rng: np.random.Generator) -> facts.Fact:
    return facts.make_facts(1, DIGITS, rng, names=facts.HELD_OUT_NAMES)[0]


def _ids(tokenizer: Any, text: str) -> Tokens:
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def retrieve(model: Any, ids: torch.Tensor) -> Retrieval:
    """Are all digits of the answer, the last tokens of each row, the likeliest?"""
    answers = ids[:, -DIGITS:]
    with torch.no_grad():
        logits = torch.cat([model(rows).logits[:, -DIGITS - 1 : -1] for rows in ids.split(8)])
    exact = int((logits.argmax(-1) == answers).all(dim=1).sum())
    nll = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
    return Retrieval(exact, len(ids), float(nll))


def text_nll(model: Any, ids: torch.Tensor, last: int) -> float:
    """Mean negative log likelihood, in nats, of the last `last` tokens of each row."""
    with torch.no_grad():
        logits = torch.cat([model(rows).logits[:, -last - 1 : -1] for rows in ids.split(8)])
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, -last:].flatten()))


def held_out_windows(books: Sequence[Tokens], length: int, *, limit: int) -> torch.Tensor:
    return torch.from_numpy(windows(books, length, limit=limit)).long()


def measure_window(folder: Path, books: Sequence[Tokens], tokenizer: Any) -> list[str]:
    """Rows of the card's first table: inside the trained window."""
    lines = []
    text = held_out_windows(books, WINDOW, limit=256)
    for name, dtype in (("float32, as stored", torch.float32), ("rounded to bfloat16", torch.bfloat16)):
        model = load(folder, dtype=dtype)
        trained = retrieve(model, needles(books, tokenizer, WINDOW, count=128))
        unseen = retrieve(model, needles(books, tokenizer, WINDOW, count=128, template=len(facts.TEMPLATES)))
        nll = text_nll(model, text, WINDOW - 1)
        lines.append(f"| {name} | {nll:.4f} | {_shown(trained)} | {_shown(unseen)} |")
    return lines


def measure_beyond(folder: Path, books: Sequence[Tokens], tokenizer: Any) -> list[str]:
    """Rows of the second table: the same model beyond its window, as it is and with YaRN, without training."""
    lines = []
    for factor in (4, 8):
        length = factor * WINDOW
        asked = needles(books, tokenizer, length, count=32)
        text = held_out_windows(books, length, limit=32)
        alone = text_nll(load(folder), text[:, -WINDOW:], 32)
        for name, scale in (("default", 1), (f"YaRN x{factor}", factor)):
            model = load(folder, scale)
            far, near = text_nll(model, text, 32), text_nll(model, text[:, :WINDOW], 32)
            found = _shown(retrieve(model, asked))
            lines.append(f"| {length} | {name} | {found} | {near:.3f} | {far:.3f} | {alone:.3f} |")
    return lines


def _shown(result: Retrieval) -> str:
    return f"{result.exact}/{result.asked} ({result.nll:.3f})"


def card(folder: Path, corpus: Corpus) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    books = encode(corpus.heldout, tokenizer)
    cost = _last_line(folder / "training.jsonl")["core_seconds"]
    parameters = load(folder).num_parameters()
    return CARD.format(
        parameters=f"{parameters:,}",
        core_seconds=cost,
        corpus=f"{corpus.name} ({corpus.licence})",
        train=len(corpus.train),
        held_out=", ".join(book.name for book in corpus.heldout),
        inside="\n".join(measure_window(folder, books, tokenizer)),
        beyond="\n".join(measure_beyond(folder, books, tokenizer)),
    )


def _last_line(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return entry


CARD = """---
license: apache-2.0
language: en
library_name: transformers
---
# The embedded model

A Llama of {parameters} parameters with a window of 128 tokens, small enough to ship with the package. It exists to
show and to test: it retrieves facts inside its window, fails beyond it, and finds them again when its window is
extended. It is not meant to write anything.

- **Shape:** 4 layers of 128, 4 query heads and 2 key-value heads of 32, feed-forward 320, tied embeddings, RoPE theta
  10,000, vocabulary 1,024 (byte-level BPE; every digit is a token). Stored in float32, since a model is loaded in the
  type it is stored in and many CPUs compute bfloat16 slowly.
- **Text:** {corpus}; {train} books to train on. Held out: {held_out}.
- **Training:** from nothing, `scripts/train_embedded.py`, seed 0, {core_seconds} core-seconds on one CPU core. First
  repeated random segments at a window of 32 over 64, 256, then all tokens; then 45 % text, 35 % questions about
  made-up facts hidden in text, 20 % copied random segments at a window of 128. Muon for matrices, AdamW for the rest.
- **Licence:** the weights are part of Scaler Wizard (Apache-2.0).

## Measured on held-out books, names and codes (`scripts/card_embedded.py`; one seed)
A fact reads "The code of NAME is 4071."; it stands in the first quarter of the window and is asked at the end. Exact:
all four digits are the likeliest (mean nats a digit in brackets).

| inside the window | text, nats a token | exact, trained sentence | exact, unseen sentence |
|---|---|---|---|
{inside}

Beyond the window, without training. Text is the mean of 32 windows over their tokens 96-128, over their last 32 tokens,
and over the same last tokens when only the 128 tokens before are given to the model as it is.

| length | RoPE | exact | 96-128 | last 32 | last 32, short context |
|---|---|---|---|---|---|
{beyond}
"""


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    torch.set_num_threads(1)
    (folder / "README.md").write_text(card(folder, load_corpus("kjv")), encoding="utf-8")
    print(f"wrote {folder / 'README.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
