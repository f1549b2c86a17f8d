"""Record real trainings, good and bad, to compare breakers: `python scripts/record_curves.py tests/curves.json`.

The embedded model trains on the King James Bible. Each curve is one training with one cause: none (healthy), a shock
that it gets over (spiking), a rate that is far too high from some step on (diverging), or text that slowly spoils it
(rotting). The loss of every step and the calibration loss of every evaluation are written down, and at which
evaluation the cause begins. About ten minutes on one core.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaler_wizard.data import encode, load_corpus, windows
from scaler_wizard.evals.perplexity import token_nll
from scaler_wizard.models import load_model, load_tokenizer, resolve

STEPS, EVERY, BATCH, WINDOW, ONSET = 240, 5, 8, 128, 100
CALIBRATION = 24
TEXTS = 4_000


@dataclass(frozen=True)
class Cause:
    """What happens in one training."""

    kind: str
    """healthy, spiking, diverging or rotting."""
    name: str
    rate: float = 1e-3
    """Peak learning rate."""
    bad_rate: float | None = None
    """Learning rate from the onset on."""
    bad_steps: int = STEPS
    """For how many steps it lasts."""
    text: str = "bible"
    """What is read from the onset on: bible, random (tokens), shuffled (within windows), reversed."""
    noise: float = 0.0
    """Share of a weight's own spread that is added to it at the onset, once."""
    warmup: int = 10


CAUSES = (
    Cause("healthy", "rate 3e-4", 3e-4),
    Cause("healthy", "rate 1e-3", 1e-3),
    Cause("healthy", "rate 3e-3", 3e-3),
    Cause("healthy", "rate 1e-5", 1e-5),
    Cause("healthy", "no warm-up", 3e-3, warmup=0),
    Cause("spiking", "one step at 0.03", bad_rate=0.03, bad_steps=1),
    Cause("spiking", "three steps at 0.01", bad_rate=0.01, bad_steps=3),
    Cause("spiking", "weights shaken by 10 %", noise=0.10),
    Cause("spiking", "weights shaken by 25 %", noise=0.25),
    Cause("spiking", "five batches of random tokens", bad_rate=3e-3, bad_steps=5, text="random"),
    Cause("diverging", "rate 0.02", bad_rate=0.02),
    Cause("diverging", "rate 0.05", bad_rate=0.05),
    Cause("diverging", "rate 0.2", bad_rate=0.2),
    Cause("diverging", "rate 1", bad_rate=1.0),
    Cause("rotting", "random tokens at 3e-5", 3e-4, bad_rate=3e-5, text="random"),
    Cause("rotting", "random tokens at 1e-4", 3e-4, bad_rate=1e-4, text="random"),
    Cause("rotting", "shuffled text at 3e-4", 3e-4, bad_rate=3e-4, text="shuffled"),
    Cause("rotting", "reversed text at 3e-4", 3e-4, bad_rate=3e-4, text="reversed"),
)


def record(cause: Cause, seed: int, model: Any, train: Any, calibration: Any) -> dict[str, Any]:
    """One training: what every step and every evaluation showed."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95))
    evaluations, losses = [_evaluate(model, calibration)], []
    for step in range(STEPS):
        bad = ONSET <= step < ONSET + cause.bad_steps
        if cause.noise and step == ONSET:
            _shake(model, cause.noise, seed)
        for group in optimizer.param_groups:
            group["lr"] = cause.bad_rate if bad and cause.bad_rate is not None else _rate(cause, step)
        losses.append(_step(model, optimizer, _batch(cause, bad, train, rng)))
        if (step + 1) % EVERY == 0:
            evaluations.append(_evaluate(model, calibration))
        if not math.isfinite(losses[-1]):
            break
    return {
        "kind": cause.kind,
        "name": cause.name,
        "seed": seed,
        "onset": None if cause.kind == "healthy" else ONSET // EVERY,
        "evaluate_every": EVERY,
        "nll": [round(value, 4) for value in evaluations],
        "loss": [round(value, 3) for value in losses],
    }


def _rate(cause: Cause, step: int) -> float:
    return (
        cause.rate
        * min(1.0, (step + 1) / max(1, cause.warmup))
        * (0.1 + 0.9 * (1 + math.cos(math.pi * step / STEPS)) / 2)
    )


def _batch(cause: Cause, bad: bool, train: Any, rng: np.random.Generator) -> torch.Tensor:
    rows = train[rng.integers(len(train), size=BATCH)].astype(np.int64)
    if bad and cause.text == "random":
        rows = rng.integers(train.max(), size=rows.shape)
    if bad and cause.text == "shuffled":
        rows = rng.permuted(rows, axis=1)
    if bad and cause.text == "reversed":
        rows = rows[:, ::-1].copy()
    return torch.from_numpy(rows)


def _step(model: Any, optimizer: Any, ids: torch.Tensor) -> float:
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _shake(model: Any, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn(weight.shape, generator=generator) * weight.std() * share


def _evaluate(model: Any, calibration: Any) -> float:
    model.eval()
    nll = float(token_nll(model, calibration).mean())
    model.train()
    return nll


def curves() -> Iterator[dict[str, Any]]:
    """Every cause with two seeds."""
    torch.set_num_threads(1)
    folder = resolve("embedded").folder
    tokenizer, corpus = load_tokenizer(folder), load_corpus("kjv")
    train = windows(encode(corpus.train, tokenizer), WINDOW, limit=TEXTS)
    calibration = windows(encode(corpus.calibration, tokenizer), WINDOW, limit=CALIBRATION)
    for cause in CAUSES:
        for seed in (0, 1):
            torch.manual_seed(seed)
            curve = record(cause, seed, load_model(folder, dtype="float32"), train, calibration)
            print(cause.kind, cause.name, seed, [round(math.exp(min(v, 50)), 1) for v in curve["nll"][::4]], flush=True)
            yield curve


if __name__ == "__main__":
    found = list(curves())
    Path(sys.argv[1]).write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n", encoding="utf-8")
