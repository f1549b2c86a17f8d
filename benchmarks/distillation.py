"""Learning from a teacher: what is kept of it against its full logits; CPU-seconds, peak memory, bytes, gradients.

    .venv/bin/python benchmarks/distillation.py --window 512
    .venv/bin/python benchmarks/distillation.py --times 8          # a teacher of 8 times the size, of random weights
    .venv/bin/python benchmarks/distillation.py --window 1024 --recompute --compute float32

SmolLM2-135M with adapters of rank 16 learns from SmolLM2-135M, one window a step, forward divergence. `stock` is what
one writes with PEFT and transformers: teacher and student side by side under autocast, both with the logits of the
whole window, torch's own divergence. `full` is that with our student, so that nothing but the divergence differs.
`next token` learns from no teacher: no way of keeping one can be cheaper. Each way runs in a process of its own, in
turns, keeping memory as a worker does; the first step does not count. What the steps need beyond the loaded models
is the largest resident memory of the steps alone (Linux). The gradient's cosine is taken at what the head reads, on a
student that lacks one layer.
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

WAYS = ("stock", "full", "next token", "nothing", "likeliest", "states")
CHILD = """
import ctypes, json, sys, time
from contextlib import nullcontext
from pathlib import Path
import torch
from torch.nn import functional
from scaler_wizard.attention import by_piece
from scaler_wizard.batches import Batch
from scaler_wizard.data import encode, load_corpus, windows
from scaler_wizard.distill import distilled_loss
from scaler_wizard.lora import add_lora
from scaler_wizard.models import load_model, load_tokenizer, resolve, settle_dtype
from scaler_wizard.recipe import Distil
from scaler_wizard.recompute import recompute
from scaler_wizard.teacher import hire
from scaler_wizard.train import autocast, backbone, cross_entropy, head_weight, narrow_frozen, predictions

way, window, steps, cache = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
compute, again = getattr(torch, sys.argv[6]), sys.argv[7] == "1"
settle_dtype(sys.argv[6], "asked for")
torch.set_num_threads(1)
folder = resolve("smollm2").folder
taught_by = Path(sys.argv[5]) if sys.argv[5] else folder
tokenizer = load_tokenizer(folder)
ids = windows(encode(load_corpus("kjv").train[:2], tokenizer), window, limit=steps)
batches = [Batch(torch.from_numpy(row.astype("int64"))[None], torch.arange(window)[None], (window,)) for row in ids]
how = Distil(weight=0.5, keep=way if way in ("likeliest", "states") else "nothing")
teacher = None if way == "next token" else hire(how, folder=taught_by, student=tokenizer, cache=cache)
model = load_model(folder, dtype="float32")
if way == "cosine":
    del model.model.layers[15]
elif way == "stock":
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, use_rslora=True, target_modules="all-linear"))
else:
    model = add_lora(model, rank=16, seed=0)
    narrow_frozen(model, compute)
if again:
    recompute(backbone(model).layers)
model.train()
learning = [p for p in model.parameters() if p.requires_grad]

def loss(batch):
    if way == "stock":
        with autocast(model.device, compute):
            logits = model(input_ids=batch.ids, use_cache=False).logits[0, :-1]
        return whole(logits, batch, batch.ids[0, 1:])
    rows, goals, places = predictions(model, batch, compute)
    if way == "next token":
        return cross_entropy(model, rows, goals, compute)
    if way != "full":
        view = teacher.view(batch, places)
        return distilled_loss(rows, head_weight(model), goals, view, weight=0.5, dtype=compute)
    with autocast(model.device, compute):
        logits = functional.linear(rows, head_weight(model))
    return whole(logits, batch, goals)

def whole(logits, batch, goals):
    with autocast(model.device, compute), torch.no_grad():
        theirs = teacher.model(input_ids=batch.ids, use_cache=False).logits[0, :-1]
    log_p, log_q = (functional.log_softmax(one.float(), dim=-1) for one in (logits, theirs))
    soft = functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return 0.5 * functional.cross_entropy(logits.float(), goals) + 0.5 * soft

def cosines():
    batch, found = batches[0], {}
    with torch.no_grad(), by_piece(model):
        rows, goals, places = predictions(model, batch, compute)
    for keep in ("nothing", "likeliest", "states"):
        one = hire(Distil(keep=keep), folder=folder, student=tokenizer, cache=cache / "cosine")
        leaf = rows.clone().requires_grad_()
        distilled_loss(leaf, head_weight(model).detach(), goals, one.view(batch, places), weight=1.0).backward()
        found[keep] = leaf.grad.flatten()
        if keep != "nothing":
            (size,) = one._database().execute("SELECT sum(length(view)) FROM views").fetchone()
            found[keep + " bytes"] = size / window
    view = hire(Distil(), folder=folder, student=tokenizer, cache=cache / "cosine").view(batch, places)
    bare = functional.log_softmax(functional.linear(rows, head_weight(model)), -1)
    q, p = view.log_q.float().exp(), bare.exp()
    slope = p * q.sum(1, keepdim=True)
    slope.scatter_add_(1, view.tokens.long(), -q)
    found["likeliest without a rest"] = (slope @ head_weight(model)).flatten()
    exact = found.pop("nothing")
    same = functional.cosine_similarity
    return {name: v if isinstance(v, float) else float(same(v, exact, dim=0)) for name, v in found.items()}

if way == "cosine":
    print(json.dumps(cosines()))
    raise SystemExit
if way in ("likeliest", "states"):
    for batch in batches:
        teacher.view(batch, torch.arange(window - 1))
    del teacher.model.model.layers  # its views are kept; only its head is needed
def status(name):
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
ctypes.CDLL(None).malloc_trim(0)
loaded, times = status("VmRSS"), []
Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory counts from here
for batch in batches:
    begun = time.process_time()
    with nullcontext() if way == "stock" else by_piece(model):
        loss(batch).backward()
    torch.optim.SGD(learning, lr=1e-4).step()
    model.zero_grad(set_to_none=True)
    times.append(time.process_time() - begun)
peak = status("VmHWM")
print(json.dumps({"seconds": times[1:], "peak": peak, "step": peak - loaded}))
"""


def main() -> int:
    """Race and print; 1 where keeping is not fast enough against full logits, or a kept gradient points elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compute", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--recompute", action="store_true", help="make activations again in the backward pass")
    parser.add_argument("--times", type=int, default=1, help="how many times larger than the student the teacher is")
    options = parser.parse_args()
    import torch
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"Python {platform.python_version()}, {versions}, {options.compute}")
    with tempfile.TemporaryDirectory() as cache:
        teacher = "" if options.times == 1 else larger(Path(cache) / "teacher", options.times)
        found = run("cosine", options, cache, "")
        for name, value in found.items():
            print(f"{name}: {value:.4f}")
        runs: dict[str, list[Any]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                runs[way].append(run(way, options, cache, teacher))
    seconds = {way: statistics.median(s for one in runs[way] for s in one["seconds"]) for way in WAYS}
    print("\n| way | CPU-s a step | stock takes | full takes | peak GiB | of it the steps' | of stock's | of full's |")
    print("|---" * 8 + "|")
    peaks, own = ({way: statistics.median(one[key] for one in runs[way]) for way in WAYS} for key in ("peak", "step"))
    for way in WAYS:
        speed = f"{seconds[way]:.2f} | {seconds['stock'] / seconds[way]:.2f} x | {seconds['full'] / seconds[way]:.2f} x"
        room = f"{peaks[way] / 2**30:.2f} | {own[way] / 2**30:.2f} | {own[way] / own['stock']:.2f}"
        room += f" | {own[way] / own['full']:.2f}"
        print(f"| {way} | {speed} | {room} |")
    fine = found["likeliest"] >= 0.995 and found["likeliest bytes"] <= 300
    return 0 if fine and seconds["stock"] / seconds["likeliest"] >= (1.6 if options.times == 1 else 3.0) else 1


def larger(folder: Path, times: int) -> str:
    """A Llama of random weights with the student's tokenizer and about `times` its parameters."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from scaler_wizard.models import resolve

    source = resolve("smollm2").folder
    how = LlamaConfig.from_pretrained(source, hidden_size=1536, intermediate_size=4096, num_attention_heads=24)
    how.num_key_value_heads, how.head_dim, how.num_hidden_layers = 8, 64, round((times * 134.5 - 75.5) / 25.2)
    AutoModelForCausalLM.from_config(how, dtype=torch.bfloat16).save_pretrained(folder)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)


def run(way: str, options: argparse.Namespace, cache: str, teacher: str) -> dict[str, Any]:
    """One way in a process of its own."""
    from scaler_wizard.executors.local import MEMORY

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **MEMORY}
    command = [sys.executable, "-c", CHILD, way, str(options.window), str(options.steps), cache, teacher]
    command += [options.compute, str(int(options.recompute))]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode:
        raise SystemExit(f"{way}: {answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
