"""The estimate against the measured peak and the measured time of training, on shapes from 2M to 135M parameters.

    .venv/bin/python benchmarks/fitting.py            # twenty trainings, about ten minutes
    .venv/bin/python benchmarks/fitting.py --only 2 5
    .venv/bin/python benchmarks/fitting.py --memory   # two steps each, for their memory alone

Each configuration trains six steps in a fresh process. `peak` is the largest resident memory of its own image (VmHWM,
Linux; what `getrusage` says begins with the parent's), `promised` what steps 2 and 3 say of those that follow, against
what these took. Random weights, random text, the worker's settings of malloc. 1 where the memory is more than 10 % off
or more than 5 % under, or the time 15 % off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from scaler_wizard.batches import text_of
import scaler_wizard.worker
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.data import encode, load_corpus
from scaler_wizard.events import Step
from scaler_wizard.lora import add_lora
from scaler_wizard.models import load_model, load_tokenizer, resolve
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.train import Trainer
torch.set_num_threads(1)
shape, settings, new, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
steps = int(sys.argv[5])
read = encode(load_corpus("kjv").train, load_tokenizer(resolve("smollm2").folder))  # as a worker holds its text
model = load_model(folder, dtype="float32")
train = Train(steps=steps, learning_rate=1e-4, warmup_steps=0, evaluate_every=99, short_share=0.0, **settings)
spans = {name: None for name, _ in model.named_parameters()}
if train.train == "new":
    spans = {name: None for name in spans if any(f"layers.{layer}." in name for layer in range(new))}
if train.train == "lora":
    model, spans = add_lora(model, rank=train.lora_rank, seed=0), None
ids = np.random.default_rng(0).integers(0, shape["vocab_size"], 40 * train.window).astype(np.int32)
times = []
def emit(event):
    if isinstance(event, Step):
        times.append(time.process_time())
import scaler_wizard.train as loop
loop.EVENT_SECONDS = 0.0
Trainer(model=model, text=text_of([ids], None, train, native=train.window, target=train.window, seed=0), settings=train,
        evaluate=lambda _: 20.0, watch=CircuitBreaker(Breaker()), emit=emit, scratch=folder,
        should_stop=lambda: False, seed=0, compute=getattr(torch, train.compute), spans=spans).run()
took = np.diff(times)
(line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
print(json.dumps({"peak": int(line.split()[1]) * 1024, "took": took.tolist()}))
"""


@dataclass(frozen=True)
class Case:
    """One training whose needs are estimated and measured."""

    name: str
    shape: dict[str, Any]
    settings: dict[str, Any]
    new_layers: int = 0


def shape(hidden: int, ffn: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """A Llama with heads of 32."""
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    }


def how(train: str, micro: int, window: int, **changes: Any) -> dict[str, Any]:
    """Settings of a training in bfloat16."""
    plain = {"train": train, "windows_per_step": micro, "micro_batch": micro, "window": window, "compute": "bfloat16"}
    return {**plain, **changes}


CASES = (
    Case("tiny, all", shape(128, 320, 4, 1024), how("all", 16, 512, compute="float32")),
    Case("tiny, all, bf16", shape(128, 320, 4, 1024), how("all", 16, 512)),
    Case("20M, all", shape(384, 1024, 8, 8192), how("all", 4, 512, compute="float32")),
    Case("20M, all, bf16", shape(384, 1024, 8, 8192), how("all", 4, 512)),
    Case("20M, adapters", shape(384, 1024, 8, 8192), how("lora", 4, 512)),
    Case("20M, recomputed", shape(384, 1024, 8, 8192), how("all", 4, 512, checkpointing=True)),
    Case("20M, long window", shape(384, 1024, 8, 8192), how("lora", 1, 4096)),
    Case("90M, new blocks", shape(576, 1536, 16, 49152), how("new", 1, 1024), new_layers=3),
    Case("90M, adapters", shape(576, 1536, 16, 49152), how("lora", 1, 1024)),
    Case("90M, all", shape(576, 1536, 16, 49152), how("all", 1, 1024)),
    Case("2M, new blocks", shape(128, 320, 8, 1024), how("new", 8, 256, compute="float32"), new_layers=2),
    Case("2M, long window", shape(128, 320, 8, 1024), how("all", 1, 4096, compute="float32")),
    Case("9M, large vocabulary", shape(128, 320, 4, 65536), how("all", 4, 256, compute="float32")),
    Case("20M, new blocks", shape(384, 1024, 8, 8192), how("new", 2, 512, compute="float32"), new_layers=3),
    Case("20M, adapters, fp32", shape(384, 1024, 8, 8192), how("lora", 4, 512, compute="float32")),
    Case("20M, adapters, recomputed", shape(384, 1024, 8, 8192), how("lora", 2, 1024, checkpointing=True)),
    Case("20M, wide adapters", shape(384, 1024, 8, 8192), how("lora", 2, 512, lora_rank=64, compute="float32")),
    Case("90M, adapters, fp32", shape(576, 1536, 16, 49152), how("lora", 1, 512, compute="float32")),
    Case("90M, all, fp32", shape(576, 1536, 16, 49152), how("all", 1, 256, compute="float32")),
    Case(
        "90M, all, recomputed", shape(576, 1536, 16, 49152), how("all", 1, 512, compute="float32", checkpointing=True)
    ),
)


def main() -> int:
    """Measure each case in a process of its own and print the table; 1 where an estimate is more than 15 % off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("fitting-benchmark"), help="folder; removed at the end")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases")
    parser.add_argument("--memory", action="store_true", help="two steps each; their time is not judged")
    options = parser.parse_args()
    import shutil

    import torch
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"Python {platform.python_version()}, {versions}, one thread\n")
    print("| training | estimated MiB | peak MiB | off | step s, promised | measured | off |\n" + "|---" * 7 + "|")
    chosen = range(len(CASES)) if options.only is None else options.only
    found = [measured(CASES[number], options.work, steps=2 if options.memory else 6) for number in chosen]
    shutil.rmtree(options.work)
    memory, time = ([off[key] for off in found if key in off] for key in ("memory", "time"))
    print(f"\nmemory {min(memory):+.0%} to {max(memory):+.0%}, time {max(map(abs, time), default=0):.0%} off at most")
    return 0 if min(memory) >= -0.05 and max(memory) <= 0.1 and max(map(abs, time), default=0) <= 0.15 else 1


def measured(case: Case, work: Path, *, steps: int) -> dict[str, float]:
    """Print a row; how far the estimates are off."""
    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.estimate import training_bytes
    from scaler_wizard.phases import Train

    folder = work / case.name.replace(", ", "-").replace(" ", "-")
    make(case, folder)
    view = read_architecture(folder)
    train = Train(steps=steps, learning_rate=1e-4, warmup_steps=0, evaluate_every=99, short_share=0.0, **case.settings)
    new = case.new_layers * per_layer(case.shape) if case.new_layers else None
    estimated = training_bytes(view, train, new=new)
    arguments = [json.dumps(case.shape), json.dumps(case.settings), str(case.new_layers), str(folder), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    command = [sys.executable, "-c", CHILD, *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found = json.loads(said.splitlines()[-1])
    off = {"memory": estimated / found["peak"] - 1}
    row = f"| {case.name} | {estimated / 2**20:.0f} | {found['peak'] / 2**20:.0f} | {off['memory']:+.0%} "
    if steps > 2:
        promised, rest = statistics.mean(found["took"][:2]), statistics.mean(found["took"][2:])
        off["time"] = promised / rest - 1
        row += f"| {promised:.2f} | {rest:.2f} | {off['time']:+.0%} "
    print(f"{row}|", flush=True)
    return off


def per_layer(shape: dict[str, Any]) -> int:
    """Parameters of one block."""
    hidden, keys = shape["hidden_size"], 32 * shape["num_key_value_heads"]
    return hidden * (2 * hidden + 2 * keys + 3 * shape["intermediate_size"] + 2)


def make(case: Case, folder: Path) -> None:
    """Random weights that bfloat16 holds, as a real checkpoint's."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**case.shape)).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    raise SystemExit(main())
