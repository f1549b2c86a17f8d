"""A training step of ours against Hugging Face's Trainer and TRL's, side by side: CPU-seconds, peak memory, losses.

    python -m venv peer
    peer/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16 accelerate datasets
    .venv/bin/python benchmarks/training.py --peer peer/bin/python                      # adapters at 1,024 tokens
    .venv/bin/python benchmarks/training.py --peer peer/bin/python --window 4096        # with recomputed activations
    .venv/bin/python benchmarks/training.py --peer peer/bin/python --window 4096 --packed  # eight documents in each

SmolLM2-135M, adapters of rank 16 on every linear layer, AdamW, the same windows in the same order, bfloat16 by autocast
(`trl` runs as it comes, with recomputed activations); `--compute float32` where a processor has no instructions for
bfloat16, which then costs three times as much. Every contestant trains `--steps` steps in a process of its own, one
thread, in turns; the first step does not count. Ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

OURS = """
import tempfile, time, resource
import numpy as np, torch
from pathlib import Path
from scaler_wizard.batches import Text
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.data import TrainingWindows
from scaler_wizard.events import Step
from scaler_wizard.lora import add_lora
from scaler_wizard.models import load_model
from scaler_wizard.phases import Train
from scaler_wizard.recipe import Breaker
import scaler_wizard.train as loop

loop.EVENT_SECONDS = 0.0
times, losses = [time.process_time()], []
def emit(event):
    if isinstance(event, Step):
        times.append(time.process_time())
        losses.append(event.loss)
window = ids.shape[1]
settings = Train(train="lora", steps=steps, windows_per_step=1, micro_batch=1, window=window, short_share=0.0,
                 learning_rate=2e-4, warmup_steps=0, evaluate_every=999, checkpointing=recompute)
text = Text(TrainingWindows(ids, documents), None, window, window)
model = add_lora(load_model(Path(folder), dtype="float32"), rank=16, seed=0)
loop.Trainer(model=model, text=text, settings=settings, evaluate=lambda _: 20.0, watch=CircuitBreaker(Breaker()),
             emit=emit, scratch=Path(tempfile.mkdtemp(dir=scratch)), should_stop=lambda: False, seed=0,
             compute=getattr(torch, compute)).run()
say(times[1:], losses)
"""
PEER = """
import time
import numpy as np, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
lora = LoraConfig(r=16, lora_alpha=16, use_rslora=True, target_modules="all-linear", lora_dropout=0.0,
                  task_type="CAUSAL_LM")
times, losses = [], []
class Clock(TrainerCallback):
    def on_step_end(self, *_, **__):
        times.append(time.process_time())
    def on_log(self, args, state, control, logs=None, **__):
        losses.extend([logs["loss"]] if logs and "loss" in logs else [])
def rows():
    for row, marks in zip(ids, documents):
        found = {"input_ids": row.tolist(), "labels": row.tolist()}
        if (marks != marks[0]).any():
            starts = np.flatnonzero(np.diff(marks, prepend=marks[0] - 1))
            ends = np.append(starts, len(row))
            found["position_ids"] = (np.arange(len(row)) - np.repeat(starts, np.diff(ends))).tolist()
            for start in starts:
                found["labels"][start] = -100
        yield found
data = list(rows())
plain = dict(output_dir=scratch, max_steps=steps, per_device_train_batch_size=1, learning_rate=2e-4, logging_steps=1,
             lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}, max_grad_norm=1.0,
             adam_beta2=0.95, weight_decay=0.0, bf16=compute == "bfloat16", use_cpu=True, report_to=[],
             save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, seed=0)
if who == "hf":
    from transformers import Trainer, TrainingArguments
    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)
    how = TrainingArguments(gradient_checkpointing=recompute, gradient_checkpointing_kwargs={"use_reentrant": False},
                            **plain)
    model.enable_input_require_grads()
    trainer = InOrder(model=get_peft_model(model, lora), args=how, train_dataset=data, callbacks=[Clock()],
                      data_collator=lambda batch: {k: torch.tensor([row[k] for row in batch]) for k in batch[0]})
else:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)
    how = SFTConfig(max_length=ids.shape[1], **plain)
    rows = Dataset.from_list([{"input_ids": row["input_ids"]} for row in data])
    trainer = InOrder(model=model, args=how, train_dataset=rows, peft_config=lora,
                      processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Clock()])
trainer.train()
say(times, losses)
"""
HEAD = """
import json, os, resource, sys
import numpy as np
who, folder, file, steps, recompute = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5] == "1"
scratch, compute = sys.argv[6:]
with np.load(file) as found:
    ids, documents = found["ids"], found["documents"]
import torch
torch.set_num_threads(1)
def say(times, losses):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("\\n" + json.dumps({"seconds": np.diff(times).tolist(), "peak": peak, "losses": losses}))
"""


def main() -> int:
    """Race, print a table, and 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="python of an environment with trl and accelerate")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compute", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--packed", action="store_true", help="eight documents of mixed length in each window")
    parser.add_argument("--without-trl", action="store_true")
    options = parser.parse_args()
    names = ["ours", "hf"] + ["trl"] * (not options.without_trl and not options.packed)
    print(f"Python {platform.python_version()}, {versions(options.peer)}, window {options.window}, {options.compute}")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "text.npz"
        write_text(file, options)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                runs[name].append(run(name, file, options))
    return report(runs, options)


def write_text(file: Path, options: argparse.Namespace) -> None:
    """Windows of the King James Bible; packed: eight pieces of 1/16 to 1/4 of a window each."""
    from scaler_wizard.data import encode, load_corpus, windows
    from scaler_wizard.models import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve("smollm2").folder)
    ids = windows(encode(load_corpus("kjv").train[:3], tokenizer), options.window, limit=options.steps + 1)
    documents = np.zeros_like(ids)
    if options.packed:
        shares = np.array([4, 3, 2, 2, 2, 1, 1, 1]) * options.window // 16
        for row in documents:
            row[:] = np.repeat(np.arange(8), np.random.default_rng(0).permutation(shares))
    np.savez(file, ids=ids, documents=documents)


def run(name: str, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One contestant in a process of its own."""
    from scaler_wizard.executors.local import MEMORY
    from scaler_wizard.models import resolve

    python = sys.executable if name == "ours" else str(options.peer)
    code = HEAD + (OURS if name == "ours" else PEER)
    recompute = "1" if options.window > 2048 and not options.packed else "0"
    arguments = [name, str(resolve("smollm2").folder), str(file), str(options.steps), recompute]
    arguments += [str(file.parent), options.compute]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    if name == "ours":  # as our worker is started
        environment |= MEMORY
    else:
        environment.pop("PYTHONPATH", None)
    command = [python, "-c", code, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode:
        raise SystemExit(f"{name}: {answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return found


def versions(peer: Path) -> str:
    """What the contestants are."""
    listed = "', '.join(f'{n} {m.version(n)}' for n in ('torch', 'transformers', 'peft', 'trl'))"
    code = f"import importlib.metadata as m; print({listed})"
    return subprocess.run([str(peer), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def report(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> int:
    """The table; how far the losses are apart."""
    seconds = {name: statistics.median(s for one in found for s in one["seconds"]) for name, found in runs.items()}
    peaks = {name: statistics.median(one["peak"] for one in found) for name, found in runs.items()}
    print("\n| | CPU-s per step | tokens per CPU-s | times ours | peak GiB | ours is |\n" + "|---" * 6 + "|")
    for name in runs:
        print(
            f"| {name} | {seconds[name]:.2f} | {options.window / seconds[name]:.0f} "
            f"| {seconds[name] / seconds['ours']:.2f} | {peaks[name] / 2**30:.2f} | {peaks['ours'] / peaks[name]:.2f} |"
        )
    for name in runs:
        print(f"losses of {name}: {', '.join(f'{loss:.4f}' for loss in runs[name][0]['losses'])}")
    bar = 2.5 if options.packed else 1.2 if options.window > 2048 else 1.25
    return 0 if seconds["hf"] / seconds["ours"] >= bar else 1


if __name__ == "__main__":
    raise SystemExit(main())
