"""Train the embedded model (0.82M parameters, window 128) from nothing, on one core, the same for the same seed.

    OMP_NUM_THREADS=1 python scripts/train_embedded.py --out src/scaler_wizard/embedded
    OMP_NUM_THREADS=1 python scripts/card_embedded.py src/scaler_wizard/embedded    # measure, write the model card

Stage 0 teaches copying: random segments that come twice, over a sub-vocabulary that grows as the copying is learned.
Without it the attention heads that look things up do not form in so small a budget. Stage 1 mixes text, retrieval
and copies at the full window.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scaler_wizard import facts
from scaler_wizard.data import Document, encode, load_kjv

WINDOW = 128
COPY_WINDOW = 32
MUON_RATE, ADAM_RATE = 0.02, 3e-3
COPY_RATE = 0.4  # share of both rates in stage 0; with 1.0 the copying stays on its plateau
MIX_RATE = 0.5  # share in stage 1; with 1.0 the text is learned sooner, but retrieval later
VOCABULARY = 1024
END = "<|endoftext|>"

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Token ids (rows, window) and the weight of each token as a target (rows, window)."""

    ids: Ids
    weights: Weights


# --- model and tokenizer -------------------------------------------------------------------------------------------


def train_tokenizer(documents: tuple[Document, ...]) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every digit is a token of its own, so that a code has one token per digit."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=WINDOW, clean_up_tokenization_spaces=False
    )


def new_model() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.03)
    for layer in model.model.layers:  # each block begins as the identity, so that tokens are not drowned at first
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


class Muon:
    """Momentum, then the nearest orthogonal matrix as the step (Jordan et al. 2024), equal shapes in one batch."""

    def __init__(self, parameters: list[torch.Tensor], momentum: float = 0.95) -> None:
        self.momentum = momentum
        shapes = sorted({tuple(p.shape) for p in parameters})
        self.groups = [[p for p in parameters if tuple(p.shape) == shape] for shape in shapes]
        self.buffers = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    def step(self, rate: float) -> None:
        with torch.no_grad():
            for group, buffer in zip(self.groups, self.buffers, strict=True):
                self._step(group, buffer, rate)

    def _step(self, group: list[torch.Tensor], buffer: torch.Tensor, rate: float) -> None:
        gradient = torch.stack([p.grad for p in group])
        buffer.lerp_(gradient, 1 - self.momentum)
        update = orthogonal(gradient.lerp(buffer, self.momentum))
        scale = max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
        for parameter, change in zip(group, update, strict=True):
            parameter.add_(change, alpha=-rate * scale)


def orthogonal(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards U V^T of each matrix of g (n, rows, columns); coefficients from Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


# --- batches -------------------------------------------------------------------------------------------------------


def copies(rows: int, window: int, vocabulary: int, rng: np.random.Generator) -> Batch:
    """Random tokens in which a segment comes twice, at a random distance; only what can be known is a target.

    Token 0 ends a text and is left out.
    """
    ids = rng.integers(1, vocabulary, size=(rows, window))
    weights = np.zeros((rows, window), dtype=np.float32)
    for row in range(rows):
        length = int(rng.integers(window // 8, window // 2 + 1))
        first = int(rng.integers(0, window - 2 * length + 1))
        second = int(rng.integers(first + length, window - length + 1))
        ids[row, second : second + length] = ids[row, first : first + length]
        weights[row, second + 1 : second + length] = 1
    return Batch(ids, weights)


def repeats(rows: int, window: int, vocabulary: int, rng: np.random.Generator) -> Batch:
    """A random segment of random length over and over: most tokens can be known, so copying is learned soonest here."""
    ids = np.zeros((rows, window), dtype=np.int64)
    weights = np.zeros((rows, window), dtype=np.float32)
    for row in range(rows):
        length = int(rng.integers(window // 8, window // 2 + 1))
        ids[row] = np.resize(rng.integers(1, vocabulary, size=length), window)
        weights[row, length + 1 :] = 1
    return Batch(ids, weights)


def texts(rows: int, window: int, stream: Ids, rng: np.random.Generator) -> Batch:
    starts = rng.integers(0, len(stream) - window, size=rows)
    ids = stream[starts[:, None] + np.arange(window)]
    return Batch(ids, np.ones((rows, window), dtype=np.float32))


def retrievals(
    rows: int, window: int, stream: Ids, rng: np.random.Generator, *, encoded: Callable[[str], Ids]
) -> Batch:
    """One to four facts scattered in text, one of them asked at the end; its digits weigh five times as much."""
    made = [_retrieval(window, stream, rng, encoded=encoded) for _ in range(rows)]
    return Batch(np.stack([ids for ids, _ in made]), np.stack([weights for _, weights in made]))


def _retrieval(
    window: int, stream: Ids, rng: np.random.Generator, *, encoded: Callable[[str], Ids]
) -> tuple[Ids, Weights]:
    digits = 4 if rng.random() < 0.8 else int(rng.integers(3, 7))
    told = facts.make_facts(int(rng.integers(1, 5)), digits, rng, names=facts.TRAIN_NAMES)
    template = int(rng.integers(len(facts.TEMPLATES)))
    inserts = [encoded(" " + facts.statement(fact, template)) for fact in told]
    end = encoded(" " + facts.question(told[0], template) + facts.answer(told[0]))
    room = window - len(end) - sum(map(len, inserts))
    start = int(rng.integers(0, len(stream) - window))
    filler = stream[start : start + room]
    cuts = np.sort(rng.integers(0, room + 1, size=len(inserts)))
    pieces = np.split(filler, cuts)
    order = rng.permutation(len(inserts))
    mixed = [pieces[0]]
    for place, piece in zip(order, pieces[1:], strict=True):
        mixed += [inserts[place], piece]
    weights = np.ones(window, dtype=np.float32)
    weights[-digits:] = 5
    return np.concatenate([*mixed, end]), weights


def mixture(rows: int, stream: Ids, rng: np.random.Generator, *, encoded: Callable[[str], Ids]) -> list[Batch]:
    """45 % text, 35 % retrieval, 20 % copies."""
    asked, copied = round(0.35 * rows), round(0.20 * rows)
    return [
        texts(rows - asked - copied, WINDOW, stream, rng),
        retrievals(asked, WINDOW, stream, rng, encoded=encoded),
        copies(copied, WINDOW, VOCABULARY, rng),
    ]


def joined(batches: list[Batch]) -> Batch:
    return Batch(np.concatenate([b.ids for b in batches]), np.concatenate([b.weights for b in batches]))


# --- training ------------------------------------------------------------------------------------------------------


class Trainer:
    """The model and its two optimizers."""

    def __init__(self, model: Any) -> None:
        self.model = model
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def losses(self, batch: Batch) -> torch.Tensor:
        """Negative log likelihood of every token but the first, (rows, window - 1)."""
        ids = torch.from_numpy(batch.ids)
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)

    def step(self, batch: Batch, rate: float) -> torch.Tensor:
        """One update at `rate` (a share of the full learning rates); the losses before it."""
        losses = self.losses(batch)
        weights = torch.from_numpy(batch.weights[:, 1:])
        ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.muon.step(MUON_RATE * rate)
        self.adam.param_groups[0]["lr"] = ADAM_RATE * rate
        self.adam.step()
        self.model.zero_grad()
        return losses.detach()


def learn_copying(
    trainer: Trainer, rng: np.random.Generator, *, rows: int, most: int, log: Callable[..., None]
) -> None:
    """Stage 0: the sub-vocabulary grows fourfold whenever the copied tokens cost less than 1 nat."""
    vocabulary, mean = 64, math.log(64)
    for step in range(most):
        batch = repeats(rows, COPY_WINDOW, vocabulary, rng)
        losses = trainer.step(batch, COPY_RATE * min(1.0, (step + 1) / 20))
        weights = torch.from_numpy(batch.weights[:, 1:])
        mean = 0.9 * mean + 0.1 * float((losses * weights).sum() / weights.sum())
        if step % 50 == 0 or mean < 1:
            log(stage=0, step=step, vocabulary=vocabulary, copy_nll=round(mean, 3))
        if mean < 1 and vocabulary == VOCABULARY:
            return
        if mean < 1:
            vocabulary, mean = min(4 * vocabulary, VOCABULARY), math.log(4 * vocabulary)
    log(stage=0, note="the copying was not learned within the steps allowed", copy_nll=round(mean, 3))


def learn_all(
    trainer: Trainer,
    stream: Ids,
    rng: np.random.Generator,
    *,
    rows: int,
    steps: int,
    encoded: Callable[[str], Ids],
    log: Callable[..., None],
    save: Callable[[], None],
) -> None:
    """Stage 1: the mixture at the full window, the rate falling to 0 along a cosine."""
    for step in range(steps):
        batches = mixture(rows, stream, rng, encoded=encoded)
        rate = MIX_RATE * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        losses = trainer.step(joined(batches), rate)
        if step % 50 == 0 or step == steps - 1:
            log(stage=1, step=step, rate=round(rate, 3), **_parts(batches, losses))
        if step % 200 == 199:
            save()


def _parts(batches: list[Batch], losses: torch.Tensor) -> dict[str, float]:
    text, asked, copied = torch.split(losses, [len(batch.ids) for batch in batches])
    known = torch.from_numpy(batches[2].weights[:, 1:])
    return {
        "text_nll": round(float(text.mean()), 3),
        "digit_nll": round(float(asked[:, -3:].mean()), 3),
        "copy_nll": round(float((copied * known).sum() / known.sum()), 3),
    }


# --- command -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=16, help="windows in a step of stage 1")
    parser.add_argument("--copy-rows", type=int, default=32, help="windows in a step of stage 0")
    parser.add_argument("--copy-steps", type=int, default=3000, help="most steps of stage 0")
    parser.add_argument("--steps", type=int, default=3000, help="steps of stage 1")
    options = parser.parse_args(arguments)
    train(
        options.out,
        options.seed,
        rows=options.rows,
        copy_rows=options.copy_rows,
        copy_steps=options.copy_steps,
        steps=options.steps,
    )


def train(out: Path, seed: int, *, rows: int, copy_rows: int, copy_steps: int, steps: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = load_kjv()
    tokenizer = train_tokenizer(corpus.train)
    tokenizer.save_pretrained(out)
    trainer = Trainer(new_model())
    log = _logger(out / "training.jsonl")
    log(parameters=trainer.model.num_parameters(), seed=seed, rows=rows, steps=steps)

    def save() -> None:
        trainer.model.save_pretrained(out)

    def encoded(text: str) -> Ids:
        return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    learn_copying(trainer, rng, rows=copy_rows, most=copy_steps, log=log)
    save()
    stream = _stream(encode(corpus.train, tokenizer))
    learn_all(trainer, stream, rng, rows=rows, steps=steps, encoded=encoded, log=log, save=save)
    save()


def _stream(encoded: list[npt.NDArray[np.int32]]) -> Ids:
    """All documents in a row, each closed by the end token (id 0)."""
    return np.concatenate([np.append(ids, 0) for ids in encoded]).astype(np.int64)


def _logger(path: Path) -> Callable[..., None]:
    started, cpu = time.perf_counter(), time.process_time()
    path.write_text("", encoding="utf-8")

    def log(**values: object) -> None:
        spent = {"seconds": round(time.perf_counter() - started), "core_seconds": round(time.process_time() - cpu)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, **spent}) + "\n")

    return log


if __name__ == "__main__":
    main(sys.argv[1:])
