"""Train the routers of a mixture of experts for some steps while everything else stands still.

Runs in a child process (`python -m scaler_wizard.route MODEL OUT`, settings on standard input), so that whoever asks
loads no torch; the last line it prints is the loss before and after on calibration text.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.phases import Train
from scaler_wizard.record import Record, from_json, to_json

ROUTER = re.compile(r"layers\.(\d+)\..*\.gate\.weight$")
CALIBRATION_WINDOWS = 16


class RouterTraining(Record):
    """How the routers are trained."""

    text: str = "kjv"
    """Text to learn from: `kjv`, a file or a folder; mixed as the mixture will be used."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Optimiser steps."""
    windows: Annotated[int, Field(ge=1, le=1024)] = 8
    """Windows in a step."""
    length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens of a window."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak learning rate; it falls to a tenth by a cosine."""


class RouterLosses(Record):
    """What the training of the routers did to the loss on calibration text, nats per token."""

    before: float
    """With the routers as they began."""
    after: float
    """With the trained ones."""


def trained_routers(model: Path, out: Path, training: RouterTraining) -> RouterLosses:
    """Train in a child process; the routers' rows are written to the file `out`, by layer."""
    command = [sys.executable, "-m", "scaler_wizard.route", str(model), str(out)]
    answer = subprocess.run(command, input=to_json(training), capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ScalerError(f"the routers could not be trained: {last:.200}", "leave `train` out, or free memory")
    return RouterLosses.read(from_json(answer.stdout.splitlines()[-1]), "losses of the routers")


def _train(folder: Path, out: Path, training: RouterTraining) -> RouterLosses:
    """The child: the training loop of every phase, in which only the routers learn."""
    import torch
    from safetensors.torch import save_file

    from scaler_wizard.batches import text_of
    from scaler_wizard.breaker import CircuitBreaker
    from scaler_wizard.data import encode, load_corpus, windows
    from scaler_wizard.evals.perplexity import token_nll
    from scaler_wizard.models import load_model, load_tokenizer, quiet
    from scaler_wizard.recipe import Breaker
    from scaler_wizard.train import Trainer

    quiet()
    model, corpus, tokenizer = load_model(folder, dtype="float32"), load_corpus(training.text), load_tokenizer(folder)
    heard = windows(encode(corpus.calibration, tokenizer), training.length, limit=CALIBRATION_WINDOWS)
    settings, length = _settings(training), training.length
    with tempfile.TemporaryDirectory(prefix="scaler-routers-") as scratch:
        history = Trainer(
            model=model,
            text=text_of(encode(corpus.train, tokenizer), tokenizer, settings, native=length, target=length, seed=0),
            settings=settings,
            evaluate=lambda trained: float(token_nll(trained, heard).mean()),
            watch=CircuitBreaker(Breaker()),
            emit=lambda _: None,
            scratch=Path(scratch),
            should_stop=lambda: False,
            seed=0,
            compute=torch.float32,
            spans={name: None for name, _ in model.named_parameters() if ROUTER.search(name)},
        ).run()
    routers = {match[1]: one for name, one in model.named_parameters() if (match := ROUTER.search(name))}
    save_file({layer: router.detach().contiguous() for layer, router in routers.items()}, out)
    (_, before), *_, (_, after) = history.evaluations
    return RouterLosses(before=before, after=after)


def _settings(training: RouterTraining) -> Train:
    """Read once before the first step and once after the last."""
    return Train(
        train="new",
        steps=training.steps,
        windows_per_step=training.windows,
        micro_batch=training.windows,
        window=training.length,
        short_share=0.0,
        learning_rate=training.learning_rate,
        warmup_steps=0,
        evaluate_every=training.steps,
        control=False,
    )


if __name__ == "__main__":
    asked = RouterTraining.read(json.loads(sys.stdin.read()), "train")
    sys.stdout.write(to_json(_train(Path(sys.argv[1]), Path(sys.argv[2]), asked)) + "\n")
