"""The estimate of a training against the training itself: largest memory, wall time, models of 1M to 135M parameters.

    .venv/bin/python benchmarks/fitting.py            # twenty trainings, each tried, then carried out: half an hour
    .venv/bin/python benchmarks/fitting.py --only 2 5
    .venv/bin/python benchmarks/fitting.py --memory   # without the trials: memory by the formula alone

Each training is carried out by the worker that a run starts, in a process of its own: real text, real tokenizer,
evaluations, snapshots, the control where the plan has one; random weights. `counted` is what the plan says, `tried`
what it says after `scaler plan --trial`; `peak` is the largest resident memory of the worker's own image (VmHWM,
Linux). 1 where counted memory is more than 10 % off or more than 5 % under, or tried memory or time more than 15 % off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 24
MAKE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, LlamaConfig
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(LlamaConfig(**json.loads(sys.argv[1])))
model.to(torch.bfloat16).save_pretrained(sys.argv[2])
"""
"""Random weights that bfloat16 holds, as a real checkpoint's; not in this process: its children begin with its size."""


@dataclass(frozen=True)
class Case:
    """One training whose needs are estimated and measured."""

    name: str
    shape: dict[str, Any]
    settings: dict[str, Any]
    blocks: int = 0
    """New blocks, which learn, beside a control that learns whole."""


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
        "max_position_embeddings": 512,
    }


def how(train: str, micro: int, window: int, **changes: Any) -> dict[str, Any]:
    """Settings of a training in bfloat16."""
    plain = {"train": train, "windows_per_step": micro, "micro_batch": micro, "window": window, "compute": "bfloat16"}
    return {**plain, **changes}


TINY, SMALL, LARGE = shape(128, 320, 4, 1024), shape(384, 1024, 8, 8192), shape(576, 1536, 16, 49152)
WIDE = {"compute": "float32"}
CASES = (
    Case("1M, all", TINY, how("all", 16, 512, **WIDE)),
    Case("1M, all, bf16", TINY, how("all", 16, 512)),
    Case("20M, all", SMALL, how("all", 4, 512, **WIDE)),
    Case("20M, all, bf16", SMALL, how("all", 4, 512)),
    Case("20M, adapters", SMALL, how("lora", 4, 512)),
    Case("20M, recomputed", SMALL, how("all", 4, 512, checkpointing=True)),
    Case("20M, long window", SMALL, how("lora", 1, 4096)),
    Case("90M, new blocks", LARGE, how("new", 1, 1024), blocks=3),
    Case("90M, adapters", LARGE, how("lora", 1, 1024)),
    Case("90M, all", LARGE, how("all", 1, 1024)),
    Case("2M, new blocks", shape(128, 320, 8, 1024), how("new", 8, 256, **WIDE), blocks=2),
    Case("2M, long window", shape(128, 320, 8, 1024), how("all", 1, 4096, **WIDE)),
    Case("9M, large vocabulary", shape(128, 320, 4, 65536), how("all", 4, 256, **WIDE)),
    Case("20M, new blocks", SMALL, how("new", 2, 512, **WIDE), blocks=3),
    Case("20M, adapters, fp32", SMALL, how("lora", 4, 512, **WIDE)),
    Case("20M, adapters, recomputed", SMALL, how("lora", 2, 1024, checkpointing=True)),
    Case("20M, wide adapters", SMALL, how("lora", 2, 512, lora_rank=64, **WIDE)),
    Case("90M, adapters, fp32", LARGE, how("lora", 1, 512, **WIDE)),
    Case("90M, all, fp32", LARGE, how("all", 1, 256, **WIDE)),
    Case("90M, all, recomputed", LARGE, how("all", 1, 512, checkpointing=True, **WIDE)),
)


@dataclass
class Off:
    """How far the estimates are off, as shares of what was measured."""

    counted: list[float] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all aims are met."""
        near = max(map(abs, self.tried + self.time), default=0) <= 0.15
        return near and min(self.counted) >= -0.05 and max(self.counted) <= 0.1


def main() -> int:
    """Measure each case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("fitting-benchmark"), help="folder; removed at the end")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases")
    parser.add_argument("--memory", action="store_true", help="no trials")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the worker")
    options = parser.parse_args()
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"Python {platform.python_version()}, {versions}, {options.threads} threads, {STEPS} steps\n")
    print("| training | peak MiB | counted | off | tried | off | took s | promised | off |\n" + "|---" * 9 + "|")
    off = Off()
    for number in range(len(CASES)) if options.only is None else options.only:
        measure(CASES[number], options.work.resolve(), off, threads=options.threads, tries=not options.memory)
    shutil.rmtree(options.work)
    for name, found in vars(off).items():
        print(f"{name}: {min(found):+.0%} to {max(found):+.0%}" if found else f"{name}: not asked")
    return 0 if off.passed else 1


def measure(case: Case, work: Path, off: Off, *, threads: int, tries: bool) -> None:
    """Print a row and note how far the estimates are off."""
    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.estimate import healing_bytes
    from scaler_wizard.phases import Train
    from scaler_wizard.trial import training_task, try_out

    folder = work / case.name.replace(", ", "-").replace(" ", "-")
    make(case, folder)
    plan = plan_of(case, folder)
    train, base = plan.phases[-1].change, read_architecture(folder)
    assert isinstance(train, Train)
    grown = operator(case).resized(base) if case.blocks else base
    limits = {"threads": threads, "memory_limit": 2**36}
    tried = try_out(plan, told=lambda _: None, **limits)[0] if tries else None
    peak, took = carried_out(training_task(plan, train, folder / "room", **limits), folder)
    counted = healing_bytes(grown, base, train)
    off.counted.append(counted / peak - 1)
    row = [f"{peak / 2**20:.0f}", f"{counted / 2**20:.0f}", f"{off.counted[-1]:+.0%}"]
    if tried is not None:
        promised = tried.seconds_of(train)
        off.tried.append(tried.memory_bytes / peak - 1)
        off.time.append(promised / took - 1)
        row += [f"{tried.memory_bytes / 2**20:.0f}", f"{off.tried[-1]:+.0%}"]
        row += [f"{took:.0f}", f"{promised:.0f}", f"{off.time[-1]:+.0%}"]
    print(f"| {case.name} | {' | '.join(row)} |", flush=True)
    shutil.rmtree(folder)


def make(case: Case, folder: Path) -> None:
    """A model with random weights and the tokenizer whose words its vocabulary has room for."""
    from scaler_wizard.models import resolve
    from scaler_wizard.weights import copy_companions

    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", MAKE, json.dumps(case.shape), str(folder)], check=True, capture_output=True)
    config = (folder / "config.json").read_bytes()
    copy_companions(resolve("smollm2" if case.shape["vocab_size"] == 49152 else "embedded").folder, folder)
    (folder / "config.json").write_bytes(config)


def operator(case: Case) -> Any:
    """What the case grows by."""
    from scaler_wizard.grow.depth import IdentityBlocks

    return IdentityBlocks(blocks=case.blocks)


def plan_of(case: Case, folder: Path) -> Any:
    """A plan of nothing but the growth and the training."""
    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.phases import Base, Grow, Phase, Plan, Train
    from scaler_wizard.recipe import Breaker, GateLimits, Limits
    from scaler_wizard.trial import NOTHING

    view = read_architecture(folder)
    same = ("family", "parameters", "layers", "hidden", "native_context", "dtype")
    shared = {name: getattr(view, name) for name in same}
    base = Base(source=str(folder), folder=folder, name=case.name, licence=None, **shared)
    pace = {"steps": STEPS, "learning_rate": 1e-4, "warmup_steps": 1, "evaluate_every": STEPS // 3}
    little = {"evaluate_tokens": 4096, "held_out_tokens": 8192, "control": bool(case.blocks)}
    changes: list[Any] = [Train(**case.settings, **pace, **little)]
    if case.blocks:
        changes.insert(0, Grow(operators=(operator(case),), parameters=operator(case).resized(view).parameters))
    phases = [
        Phase(number=number, stage="P3", name="part", title="", change=change, measure=None, estimate=NOTHING)
        for number, change in enumerate(changes)
    ]
    return Plan(
        name="fitting",
        base=base,
        parameters=view.parameters,
        context=view.native_context,
        data="kjv",
        phases=tuple(phases),
        limits=Limits(),
        gate=GateLimits(),
        breaker=Breaker(action="warn"),
        seed=0,
        estimate=NOTHING,
        recipe={},
    )


def carried_out(task: Any, folder: Path) -> tuple[int, float]:
    """Largest resident bytes of the worker's own image, and its wall seconds."""
    from scaler_wizard.executors.local import start
    from scaler_wizard.record import to_json
    from scaler_wizard.usage import high_water

    file, peak, begun = folder / "task.json", 0, time.monotonic()
    file.write_text(to_json(task), encoding="utf-8")
    worker = start(file, folder / "worker.log", threads=task.threads)
    assert worker.stdout is not None
    said = ""
    for line in worker.stdout:
        said, peak = line, max(peak, high_water(worker.pid) or 0)
    if worker.wait():
        raise SystemExit(f"{folder}: {said}")
    return peak, time.monotonic() - begun


if __name__ == "__main__":
    raise SystemExit(main())
