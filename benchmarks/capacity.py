"""Ranks of adapters against how much there is to learn: held-out loss by rank and by tokens trained on.

    .venv/bin/python benchmarks/capacity.py                              # three lengths, five ranks, about an hour
    .venv/bin/python benchmarks/capacity.py --steps 240 --ranks 8 64     # the rank by width alone against the rule's

The embedded model, trained on the King James Bible, learns Python by adapters from the sources of its own library
(3.2M tokens, every fourth file held out). Each training is made at two peak learning rates and the better one counts,
for every rank alike, since rank-stabilised adapters of a higher rank want a smaller one. Rank 0 trains the whole model.
`rule` is the rank that a plan would choose. 1 where the rule's rank, with the width alone it would be 8, does not win
wherever it is higher.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from scaler_wizard.architecture import read_architecture
from scaler_wizard.batches import text_of
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.data import Document, Tokens, encode, windows
from scaler_wizard.estimate import LEAST_RANK, adapter_rank
from scaler_wizard.evals.perplexity import token_nll
from scaler_wizard.lora import add_lora
from scaler_wizard.models import EMBEDDED, load_model, load_tokenizer
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.train import Trainer

WINDOW, PER_STEP = 128, 32
PACKAGES = (".", "asyncio", "email", "unittest", "multiprocessing", "json")


def main() -> int:
    """Train all, print a table by tokens and rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[15, 60, 240], help="4,096 tokens each")
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 16, 32, 64, 128, 0])
    parser.add_argument("--rates", type=float, nargs="*", default=[4e-3, 1e-2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, seed {options.seed}\n")
    train, held_out = library()
    print("| tokens | rule | " + " | ".join(f"rank {rank}" if rank else "whole" for rank in options.ranks) + " |")
    print("|---" * (2 + len(options.ranks)) + "|")
    lost = False
    for steps in options.steps:
        tokens = steps * PER_STEP * WINDOW
        rule, found = adapter_rank(read_architecture(EMBEDDED), tokens), {}
        for rank in options.ranks:
            found[rank] = min(learnt(rank, rate, steps, train, held_out, options.seed) for rate in options.rates)
        print(f"| {tokens:,} | {rule} | " + " | ".join(f"{loss:.3f}" for loss in found.values()) + " |", flush=True)
        lost |= rule != LEAST_RANK and {rule, LEAST_RANK} <= set(found) and found[rule] >= found[LEAST_RANK]
    return int(lost)


def library() -> tuple[list[Tokens], Tokens]:
    """Python's own sources: three files of four to learn from, windows of the others."""
    root = Path(os.__file__).parent
    files = [file for package in PACKAGES for file in sorted((root / package).glob("*.py"))]
    documents = [Document(str(file), file.read_text(encoding="utf-8", errors="replace")) for file in files]
    encoded = encode(documents, load_tokenizer(EMBEDDED))
    return [ids for n, ids in enumerate(encoded) if n % 4], windows(encoded[::4], WINDOW, limit=300)


def learnt(rank: int, rate: float, steps: int, train: list[Tokens], held_out: Any, seed: int) -> float:
    """Held-out loss after one training, nats per token."""
    settings = Train(
        train="lora" if rank else "all",
        steps=steps,
        windows_per_step=PER_STEP,
        micro_batch=PER_STEP,
        window=WINDOW,
        short_share=0.0,
        learning_rate=rate,
        warmup_steps=max(2, steps // 20),
        evaluate_every=steps,
    )
    model = load_model(EMBEDDED, dtype="float32")
    model = add_lora(model, rank=rank, seed=seed) if rank else model
    with tempfile.TemporaryDirectory() as scratch:
        Trainer(
            model=model,
            text=text_of(train, None, settings, native=WINDOW, target=WINDOW, seed=seed),
            settings=settings,
            evaluate=lambda _: 10.0,
            watch=CircuitBreaker(Breaker(action="warn")),
            emit=lambda _: None,
            scratch=Path(scratch),
            should_stop=lambda: False,
            seed=seed,
            compute=torch.float32,
        ).run()
    inner = model.get_base_model() if rank else model
    return float(token_nll(inner.eval(), held_out).mean())


if __name__ == "__main__":
    raise SystemExit(main())
