"""How far each method stretches a window without training: far needles, the end of long text, short text.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/methods.py --factors 2 4 8

Held-out books, names and sentence. A needle is far where it stands in the first half of the window; it is found where
each of its digits is the first choice. Each text is read in one pass, so dynamic NTK is seen at its best.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import transformers

from scaler_wizard.calibrate import retune
from scaler_wizard.context.rope import METHODS, extended_config
from scaler_wizard.data import encode, load_corpus, windows
from scaler_wizard.evals.needle import needle_grid
from scaler_wizard.evals.perplexity import token_nll
from scaler_wizard.metrics import MeasureSpec
from scaler_wizard.models import load_model, load_tokenizer, resolve

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("ntk", {"alpha": 1.0}),
    **{method: (method, {}) for method in METHODS if method not in ("longrope", "searched")},
    "yarn without temperature": ("yarn", {"attention_factor": 1.0}),
    "searched 4 / 0.5": ("searched", {"beta_fast": 4.0, "beta_slow": 0.5}),
}


def main() -> None:
    """Print a table."""
    options = _options()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    folder = resolve(options.model).folder
    model, tokenizer = load_model(folder, dtype=options.dtype), load_tokenizer(folder)
    base = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    native, text = int(base["max_position_embeddings"]), encode(load_corpus("kjv").heldout, tokenizer)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; {folder.name}, window {native}")
    print("\n| factor | method | far needles | last quarter, nats | the same, truncated | short, nats |")
    print("|---" * 6 + "|")
    short = windows(text, native, limit=options.windows)
    for factor in options.factors:
        length = native * factor
        long = windows(text, length, limit=options.windows)
        retune(model, base)
        truncated = token_nll(model, long[:, -native:])[:, -native // 4 :].mean()
        for name, (method, settings) in WAYS.items():
            retune(model, extended_config(base, length, method, **settings))
            cells = [cell for cell in needle_grid(model, tokenizer, text, _spec(options, length)) if cell.depth < 0.5]
            found, asked = sum(cell.found for cell in cells), sum(cell.asked for cell in cells)
            end = token_nll(model, long)[:, -native // 4 :].mean()
            near = token_nll(model, short).mean()
            print(f"| {factor} | {name} | {found}/{asked} | {end:.3f} | {truncated:.3f} | {near:.3f} |", flush=True)


def _spec(options: argparse.Namespace, length: int) -> MeasureSpec:
    return MeasureSpec(
        length=length,
        windows=1,
        bucket=64,
        truncated=False,
        short_length=64,
        short_windows=1,
        needle_lengths=(length,),
        needles=2 * options.needles,
        digits=4,
        along=False,
        probe=None,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--needles", type=int, default=48, help="far ones; as many near ones are asked for as well")
    parser.add_argument("--windows", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
