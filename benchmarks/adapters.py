"""Merged adapters against PEFT's own: how exact, and how long the smaller rank takes, side by side in one run.

    .venv/bin/python benchmarks/adapters.py --rounds 3

Two adapters of rank 16 on square and oblong matrices, merged with weights 0.7 and 0.3. PEFT makes every matrix whole
and takes its singular values; ours works on the factors. Both save nothing. Errors are relative, in the Frobenius norm,
against the sum in fp64.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from scaler_wizard.adapting import AdapterMerge, fuse
from scaler_wizard.merge.adapters import Fused, read_adapter
from scaler_wizard.weights.evaluate import Source

WEIGHTS = (0.7, 0.3)
RANK, FASTER, EXACT = 16, 50.0, 1e-6
SHAPES = ((512, 1408), (1024, 1024), (2048, 2048))


class Toy(torch.nn.Module):
    """One linear layer; PEFT needs a model."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(columns, rows, bias=False)


def main() -> int:
    """Time each shape, print a table; 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, peft {peft.__version__}, one thread")
    print(f"numpy {np.__version__}, {os.cpu_count()} processors, {rounds} rounds, medians, milliseconds of CPU time\n")
    print("| matrix | ours | PEFT svd | PEFT / ours | our error | foretold | PEFT's | ours without a smaller rank |")
    print("|---" * 8 + "|")
    good = [_race(rows, columns, rounds) for rows, columns in SHAPES]
    print("\nall within their limits" if all(good) else "\noutside the limits")
    return 0 if all(good) else 1


def _race(rows: int, columns: int, rounds: int) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        model = _adapted(rows, columns, Path(scratch))
        folders = [Path(scratch) / name for name in ("one", "two")]
        adapters = [read_adapter(folder) for folder in folders]
        both = [{"adapter": str(f), "weight": w} for f, w in zip(folders, WEIGHTS, strict=True)]
        small, whole = (AdapterMerge(adapters=both, rank=rank) for rank in (RANK, None))
        source = Source(0)
        ours, theirs = [], []
        for number in range(rounds):
            seconds, (fused, foretold) = _timed(lambda: fuse(small, adapters, source))
            ours.append(seconds)
            seconds, _ = _timed(lambda number=number: _peft(model, f"merged-{number}"))
            theirs.append(seconds)
        exact, _ = fuse(whole, adapters, source)
        wanted = sum(w * _delta(model, name) for name, w in zip(("one", "two"), WEIGHTS, strict=True))
        errors = [_error(_product(fused), wanted), _error(_delta(model, "merged-0"), wanted)]
        lossless = _error(_product(exact), wanted)
        source.close()
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(
        f"| {rows} x {columns} | {statistics.median(ours) * 1e3:.1f} | {statistics.median(theirs) * 1e3:.0f} "
        f"| {ratio:.0f}x | {errors[0]:.4f} | {foretold:.4f} | {errors[1]:.4f} | {lossless:.1e} |",
        flush=True,
    )
    return ratio >= FASTER and lossless <= EXACT and abs(errors[0] / foretold - 1) <= 0.01


def _adapted(rows: int, columns: int, scratch: Path) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["layer"])
    model = peft.get_peft_model(Toy(rows, columns), config, adapter_name="one")
    model.add_adapter("two", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    model.save_pretrained(scratch, selected_adapters=["one", "two"])
    return model


def _peft(model: Any, name: str) -> None:
    model.add_weighted_adapter(["one", "two"], list(WEIGHTS), name, combination_type="svd", svd_rank=RANK)


def _delta(model: Any, name: str) -> Any:
    layer = model.base_model.model.layer
    a, b = layer.lora_A[name].weight.double(), layer.lora_B[name].weight.double()
    return (layer.scaling[name] * (b @ a)).detach().numpy()


def _product(fused: Fused) -> Any:
    (part,) = fused.values()
    return part.left @ part.right


def _error(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _timed(work: Any) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    sys.exit(main())
