"""Does the search for rotary settings beat the best fixed method on held-out needles and text?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/search.py --factors 4 8 --seeds 5 --evaluations 30

Every search draws its own calibration text and facts by its seed. What it finds and every fixed method are then scored
on held-out books, names and a held-out sentence: loss on far answers + loss at the end of long text + loss on short
text, nats per token, and the share of far facts found exactly. The rival is the fixed method that turns out best on the
held-out score, in hindsight: published defaults, YaRN 4 / 0.5 (a guess of ours, in the search's grid), and dynamic NTK,
which reads each text in one pass of its own. Exit code 1 where the search wins fewer than 80 %.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
import transformers

from scaler_wizard.calibrate import Calibration, Sample, sample
from scaler_wizard.context.search import Candidate, grid, search
from scaler_wizard.data import encode, load_corpus
from scaler_wizard.models import load_model, load_tokenizer, resolve
from scaler_wizard.phases import Search

NTK = Candidate(name="ntk", method="ntk")


def main() -> int:
    """Search and compare; print a table."""
    options = _options()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    folder = resolve(options.model).folder
    model, tokenizer, corpus = load_model(folder, dtype="float32"), load_tokenizer(folder), load_corpus("kjv")
    base = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    native = int(base["max_position_embeddings"])
    calibration, held_out = encode(corpus.calibration, tokenizer), encode(corpus.heldout, tokenizer)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, one thread; {folder.name}, window {native}")
    print("\n| factor | seed | found | far + long + short | far exact | best fixed | its score | far exact | seconds |")
    print("|---" * 9 + "|")
    won = 0
    for factor in options.factors:
        length = native * factor
        many = _spec(options, length, seed=10_000, native=native)
        judge = Judge(Calibration(model, tokenizer, calibration, base=base, length=length, spec=many))
        judge.draw(sample(tokenizer, held_out, length=length, window=length, count=96, spec=many, held_out=True))
        fixed = {c.name: judge(c) for c in [*grid(), NTK]} | {"dynamic": judge.dynamic(factor)}
        rival = min(fixed, key=lambda name: fixed[name][0])
        for name, (total, exact) in fixed.items():
            print(f"| {factor} | - | {name} | {total:.4f} | {exact:.0%} | | | | |", flush=True)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            spec = _spec(options, length, seed=seed, native=native)
            scorer = Calibration(model, tokenizer, calibration, base=base, length=length, spec=spec)
            begun = time.monotonic()
            found = search(
                scorer.score,
                scorer.decide,
                factor=factor,
                evaluations=options.evaluations,
                finalists=spec.finalists,
                seconds=600,
                clock=time.monotonic,
                rng=np.random.default_rng(seed),
            )
            total, exact = judge(found.best.candidate)
            won += total < fixed[rival][0]
            print(
                f"| {factor} | {seed} | {found.best.candidate.name} | {total:.4f} | {exact:.0%} | {rival} "
                f"| {fixed[rival][0]:.4f} | {fixed[rival][1]:.0%} | {time.monotonic() - begun:.0f} |",
                flush=True,
            )
    runs = options.seeds * len(options.factors)
    print(f"\nthe search wins {won} of {runs}, with {options.evaluations} evaluations each")
    return 0 if won >= 0.8 * runs else 1


class Judge:
    """Held-out score of a candidate, and the share of far facts whose every digit is the first choice."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def draw(self, drawn: Sample) -> None:
        """Judge on these windows."""
        self.drawn = drawn

    def __call__(self, candidate: Candidate) -> tuple[float, float]:
        score = self.calibration.on(self.drawn, candidate)
        return score.total, score.found

    def dynamic(self, factor: int) -> tuple[float, float]:
        """A text as long as the window turns as NTK with alpha = s s - (s - 1) does, short text as the base does."""
        long = Candidate(name="", method="ntk", options={"alpha": float(factor * factor - factor + 1)})
        short = Candidate(name="", method="ntk", options={"alpha": 1.0})
        score, near = (self.calibration.on(self.drawn, candidate) for candidate in (long, short))
        return score.far + score.long + near.short, score.found


def _spec(options: argparse.Namespace, length: int, *, seed: int, native: int) -> Search:
    return Search(
        evaluations=options.evaluations,
        minutes=10,
        window=length,
        windows=options.windows,
        short_length=native,
        short_windows=72,
        digits=4,
        finalists=options.finalists,
        final_windows=96,
        seed=seed,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--finalists", type=int, default=5)
    parser.add_argument("--windows", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
