"""What a phase will need: memory, time, disk, each with its basis; no torch.

Floating-point operations follow the usual count: 2 per parameter and token for a forward pass, 4 x hidden x positions
looked back to for attention in each layer, three times that for training. The rate comes from a short matrix product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

from scaler_wizard.architecture import Blueprint
from scaler_wizard.hardware import Hardware
from scaler_wizard.metrics import MeasureSpec
from scaler_wizard.phases import RATES_TRIED, Estimate, Merge, Phase, Search, Train

PROBE_SECONDS = 0.06
MODEL_SHARE = 0.42
"""Share of the matrix product's rate that a whole forward pass reached (SmolLM2-135M, fp32, two cores)."""
NARROW_SHARES = {"AMX-bf16": 1.6, "AVX512-bf16": 1.0}
"""The same where a model of width 256 and more is computed in bfloat16, by what the processor has for it: models of 5M
and 14M parameters, trained on one core; of 20M and 90M on two (1.0 to 1.3)."""
START_SECONDS = 4.5
"""Starting a worker: importing torch and transformers, loading a small model (about 4 processor seconds)."""
PROCESS_BYTES = 470 * 2**20
"""Resident memory of a worker before it loads a model: Python, torch and transformers, the text (measured)."""
PROVED_TOKENS = 4 * 96
"""Tokens of the prompts whose logits are compared."""
TRAINER_BYTES = 490 * 2**20
"""The same where it trains, with the text's tokens and its batches."""
SHAPES_BYTES = 24 * 2**20
"""That oneDNN keeps of the shapes that it multiplied in bfloat16, beside what the constant above holds (measured)."""
KEPT_WIDE, KEPT_NARROW = 1.35, 1.5
"""Measured activations over those that the blocks' formulas name, in fp32 and in bfloat16: casts, copies, holes."""
KEPT_FROZEN = 0.7
"""Of them, where most layers are frozen: a frozen layer does not keep its input."""
LOSS_TOKENS, LOSS_BYTES = 128, 16
"""Tokens whose logits exist together in a training's loss, and bytes for each logit: its tables and their holes."""
HEAD_BYTES = 8
"""For each number of an embedding that learns and is the head as well: its gradient comes from two sides."""
HOLES = 0.3
"""Of the gradients' size: they come while activations go, and do not fit into every place that these leave."""
NARROW_FROM, NARROW_PAYS = 128, 256
"""Width from which bfloat16 is faster on a processor that is made for it (1.4 times at 128, AVX512-bf16), and from
which it is faster by the shares above."""
STEP_SECONDS = 0.02
"""Overhead of one optimiser step of a very small model."""


@dataclass(frozen=True)
class Work:
    """Tokens through a model: `tokens` in windows of `window`."""

    tokens: int
    window: int


@cache
def flops_per_second(threads: int) -> float:
    """Rate of a single-precision matrix product on one core, times the threads.

    One thread is timed: two on a busy machine wait for each other, and the answer would be off by twenty times.
    """
    left, right = np.ones((384, 512), np.float32), np.ones((512, 384), np.float32)
    with threadpool_limits(1):
        begun, products = time.process_time(), 0
        while time.process_time() - begun < PROBE_SECONDS:
            left @ right
            products += 1
        rate = 2 * 384 * 512 * 384 * products / (time.process_time() - begun)
    return rate * threads


def model_rate(view: Blueprint, threads: int, instructions: Sequence[str] | None) -> float:
    """Operations a second of this model, by its width and the processor's instruction sets."""
    known = [share for name, share in NARROW_SHARES.items() if name in (instructions or ())]
    share = max(known, default=MODEL_SHARE) if view.hidden >= NARROW_PAYS else MODEL_SHARE
    return flops_per_second(threads) * share


def forward_flops(view: Blueprint, work: Work) -> float:
    """Operations of a forward pass; a token looks back over half its window on average."""
    attention = 4 * view.heads * view.head_dim * (work.window / 2) * view.layers
    return work.tokens * (2 * view.parameters + attention)


def measure_work(spec: MeasureSpec, native: int) -> list[Work]:
    """Everything that a measurement reads."""
    work = [Work(spec.short_windows * spec.short_length, spec.short_length)]
    work.append(Work(spec.windows * spec.length, spec.length))
    if spec.truncated and spec.windows and spec.length > native:
        work.append(Work(spec.windows * native, native))
    if not spec.along and spec.windows:
        work += [Work(spec.needles * length, length) for length in spec.needle_lengths]
    return [*work, Work(spec.probe_items * 4 * 12, 12)]


def seconds(view: Blueprint, spec: MeasureSpec | None, native: int, *, rate: float, extra: float = 0.0) -> float:
    """Wall time of a phase: its measurement and `extra` operations, at `rate` a second."""
    work = [] if spec is None else measure_work(spec, native)
    flops = extra + sum(forward_flops(view, part) for part in work)
    return START_SECONDS + flops / rate


def search_flops(view: Blueprint, search: Search, length: int) -> float:
    """Every candidate's windows and short text, and the finalists' whole windows (two more are always among them)."""
    each = [Work(search.windows * search.window, search.window)]
    last = [Work(search.final_windows * length, length)] if search.finalists else []
    short = Work(search.short_windows * search.short_length, search.short_length)
    first = search.evaluations * sum(forward_flops(view, work) for work in [*each, short])
    return first + (search.finalists + 2) * sum(forward_flops(view, work) for work in [*last, short])


def training_flops(view: Blueprint, base: Blueprint, train: Train) -> float:
    """Both arms, forward and backward, and what is read beside."""
    tokens = int((train.steps + searching_steps(train)) * train.windows_per_step * train.window)
    beside = forward_flops(view, Work(read_beside(train), train.window))
    beside += 2 * teacher_readings(train) * (train.teacher_parameters or base.parameters) * tokens
    work = Work(tokens, train.window)
    return beside + 3 * forward_flops(view, work) + (3 * forward_flops(base, work) if train.control else 0)


def read_beside(train: Train) -> int:
    """Tokens that a training reads without learning, in all arms: held-out text before and after, evaluations."""
    arms = 2 if train.control else 1
    evaluations = 1 + math.ceil(train.steps / train.evaluate_every)
    each = train.windows_of(train.evaluate_tokens)
    return train.window * ((1 + arms) * train.windows_of(train.held_out_tokens) + arms * evaluations * each)


def teacher_readings(train: Train) -> float:
    """Times that a teacher reads all text: once where the second arm finds on disk what it said, else for each arm."""
    if train.distil is None:
        return 0.0
    return train.distil.first * (2 if train.distil.keep == "nothing" and train.control else 1)


def searching_steps(train: Train) -> float:
    """Steps that a search for a learning rate costs: it reads each text once more, without a backward pass."""
    return RATES_TRIED * 4 / 3 if train.find_rate else 0.0


# -- a trial ---------------------------------------------------------------------------------------------------------


TRIAL_STEPS, TRIAL_WINDOWS = 3, 8
"""Fewest of a trial, where the first step warms up and does not count: a window may be one text or many short ones, and
takes up to half as long again as another."""


@dataclass(frozen=True)
class Tried:
    """What a trial measured of a training."""

    train: Train
    """The training, shortened."""
    seconds: float
    """Wall time of the trial, from the start of its process to the end."""
    step_seconds: float
    """A step of all arms."""
    token_seconds: float
    """A token that is read without learning."""
    memory_bytes: int
    """Largest resident memory of its process."""
    band: float
    """Share by which the time may be off."""

    def seconds_of(self, train: Train) -> float:
        """Wall time of the whole training: the trial, the steps that it did not make, the text that it did not read."""
        steps = train.steps + searching_steps(train) - self.train.steps
        more = read_beside(train) - read_beside(self.train)
        return self.seconds + steps * self.step_seconds + more * self.token_seconds

    def rate(self, view: Blueprint) -> float:
        """Floating-point operations a second of reading."""
        return forward_flops(view, Work(1, self.train.window)) / self.token_seconds


def short(train: Train) -> Train:
    """A training with few steps and little to read beside; equal for trainings whose steps cost the same."""
    few = {"evaluate_tokens": 4 * train.window, "held_out_tokens": 4 * train.window}
    windows = 1 + math.ceil(TRIAL_WINDOWS / train.windows_per_step)
    steps = max(TRIAL_STEPS, min(windows, train.steps))
    changes = {"steps": steps, "warmup_steps": 0, "evaluate_every": steps, "target": None}
    same = {"lora_restarts": 0, "find_rate": False, "when": "always"}
    return train.model_copy(update={**few, **changes, **same})


def merging_flops(view: Blueprint, merge: Merge) -> float:
    """Every parent and every try on calibration text, then the parents and the merged model on held-out text."""
    search, parents = merge.search, len(merge.method.models) + (merge.method.base is not None)
    windows = search.windows * (search.tries + parents) + 2 * search.windows * (parents + 1)
    return forward_flops(view, Work(windows * search.length * len(search.texts), search.length))


def phase_flops(phase: Phase, view: Blueprint, base: Blueprint, *, native: int) -> float:
    """Operations of a whole phase: what it trains and what it measures afterwards."""
    read = [] if phase.measure is None else measure_work(phase.measure, native)
    trained = training_flops(view, base, phase.change) if isinstance(phase.change, Train) else 0.0
    trained += merging_flops(view, phase.change) if isinstance(phase.change, Merge) else 0.0
    return trained + sum(forward_flops(view, part) for part in read)


def measuring_bytes(view: Blueprint, spec: MeasureSpec | None, *, item: int = 4) -> int:
    """Peak memory of a measurement: weights, the cache of one long window, a piece's activations, and logits in fp32.

    `item` is the size in bytes of a number in the type that the worker computes in.
    """
    if spec is None:
        return PROCESS_BYTES
    cached = spec.length * 2 * view.layers * view.kv_heads * view.head_dim * item if spec.windows else 0
    piece = 8192 * (4 * view.hidden + 3 * view.ffn) * item
    return PROCESS_BYTES + item * view.parameters + 2 * cached + piece + 2 * 512 * view.vocabulary * 4


def proving_bytes(view: Blueprint) -> int:
    """Peak memory of the proof: one model in fp32 beside its file's pages, and both models' logits, read three ways."""
    return PROCESS_BYTES + (4 + 2) * view.parameters + 2 * 3 * PROVED_TOKENS * view.vocabulary * 4


LEAST_RANK, LARGEST_RANK = 8, 128
BITS_HELD = 2.0
"""That a parameter of an adapter holds of what it is taught, where a token of text has about one to teach."""


def adapter_rank(view: Blueprint, tokens: int) -> int:
    """A rank for adapters where nobody chose one: for the model's width, or more where the text has more to teach.

    A power of two from 8 to 128: a 32nd of the width, or what it takes for the adapters' parameters to hold `tokens`
    bits at two bits each (arXiv:2404.05405 for the two bits; docs/log.md for what it was worth).
    """
    width, capacity = view.hidden / 32, tokens / (BITS_HELD * rank_parameters(view))
    wished = max(2 ** round(math.log2(width)), 2 ** math.ceil(math.log2(capacity)))
    return int(min(LARGEST_RANK, max(LEAST_RANK, wished)))


def rank_parameters(view: Blueprint) -> int:
    """Parameters that one rank of adapters on every linear layer has."""
    queries, keys = view.heads * view.head_dim, view.kv_heads * view.head_dim
    sides = 2 * (view.hidden + queries) + 2 * (view.hidden + keys) + 3 * (view.hidden + view.ffn) * (view.experts or 1)
    return view.layers * sides


def training_bytes(view: Blueprint, train: Train, *, new: int | None = None) -> int:
    """Peak memory of a training: weights, moments, and the larger of activations with a piece of loss and gradients.

    `new` is the number of parameters that learn where only new ones do; all of them where it is left out. Its constants
    were fitted to trainings by real workers (docs/log.md, benchmarks/fitting.py).
    """
    size = 2 if narrow(train) else 4
    learning = learning_parameters(view, train, new)
    gradients, block = 4 * learning, _block_bytes(view, train, size)
    head = HEAD_BYTES * view.vocabulary * view.hidden * (train.train in ("all", "norms"))
    kept = block * (2 if train.checkpointing else view.layers) + LOSS_TOKENS * view.vocabulary * LOSS_BYTES
    kept += 4 * view.hidden * (2 + view.layers * train.checkpointing) * train.micro_batch * train.window
    passing = max(kept + gradients * train.checkpointing, gradients + block) + int(HOLES * gradients)
    trained = _weight_bytes(view, train, learning, size) + 8 * learning + head + passing
    shapes = SHAPES_BYTES if size == 2 else 0
    return TRAINER_BYTES + shapes + max(trained, (4 + 2) * view.parameters)  # at first in fp32, beside its file's pages


def _weight_bytes(view: Blueprint, train: Train, learning: int, size: int) -> int:
    """Weights, and what autocast keeps of those that learn. Tensors that are new in part stay whole in fp32."""
    if train.train == "lora":
        return view.parameters * (4 if train.lora_restarts else size) + 4 * learning
    if train.train == "new":
        return (4 if size == 4 else 5) * view.parameters + 4 * learning
    return (view.parameters - learning) * size + (4 if size == 4 else 6) * learning


def _block_bytes(view: Blueprint, train: Train, size: int) -> int:
    """What one block keeps for the backward pass, measured."""
    fused = train.train == "lora" and train.lora_kind != "dora"
    times = KEPT_NARROW if size == 2 else KEPT_WIDE
    part = KEPT_FROZEN if train.train in ("new", "norms") else 1.0
    return int(train.micro_batch * train.window * layer_bytes(view, size, fused=fused) * times * part)


def narrow(train: Train) -> bool:
    """Whether the matrix products will run in bfloat16, as far as that is known before they are timed."""
    return (train.expects if train.compute == "auto" else train.compute) == "bfloat16"


def expected_compute(view: Blueprint, hardware: Hardware) -> Literal["float32", "bfloat16"]:
    """What a worker is expected to find faster."""
    return "bfloat16" if hardware.has_bfloat16 and view.hidden >= NARROW_FROM else "float32"


def learning_parameters(view: Blueprint, train: Train, new: int | None) -> int:
    """Parameters that learn."""
    if train.train == "norms":
        return view.hidden * (view.vocabulary + 2 * view.layers + 1)
    if train.train != "lora":
        return view.parameters if new is None or train.train == "all" else new
    return train.lora_rank * rank_parameters(view)


def layer_bytes(view: Blueprint, size: int, *, fused: bool = False) -> int:
    """What a block keeps of one token for the backward pass: its norms in fp32, its products in `size` bytes.

    With `fused` adapters, layers that read the same input keep one copy of it, and a gated layer its two halves.
    """
    queries, keys = view.heads * view.head_dim, view.kv_heads * view.head_dim
    copies, halves = (2 * size, 2) if fused else (10 if size == 2 else 8, 4)
    return (16 + copies) * view.hidden + size * (3 * queries + 2 * keys + halves * view.ffn)


def healing_bytes(view: Blueprint, base: Blueprint, train: Train) -> int:
    """Peak of both arms, and of the teacher beside them: where new parameters learn, the control learns whole."""
    arms = [training_bytes(view, train, new=view.parameters - base.parameters)]
    if train.train == "lora" and train.lora_ranks == "spectrum":
        arms.append(spectrum_bytes(view, train))
    if train.control:
        whole = train.model_copy(update={"train": "all"}) if train.train == "new" else train
        arms.append(training_bytes(base, whole))
    return max(arms) + (0 if train.distil is None else 4 * (train.teacher_parameters or base.parameters))


SPREAD_FROM = 64
"""Steps of a training from which looking for ranks, four dear steps, is a small part of it."""


def spreads(view: Blueprint, train: Train, limit: int) -> bool:
    """Whether plain adapters get their ranks by the spectrum of their gradients where nobody chose."""
    plain = train.train == "lora" and train.lora_kind == "lora" and train.lora_base == "whole"
    return plain and train.steps >= SPREAD_FROM and spectrum_bytes(view, train) <= limit


def spectrum_bytes(view: Blueprint, train: Train) -> int:
    """Peak memory of looking for ranks: the gradients of all matrices in fp32, but no moments."""
    whole = train.model_copy(update={"train": "all", "compute": "float32", "lora_ranks": "uniform"})
    return training_bytes(view, whole) - 8 * view.parameters


def healing_disk(view: Blueprint, base: Blueprint, train: Train) -> int:
    """Bytes that a training takes while it runs: two snapshots of each arm (fp32 and two moments), and the control."""
    learning = learning_parameters(view, train, view.parameters - base.parameters)
    if train.control:
        whole = train.model_copy(update={"train": "all"}) if train.train == "new" else train
        learning += learning_parameters(base, whole, None)
    return 2 * 12 * learning + (4 * base.parameters if train.control else 0)


def fitted(view: Blueprint, base: Blueprint, train: Train, limit: int) -> Train:
    """The same training with fewer windows in memory at once, then with recomputed activations, until it fits.

    The effective batch stays. What still does not fit comes back as small as it gets.
    """
    while healing_bytes(view, base, train) > limit:
        if train.micro_batch > 1:
            train = train.model_copy(update={"micro_batch": train.micro_batch // 2})
        elif not train.checkpointing:
            train = train.model_copy(update={"checkpointing": True})
        else:
            return train
    return train


def total(parts: list[Estimate]) -> Estimate:
    """A whole run: times and disk add up, memory is the largest; unknown makes the sum unknown."""
    times, memory, disk = ([getattr(part, key) for part in parts] for key in ("seconds", "memory_bytes", "disk_bytes"))
    return Estimate(
        seconds=None if None in times else sum(times),
        memory_bytes=None if None in memory else max(memory),
        disk_bytes=None if None in disk else sum(disk),
        basis="sum of the phases; memory is the largest of them",
    )
