"""Peak memory of training for 16K by skipped positions, against training at 2K: the same window, other positions.

    .venv/bin/python benchmarks/longer.py --model smollm2 --target 16384 --window 2048

Adapters of rank 16 in bfloat16, three steps of one window each, every training in a process of its own. Exit code 1
where the long one needs more than 1.3 times as much.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from scaler_wizard.batches import text_of
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.calibrate import retune
from scaler_wizard.context.rope import extended_config
from scaler_wizard.data import encode, load_corpus
from scaler_wizard.lora import add_lora
from scaler_wizard.models import load_model, load_tokenizer, resolve
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.train import Trainer
torch.set_num_threads(1)
name, target, window, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
folder = resolve(name).folder
base = json.loads((folder / "config.json").read_text())
model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
if target > base["max_position_embeddings"]:
    retune(model, extended_config(base, target, "yarn"))
train = Train(train="lora", steps=3, windows_per_step=1, micro_batch=1, window=window, short_share=0.0,
              skip_share=float(target > window), target=target, learning_rate=1e-4, warmup_steps=0, lora_rank=16,
              evaluate_every=99, compute="bfloat16", control=False)
text = text_of(encode(load_corpus("kjv").train[:4], tokenizer), tokenizer, train, native=window, target=target, seed=0)
Trainer(model=add_lora(model, rank=16, seed=0), text=text, settings=train, evaluate=lambda _: 20.0,
        watch=CircuitBreaker(Breaker()), emit=lambda event: None, scratch=work, should_stop=lambda: False,
        seed=0, compute=torch.bfloat16, spans=None).run()
print(json.dumps({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def main() -> int:
    """Train both ways and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--target", type=int, default=16384)
    parser.add_argument("--window", type=int, default=2048)
    options = parser.parse_args()
    long, short = (peak(options, target) for target in (options.target, options.window))
    print(f"peak at {options.target} by skipped positions in windows of {options.window}: {long:.0f} MiB")
    print(f"peak at {options.window}: {short:.0f} MiB; ratio {long / short:.2f}")
    return 0 if long <= 1.3 * short else 1


def peak(options: argparse.Namespace, target: int) -> float:
    """Largest resident memory of a training, MiB."""
    with tempfile.TemporaryDirectory() as work:
        arguments = [options.model, str(target), str(options.window), work]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


if __name__ == "__main__":
    raise SystemExit(main())
