"""The training loop, the only one in the house: grown parameters, adapters or everything, on packed text.

Made for CPUs too: no gradient flows where nothing learns, the loss never holds all logits, and what a step sees is a
pure function of (seed, step), so that a resumed training is bitwise the uninterrupted one and a control arm reads the
same tokens in the same order.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from scaler_wizard.data import Tokens, TrainingWindows, training_windows
from scaler_wizard.events import Evaluated, Note, Step, Telegram, WorkerEvent
from scaler_wizard.facts import TRAIN_NAMES, answer, make_facts, question, statement
from scaler_wizard.losses import linear_cross_entropy
from scaler_wizard.phases import Train

SNAPSHOT_SECONDS = 20.0
EVENT_SECONDS = 0.25
Arm = Literal["grown", "control"]
Emit = Callable[[WorkerEvent], None]
Spans = Mapping[str, tuple[tuple[int, int, int], ...] | None]
"""What learns, by parameter name: None for the whole tensor, or (dim, start, stop) spans of it."""


class Interrupted(Exception):
    """Asked to stop; a snapshot is on disk."""


class Tripped(Exception):
    """The circuit breaker stopped the training."""

    def __init__(self, telegram: Telegram) -> None:
        super().__init__(telegram.sentence)
        self.telegram = telegram


class Watch(Protocol):
    """The circuit breaker, as the loop sees it."""

    def observe(self, step: int, loss: float) -> Telegram | None:
        """After every step."""

    def observe_evaluation(self, step: int, nll: float, accuracy: float | None = None) -> Telegram | None:
        """After every evaluation."""

    def state(self) -> dict[str, Any]:
        """What it remembers."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""


@dataclass(frozen=True)
class Text:
    """What to train on: windows of text, and how to make variants of them."""

    windows: TrainingWindows
    tokenizer: Any
    native: int
    """Tokens of the base's window: the length of short pieces."""
    target: int
    """Tokens that skipped positions reach."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: all (windows, tokens)."""

    ids: torch.Tensor
    positions: torch.Tensor
    documents: torch.Tensor | None
    """Equal inside one piece of text; None where every window is one piece."""


@dataclass
class History:
    """What a training has seen so far."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)


# -- what learns -----------------------------------------------------------------------------------------------------


def learn_only(model: Any, spans: Spans | None) -> list[torch.nn.Parameter]:
    """Let only `spans` learn (None: everything); the rest of a partly new tensor keeps its bits.

    AdamW's state stays zero where the gradient is always zero, and these tensors get no weight decay.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(spans is None or name in spans)
        if spans is not None and spans.get(name) is not None:
            parameter.register_hook(_keep_only(parameter, spans[name] or ()))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _keep_only(
    parameter: torch.Tensor, spans: Sequence[tuple[int, int, int]]
) -> Callable[[torch.Tensor], torch.Tensor]:
    mask = torch.zeros_like(parameter)
    for dim, start, stop in spans:
        mask.narrow(dim, start, stop - start).fill_(1)
    return lambda gradient: gradient * mask


# -- what a step sees --------------------------------------------------------------------------------------------------


def batches(text: Text, settings: Train, step: int, seed: int) -> list[Batch]:
    """The micro-batches of one step; depends on nothing else than its arguments."""
    short: list[Tokens] = []
    long: list[tuple[Tokens, Any, Any]] = []
    for number in range(settings.windows_per_step):
        index = step * settings.windows_per_step + number
        row = index % len(text.windows.ids)
        ids, documents = text.windows.ids[row], text.windows.document_ids[row]
        chance = np.random.default_rng([seed, index])
        draw = chance.random()
        if draw < settings.short_share and settings.window > text.native:
            short.append(ids[: len(ids) // text.native * text.native].reshape(-1, text.native))
        elif draw < settings.short_share + settings.skip_share:
            long.append((ids, _skipped(len(ids), text.target, chance), np.zeros_like(ids)))
        elif draw > 1 - settings.needle_share:
            long.append((_with_fact(ids, text.tokenizer, chance), np.arange(len(ids)), np.zeros_like(ids)))
        else:
            long.append((ids, _restarting(documents), documents))
    return [*_short_batches(short, settings, text.native), *_long_batches(long, settings)]


def _short_batches(short: list[Tokens], settings: Train, native: int) -> Iterator[Batch]:
    if not short:
        return
    rows = np.concatenate(short)
    at_once = max(1, settings.micro_batch * settings.window // native)
    for at in range(0, len(rows), at_once):
        ids = torch.from_numpy(rows[at : at + at_once].astype(np.int64))
        yield Batch(ids, torch.arange(native).expand_as(ids), None)


def _long_batches(long: list[tuple[Tokens, Any, Any]], settings: Train) -> Iterator[Batch]:
    for at in range(0, len(long), settings.micro_batch):
        group = long[at : at + settings.micro_batch]
        ids, positions, documents = (
            torch.from_numpy(np.stack(parts).astype(np.int64)) for parts in zip(*group, strict=True)
        )
        one_piece = bool((documents == documents[:, :1]).all())
        yield Batch(ids, positions, None if one_piece else documents)


def _skipped(length: int, target: int, chance: np.random.Generator) -> Any:
    """Positions of two neighbouring pieces with a gap between them (PoSE, arXiv:2309.10400)."""
    positions = np.arange(length)
    if target > length:
        positions[int(chance.integers(1, length // 2 + 1)) :] += int(chance.integers(0, target - length + 1))
    return positions


def _restarting(documents: Tokens) -> Any:
    """Positions that begin again with every document."""
    starts = np.flatnonzero(np.diff(documents, prepend=documents[0] - 1))
    return np.arange(len(documents)) - np.repeat(starts, np.diff(np.append(starts, len(documents))))


def _with_fact(ids: Tokens, tokenizer: Any, chance: np.random.Generator) -> Tokens:
    """The window with a fact written over a random place, and its question and answer over the end."""
    fact, template = make_facts(1, 4, chance, names=TRAIN_NAMES)[0], int(chance.integers(4))
    told = tokenizer(f" {statement(fact, template)}", add_special_tokens=False)["input_ids"]
    asked = tokenizer(f" {question(fact, template)}{answer(fact)}", add_special_tokens=False)["input_ids"]
    if len(told) + len(asked) > len(ids):
        return ids
    place = int(chance.integers(0, len(ids) - len(told) - len(asked) + 1))
    changed = ids.copy()
    changed[place : place + len(told)] = told
    changed[-len(asked) :] = asked
    return changed


def _mask(documents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask (windows, 1, tokens, tokens): causal, and closed between documents."""
    same = documents[:, :, None] == documents[:, None, :]
    allowed = same & torch.ones_like(same[0]).tril()
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


# -- the loop ----------------------------------------------------------------------------------------------------------


@dataclass
class Trainer:
    """One training: a model, its text, its settings, its watch."""

    model: Any
    text: Text
    settings: Train
    evaluate: Callable[[Any], float]
    """Loss on calibration text, nats per token."""
    watch: Watch
    emit: Emit
    snapshot: Path
    """File that an interrupted training goes on from."""
    should_stop: Callable[[], bool]
    seed: int
    arm: Arm = "grown"
    spans: Spans | None = None
    """What learns; None: everything that requires a gradient already."""

    def run(self) -> History:
        """Train to the last step. Raises Interrupted or Tripped."""
        parameters = self._prepare()
        optimizer = torch.optim.AdamW(_groups(self.model, self.settings), lr=0.0, betas=(0.9, 0.95), fused=True)
        history = self._restore(optimizer)
        if not history.evaluations:
            self._evaluate(history)
        told = saved = time.monotonic()
        while history.step < self.settings.steps:
            if self.should_stop():
                self._save(optimizer, history)
                raise Interrupted
            begun = time.monotonic()
            event = self._step(optimizer, parameters, history, begun)
            if begun - told > EVENT_SECONDS or history.step in (1, self.settings.steps):
                told = begun
                self.emit(event)
            self._heed(self.watch.observe(event.step, event.loss), event)
            if history.step % self.settings.evaluate_every == 0 or history.step == self.settings.steps:
                self._evaluate(history)
            if time.monotonic() - saved > SNAPSHOT_SECONDS:
                self._save(optimizer, history)
                saved = time.monotonic()
        return history

    def _prepare(self) -> list[torch.nn.Parameter]:
        self.model.train()
        self.model.config.use_cache = False
        if self.spans is not None:
            learn_only(self.model, self.spans)
        if self.settings.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _step(
        self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], history: History, begun: float
    ) -> Step:
        rate = learning_rate(self.settings, history.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pieces = batches(self.text, self.settings, history.step, self.seed)
        tokens = sum(piece.ids.numel() for piece in pieces)
        loss = 0.0
        for piece in pieces:
            part = self._loss(piece) * (piece.ids.numel() / tokens)
            part.backward()
            loss += float(part.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        history.step += 1
        history.losses.append(loss)
        return Step(
            step=history.step,
            steps=self.settings.steps,
            loss=loss if math.isfinite(norm) else math.nan,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=history.step * self.settings.windows_per_step * self.settings.window,
            tokens_per_second=tokens / max(time.monotonic() - begun, 1e-9),
            arm=self.arm,
        )

    def _loss(self, piece: Batch) -> torch.Tensor:
        device = self.model.device
        mask = None if piece.documents is None else _mask(piece.documents, torch.float32).to(device)
        ids = piece.ids.to(device)
        with autocast(self.model):
            hidden = backbone(self.model)(
                input_ids=ids, position_ids=piece.positions.to(device), attention_mask=mask, use_cache=False
            ).last_hidden_state
            head = head_weight(self.model)
        targets, weights = ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.float32)
        if piece.documents is not None:  # the first token of a document does not follow from the last of another
            weights = (piece.documents[:, 1:] == piece.documents[:, :-1]).float().to(device)
        flat = hidden[:, :-1].flatten(0, 1).to(head.dtype)
        return linear_cross_entropy(flat, head, targets.flatten(), weights=weights.flatten())

    def _evaluate(self, history: History) -> None:
        self.model.eval()
        nll = self.evaluate(self.model)
        self.model.train()
        history.evaluations.append((history.step, nll))
        self.emit(Evaluated(step=history.step, nll=nll, perplexity=math.exp(min(nll, 700.0)), arm=self.arm))
        self._heed(self.watch.observe_evaluation(history.step, nll), None)

    def _heed(self, telegram: Telegram | None, step: Step | None) -> None:
        if telegram is None:
            return
        if step is not None:
            self.emit(step)
        self.emit(telegram)
        if telegram.hard:
            raise Tripped(telegram)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer, history: History) -> None:
        learned = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        state = {
            "model": learned,
            "optimizer": optimizer.state_dict(),
            "history": vars(history),
            "watch": self.watch.state(),
        }
        beside = self.snapshot.with_suffix(".new")
        with beside.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        beside.rename(self.snapshot)

    def _restore(self, optimizer: torch.optim.Optimizer) -> History:
        if not self.snapshot.exists():
            return History()
        state = torch.load(self.snapshot, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(state["model"][name])
        optimizer.load_state_dict(state["optimizer"])
        self.watch.restore(state["watch"])
        history = History(**state["history"])
        self.emit(Note(text=f"Training goes on from step {history.step} of {self.settings.steps}."))
        return history


def learning_rate(settings: Train, step: int) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak; `step` counts from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def _groups(model: Any, settings: Train) -> list[dict[str, Any]]:
    """Matrices decay, norms and embeddings do not."""
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in learning if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in learning if not (p.ndim == 2 and "embed" not in name)]
    return [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]


def backbone(model: Any) -> Any:
    """The model without its head, under PEFT's wrapper as well."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.model


def head_weight(model: Any) -> torch.Tensor:
    """The head's matrix (vocabulary, hidden)."""
    weight: torch.Tensor = model.get_output_embeddings().weight
    return weight


def autocast(model: Any) -> Any:
    """bfloat16 for matrix products where the device is faster in it; weights and optimiser stay in fp32."""
    from scaler_wizard.models import best_dtype

    faster = best_dtype()[0] == "bfloat16"
    return torch.autocast(model.device.type, dtype=torch.bfloat16) if faster else nullcontext()


def text_of(encoded: list[Tokens], tokenizer: Any, settings: Train, *, native: int, target: int, seed: int) -> Text:
    """Training text from encoded documents."""
    return Text(training_windows(encoded, settings.window, seed), tokenizer, native, target)
