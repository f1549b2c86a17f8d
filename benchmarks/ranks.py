"""Ranks spread by the gradient's spectrum against the same rank everywhere, at equal trainable parameters.

    .venv/bin/python benchmarks/ranks.py --seeds 10

Where no rank is given, the uniform contestant has that of a rule of thumb, which is to be beaten at its own number of
parameters: min(32, max(8, millions of parameters x 0.01)) x target factor x memory factor; both factors are 1 here,
since the model keeps its size and memory does not bind.

The embedded model (trained on the King James Bible) learns another kind of text, Python's own documentation, by
adapters. Each seed draws other text and other first weights, the same for both, as is the learning rate. Held-out loss
on documents that nothing was trained on.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

from scaler_wizard.batches import Batch, Text, batches, text_of
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.data import Document, Tokens, encode, windows
from scaler_wizard.evals.perplexity import token_nll
from scaler_wizard.lora import add_lora, spectrum_ranks
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.train import Trainer, batch_loss

WINDOW, PER_STEP = 128, 8


@dataclass(frozen=True)
class Corpus:
    """One split of the documentation."""

    train: list[Tokens]
    held_out: Tokens


def main() -> int:
    """Train both ways with every seed, print the differences; 1 where spreading wins in less than 70 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=formula_rank(820_352))
    parser.add_argument("--rate", type=float, default=4e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, rank {options.rank}, {options.steps} steps")
    corpus = documentation()
    print("\n| seed | uniform | spread | difference | parameters |\n|---|---|---|---|---|")
    differences = []
    for seed in range(options.first, options.first + options.seeds):
        (one, size), (two, other) = (run(way, options.rate, seed, corpus, options) for way in ("uniform", "spread"))
        differences.append(two - one)
        print(f"| {seed} | {one:.4f} | {two:.4f} | {two - one:+.4f} | {size}, {other} |", flush=True)
    wins = float(np.mean(np.array(differences) < 0))
    print(f"\nspread wins in {wins:.0%}; mean difference {np.mean(differences):+.4f} nats per token")
    return 0 if wins >= 0.7 else 1


def formula_rank(parameters: int, *, target: float = 1.0, memory: float = 1.0) -> int:
    """The rule of thumb; factors above 1 ask for more capacity, below 1 for less memory."""
    return max(1, round(min(32.0, max(8.0, parameters / 1e6 * 0.01)) * target * memory))


def documentation() -> Corpus:
    """Python's topics: three quarters to learn from."""
    documents = [Document(name, text) for name, text in sorted(topics.items()) if len(text) > 1500]
    encoded = encode(documents, load_tokenizer(EMBEDDED))
    return Corpus([ids for n, ids in enumerate(encoded) if n % 4], windows(encoded[::4], WINDOW, limit=200))


def run(way: str, rate: float, seed: int, corpus: Corpus, options: Any) -> tuple[float, int]:
    """Held-out loss after one training, and its trainable parameters."""
    settings = Train(
        train="lora",
        steps=options.steps,
        windows_per_step=PER_STEP,
        micro_batch=PER_STEP,
        window=WINDOW,
        short_share=0.0,
        learning_rate=rate,
        warmup_steps=5,
        evaluate_every=options.steps,
    )
    text = text_of(corpus.train, None, settings, native=WINDOW, target=WINDOW, seed=seed)
    model = load_model(EMBEDDED, dtype="float32")
    ranks = gradient_ranks(model, text, settings, seed, options.rank) if way == "spread" else None
    model = add_lora(model, rank=options.rank, seed=seed, ranks=ranks)
    trainer = Trainer(
        model=model,
        text=text,
        settings=settings,
        evaluate=lambda _: 10.0,
        watch=CircuitBreaker(Breaker()),
        emit=lambda _: None,
        scratch=Path(tempfile.mkdtemp()),
        should_stop=lambda: False,
        seed=seed,
        compute=torch.float32,
    )
    trainer.run()
    loss = float(token_nll(model.get_base_model().eval(), corpus.held_out).mean())
    return loss, sum(p.numel() for p in model.parameters() if p.requires_grad)


def gradient_ranks(model: Any, text: Text, settings: Train, seed: int, rank: int) -> dict[str, int]:
    """From the first four steps' text."""

    def loss(batch: Batch) -> Any:
        return lambda inner: batch_loss(inner, batch, torch.float32)

    parts = [part for step in range(4) for part in batches(text, settings, step, seed)]
    return spectrum_ranks(model, [loss(part) for part in parts], rank=rank)


if __name__ == "__main__":
    raise SystemExit(main())
