"""The training loop, the only one in the house: grown parameters, adapters or everything, on packed text.

Made for CPUs too: no gradient flows where nothing learns, attention stays inside its piece of text, the loss never
holds all logits. What a step sees is a pure function of (seed, step), so a resumed training is bitwise the
uninterrupted one and a control arm reads the same tokens in the same order.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import torch

from scaler_wizard.accelerators import small_moments
from scaler_wizard.attention import Seen, by_piece
from scaler_wizard.batches import Batch, Text, batches, targets_of
from scaler_wizard.ceiling import hand_back
from scaler_wizard.distill import View, distilled_loss
from scaler_wizard.events import Evaluated, Note, Step, Telegram, WorkerEvent
from scaler_wizard.failpoints import reach
from scaler_wizard.hardware import processor_has_bfloat16
from scaler_wizard.imitate import Imitation, Inside, watched
from scaler_wizard.lora import restart_lora
from scaler_wizard.losses import linear_cross_entropy
from scaler_wizard.metrics import Probe
from scaler_wizard.phases import Train
from scaler_wizard.recompute import keep_activations, recompute
from scaler_wizard.room import full, is_full, require
from scaler_wizard.schedule import chosen_rate, learning_rate, restarts, tried_rates
from scaler_wizard.slices import Sliced
from scaler_wizard.snapshots import newest_sound, snapshots, take

SNAPSHOT_SECONDS = 20.0
SNAPSHOT_SHARE = 0.05
"""Largest part of the time that goes into snapshots of large models."""
FORETOLD_BY = 3
"""Steps after which the training says how long it will take."""
PROBE_TOKENS, PROBE_WORK = (256, 2048), 2**32
"""Tokens that a type of matrix product is tried on: between these, and as many as parameters make up this together."""
PROBES = 3
EVENT_SECONDS = 0.25
BETAS = (0.9, 0.95)
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

    def observe_evaluation(
        self, step: int, nll: float, accuracy: float | None = None, asked: int | None = None
    ) -> Telegram | None:
        """After every evaluation."""

    def state(self) -> dict[str, Any]:
        """What it remembers."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""


class Asked(Protocol):
    """A teacher, as the loop sees it."""

    def teaches(self, batch: Batch) -> torch.Tensor:
        """Which tokens of the row it may say something of."""

    def view(self, batch: Batch, places: torch.Tensor) -> View:
        """What it says at these places."""

    def inside(self, batch: Batch, blocks: Sequence[int]) -> Inside:
        """What these blocks of it make of the pieces that it reads."""


@dataclass
class History:
    """What a training has seen so far."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    peak: float | None = None
    """Highest learning rate, where it was searched for."""

    @property
    def best(self) -> int:
        """The step after which the calibration text was read best; 0 before the first evaluation."""
        read = [(nll, -step) for step, nll in self.evaluations if math.isfinite(nll)]
        return -min(read, default=(0.0, 0))[1]


# -- what learns -----------------------------------------------------------------------------------------------------


def learn_only(model: Any, spans: Spans | None) -> list[Sliced]:
    """Let only `spans` learn (None: everything); what learns in part, which gets no weight decay."""
    found = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(spans is None or name in spans)
        if spans is not None and spans.get(name) is not None:
            found.append(Sliced(parameter, spans[name] or ()))
    return found


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
    scratch: Path
    """Folder of the snapshots that an interrupted training goes on from."""
    should_stop: Callable[[], bool]
    seed: int
    compute: torch.dtype | None = None
    """Type of the matrix products, None: the faster one; what learns, its optimiser and the residual stay in fp32."""
    arm: Arm = "grown"
    spans: Spans | None = None
    """What learns; None: everything that requires a gradient already."""
    teacher: Asked | None = None
    """Where the settings distil: whom to ask."""
    imitation: Imitation | None = None
    """Where the model's blocks learn from the teacher's as well: how."""
    quiz: Callable[[Any], Probe] | None = None
    """Asks the model a few questions at every evaluation; None: nothing is asked."""
    until: int | None = None
    """The last step, where training ends earlier than its schedule; None: where the schedule ends."""
    _sliced: list[Sliced] = field(default_factory=list)
    """What learns in part."""
    _at_once: int = 0
    """Windows in memory at once."""
    _checkpointing: bool = False
    _paces: list[float] = field(default_factory=list)
    """Seconds of each step so far."""
    _saved: float = 0.0
    """When the last snapshot was written, on the monotonic clock."""
    _saving: float = 0.0
    """Seconds that it took."""

    def run(self) -> History:
        """Train to the last step. Raises Interrupted or Tripped."""
        parameters = self._prepare()
        optimizer = self._optimizer()
        history = self._restore(optimizer)
        reach("train.restored")
        compute = self._compute()
        if not self.settings.lora_restarts:  # else the frozen weights take up what the adapters learn
            narrow_frozen(self.model, compute)
            hand_back()
        if self.settings.find_rate and history.peak is None:
            history.peak = self._find_rate(optimizer, parameters)
        try:
            self._steps(optimizer, parameters, history)
        except Tripped:
            for one in snapshots(self.scratch, self.arm):
                if one.step > history.best:  # what follows the best evaluation led to the stop
                    one.file.unlink(missing_ok=True)
            raise
        keep_activations(backbone(self.model).layers)
        del optimizer
        self._forget()
        self.model.float()
        return history

    def _forget(self) -> None:
        """Gradients, where they kept their places; freed memory goes back before copies of the model are made."""
        for parameter in self._own():
            parameter.grad = None
        hand_back()

    def _steps(self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], history: History) -> None:
        last = self.settings.steps if self.until is None else self.until
        self._clear()
        if not history.evaluations:
            self._evaluate(history)
            self._save(optimizer, history)
        take_moments(optimizer)
        told = self._saved = time.monotonic()
        while history.step < last:
            if self.should_stop():
                self._save(optimizer, history)
                raise Interrupted
            begun = time.monotonic()
            event = self._step(optimizer, parameters, history, begun)
            reach("train.stepped")
            if begun - told > EVENT_SECONDS or history.step in (1, last):
                told = begun
                self.emit(event)
            self._heed(self.watch.observe(event.step, event.loss), event)
            self._foretell(history, begun)
            if history.step % self.settings.evaluate_every == 0 or history.step == last:
                self._evaluate(history)
            if self._due(history):
                self._save(optimizer, history)

    def _due(self, history: History) -> bool:
        """Whether to write a snapshot: from time to time, and at the best evaluation so far, at little cost."""
        pause = self._saving / SNAPSHOT_SHARE
        if history.best != history.step:
            pause = max(SNAPSHOT_SECONDS, pause)
        return time.monotonic() - self._saved > pause

    def _optimizer(self) -> Any:
        groups = _groups(self.model, self.settings, self._sliced)
        if self.imitation is not None:
            groups.append({"params": list(self.imitation.parameters()), "weight_decay": 0.0})
        if self.settings.optimizer == "adamw-8bit":
            return small_moments(groups, betas=BETAS)
        return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)

    def _find_rate(self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> float:
        """The peak learning rate by a range test, which leaves no trace in the model or the optimiser."""
        before = [parameter.detach().clone() for parameter in parameters]
        rates = tried_rates(self.settings.learning_rate)
        first = [self._read(step) for step in range(len(rates))]
        gains: list[float] = []
        for step, rate in enumerate(rates):
            if self.should_stop():
                raise Interrupted
            loss, _ = self._backward(step)
            if not math.isfinite(loss) or loss > first[step] + math.log(2):  # twice as perplexed: all is said
                break
            gains.append(first[step] - loss)
            self._update(optimizer, parameters, rate)
        with torch.no_grad():
            for parameter, was in zip(parameters, before, strict=True):
                parameter.copy_(was)
        self._write()
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
        found = chosen_rate(rates, gains)
        self.emit(Note(text=f"Peak learning rate {found:.1e}, found in {len(gains)} short steps."))
        return found

    @torch.no_grad()
    def _read(self, step: int) -> float:
        """The step's mean loss, without learning from it."""
        parts = batches(self.text, self.settings, step, self.seed, at_once=self._at_once)
        with by_piece(self.model):
            losses = [float(self._loss(part, self._asked(step))) * part.targets for part in parts]
        return sum(losses) / sum(part.targets for part in parts)

    def _foretell(self, history: History, begun: float) -> None:
        """After a few steps, how long the rest takes; the first step also warms up and does not count."""
        self._paces.append(time.monotonic() - begun)
        left = self.settings.steps - history.step
        if len(self._paces) == FORETOLD_BY and left > 0:
            pace = sum(self._paces[1:]) / (FORETOLD_BY - 1)
            self.emit(
                Note(text=f"A step takes {pace:.2g} s: {left} more take about {max(1, round(left * pace / 60))} min.")
            )

    def _prepare(self) -> list[torch.nn.Parameter]:
        self.model.train()
        self.model.config.use_cache = False
        if self.spans is not None:
            self._sliced = learn_only(self.model, self.spans)
        self._at_once = self.settings.micro_batch
        if self.settings.checkpointing:
            self._recompute()
        return self._own()

    def _own(self) -> list[torch.nn.Parameter]:
        """What the optimiser turns: whole tensors, and the slices of others."""
        whole = {id(one.whole) for one in self._sliced}
        own = [part for one in self._sliced for part in one.own]
        return [*(parameter for _, parameter in self._learning() if id(parameter) not in whole), *own]

    def _learning(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The model's parameters that learn, and the projections of an imitation."""
        own = [(name, one) for name, one in self.model.named_parameters() if one.requires_grad]
        more = [] if self.imitation is None else self.imitation.named_parameters(prefix="imitation")
        return [*own, *more]

    def _compute(self) -> torch.dtype:
        """What the matrix products run in; where nobody chose, both are timed on a short text, forward and backward.

        On a processor without instructions for bfloat16 it is not even tried: it takes many times as long there. A
        matrix product alone does not tell: with narrow layers bfloat16 loses more in between than it wins in them.
        """
        if self.compute is None and self.model.device.type == "cuda":
            self.compute = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        if self.compute is None and processor_has_bfloat16() is False:
            self.compute = torch.float32
        if self.compute is None:
            batch = self._sample()
            seconds = {dtype: self._time(batch, dtype) for dtype in (torch.float32, torch.bfloat16)}
            self.compute = min(seconds, key=lambda dtype: seconds[dtype])
        return self.compute

    def _sample(self) -> Batch:
        """Some text to time a step on: the smaller the model, the more, since a few tokens do not show its pace."""
        most = PROBE_WORK // sum(parameter.numel() for parameter in self.model.parameters())
        most = min(max(most, PROBE_TOKENS[0]), PROBE_TOKENS[1], self.settings.micro_batch * self.settings.window)
        ids = self.text.windows.ids[:, :most]
        ids = torch.from_numpy(ids[: max(1, most // ids.shape[1])].astype("int64"))
        positions = torch.arange(ids.shape[1]).repeat(len(ids))
        return Batch(ids.flatten()[None], positions[None], (ids.shape[1],) * len(ids))

    def _time(self, batch: Batch, dtype: torch.dtype) -> float:
        self.compute, seconds = dtype, []
        for _ in range(PROBES):
            begun = time.perf_counter()
            with by_piece(self.model):
                self._loss(batch, self.teacher).backward()
            seconds.append(time.perf_counter() - begun)
        self._clear()
        return min(seconds)

    def _clear(self) -> None:
        """No gradients; where memory is short these keep their places, else they come to lie between large tensors."""
        for parameter in self._own():
            parameter.grad = torch.zeros_like(parameter) if self._checkpointing else None
        for one in self._sliced:
            one.whole.grad = None  # left there where memory ran out on its way into the slices

    def _write(self) -> None:
        for one in self._sliced:
            one.write()

    def _step(
        self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], history: History, begun: float
    ) -> Step:
        if history.step in restarts(self.settings):
            restart_lora(self.model, seed=self.seed + history.step)
            optimizer.state.clear()
            take_moments(optimizer)
        settings = self.settings
        if history.peak is not None:
            settings = settings.model_copy(update={"learning_rate": history.peak})
        rate = learning_rate(settings, history.step)
        loss, tokens = self._backward(history.step)
        norm = self._update(optimizer, parameters, rate)
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

    def _update(self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], rate: float) -> float:
        """One clipped step; the gradient's norm before. A gradient that is not finite changes nothing."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if math.isfinite(norm):
            optimizer.step()
            self._write()
        optimizer.zero_grad(set_to_none=not self._checkpointing)
        return norm

    def _backward(self, step: int) -> tuple[float, int]:
        """Gradients of the step's mean loss over all its targets; returns the loss and the tokens read.

        Where memory runs out, the step is begun again with half as many windows at once, then with activations made
        again in the backward pass; the effective batch stays.
        """
        while True:
            try:
                parts = batches(self.text, self.settings, step, self.seed, at_once=self._at_once)
                return self._accumulate(parts, self._asked(step))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self._retreat():
                    raise
            self._clear()
            gc.collect()

    def _asked(self, step: int) -> Asked | None:
        """Whom to learn from in this step: a teacher may be there for the first steps only."""
        how = self.settings.distil
        return self.teacher if how is not None and step < how.first * self.settings.steps else None

    def _accumulate(self, parts: Sequence[Batch], teacher: Asked | None) -> tuple[float, int]:
        targets, loss = sum(part.targets for part in parts), 0.0
        with by_piece(self.model):
            for part in parts:
                share = self._loss(part, teacher) * (part.targets / targets)
                share.backward()
                loss += float(share.detach())
        return loss, sum(part.ids.numel() for part in parts)

    def _retreat(self) -> bool:
        """Ask for less memory from now on; False where there is no way left."""
        if self._at_once > 1:
            self._at_once //= 2
            way = f"{self._at_once} windows at once, the effective batch stays {self.settings.windows_per_step}"
        elif not self._checkpointing:
            self._recompute()
            way = "activations are made again in the backward pass, which takes about a third longer"
        else:
            return False
        self.emit(Note(text=f"Memory ran out; training goes on with less: {way}."))
        return True

    def _recompute(self) -> None:
        self._checkpointing = True
        recompute(backbone(self.model).layers)

    def _loss(self, batch: Batch, teacher: Asked | None) -> torch.Tensor:
        """Mean over the batch's targets, nats."""
        taught = [] if self.imitation is None or teacher is None else teacher.teaches(batch).tolist()
        if not any(taught):
            return self._said(batch, teacher)
        assert self.imitation is not None and teacher is not None
        with watched(backbone(self.model).layers, self.imitation.ours) as mine:
            said = self._said(batch, teacher, mine.attended)
        fits = [taught[end - 1] for end in np.cumsum(batch.pieces)]
        other = teacher.inside(batch, self.imitation.theirs)
        return said + self.imitation(mine, other, pieces=batch.pieces, taught=fits) * (sum(taught) / len(taught))

    def _said(self, batch: Batch, teacher: Asked | None, seen: Seen | None = None) -> torch.Tensor:
        """The loss of what the head says."""
        compute = self.compute or torch.float32
        rows, goals, predictors = predictions(self.model, batch, compute, seen=seen)
        if teacher is None:
            return cross_entropy(self.model, rows, goals, compute)
        taught = teacher.teaches(batch)[predictors]
        total = rows.new_zeros(())
        if not taught.all():
            total = total + cross_entropy(self.model, rows[~taught], goals[~taught], compute) * (~taught).sum()
        if taught.any():
            view = teacher.view(batch, predictors[taught])
            total = total + self._distilled(rows[taught], goals[taught], view, compute) * taught.sum()
        return total / len(goals)

    def _distilled(self, rows: torch.Tensor, goals: torch.Tensor, view: View, compute: torch.dtype) -> torch.Tensor:
        how = self.settings.distil
        assert how is not None
        head = head_weight(self.model)
        return distilled_loss(rows, head, goals, view, weight=how.weight, temperature=how.temperature, dtype=compute)

    def _evaluate(self, history: History) -> None:
        self.model.eval()
        with autocast(self.model.device, self.compute or torch.float32):
            nll = self.evaluate(self.model)
            answers = None if self.quiz is None else self.quiz(self.model)
        self.model.train()
        history.evaluations.append((history.step, nll))
        right, asked = (None, None) if answers is None else (answers.accuracy, answers.asked)
        share = None if right is None else right.value
        self.emit(
            Evaluated(
                step=history.step,
                nll=nll,
                perplexity=math.exp(min(nll, 700.0)),
                accuracy=share,
                accuracy_interval=right,
                asked=asked,
                arm=self.arm,
            )
        )
        reach("train.evaluated")
        self._heed(self.watch.observe_evaluation(history.step, nll, share, asked), None)

    def _heed(self, telegram: Telegram | None, step: Step | None) -> None:
        if telegram is None:
            return
        if step is not None:
            self.emit(step)
        alone = {"hard": False} if self.arm == "control" else {}  # what stops a control does not stop the phase
        self.emit(telegram.model_copy(update=alone))
        if telegram.hard:
            raise Tripped(telegram)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer, history: History) -> None:
        state = {
            "model": {name: parameter.detach() for name, parameter in self._changing()},
            "optimizer": optimizer.state_dict(),
            "history": vars(history),
            "watch": self.watch.state(),
            "compute": self.compute,
            "at_once": self._at_once,
            "checkpointing": self._checkpointing,
        }

        def write(stream: IO[bytes]) -> None:
            torch.save(state, stream)

        begun, need = time.monotonic(), _bytes(state)
        require(self.scratch, need, f"the snapshot of step {history.step}")
        try:
            take(self.scratch, self.arm, history.step, write, best=history.best)
        except OSError as error:
            raise (full(self.scratch, need) if is_full(error) else error) from None
        self._saved = time.monotonic()
        self._saving = self._saved - begun

    def _changing(self) -> list[tuple[str, torch.nn.Parameter]]:
        """What learns, and the frozen weights that adapters are merged into."""
        frozen = [(name, one) for name, one in self.model.named_parameters() if name.endswith(".base_layer.weight")]
        return [*self._learning(), *(frozen if self.settings.lora_restarts else [])]

    def _restore(self, optimizer: torch.optim.Optimizer) -> History:
        found, damaged = newest_sound(self.scratch, self.arm, until=self.until)
        for words in damaged:
            self.emit(Note(text=words))
        if found is None:
            return History()
        state = torch.load(found.file, weights_only=True)
        with torch.no_grad():
            for name, parameter in self._changing():
                parameter.copy_(state["model"][name])
        for one in self._sliced:
            one.read()
        optimizer.load_state_dict(state["optimizer"])
        self.watch.restore(state["watch"])
        self.compute = state["compute"]  # another choice, or other micro-batches, would round otherwise
        self._at_once = state["at_once"]
        if state["checkpointing"]:
            self._recompute()
        history = History(**state["history"])
        self.emit(Note(text=f"Training goes on from step {history.step} of {self.settings.steps}."))
        return history


def _bytes(state: Any) -> int:
    """Of every tensor in it."""
    if isinstance(state, torch.Tensor):
        return int(state.numel()) * int(state.element_size())
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(_bytes(part) for part in parts)


def _groups(model: Any, settings: Train, sliced: Sequence[Sliced]) -> list[dict[str, Any]]:
    """Matrices decay; norms, embeddings and tensors that learn in part do not."""
    decay: list[torch.nn.Parameter] = []
    rest = [part for one in sliced for part in one.own]
    apart = {id(one.whole) for one in sliced}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in apart:
            (decay if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]


def take_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's state before its first step: taken later it would come to lie between what each step takes and frees."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for parameter in (one for group in optimizer.param_groups for one in group["params"]):
        if parameter not in optimizer.state:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {"step": step, **moments}


def is_out_of_memory(error: Exception) -> bool:
    """torch says it in its own class on a GPU and in words on a processor; oneDNN in other words."""
    words = ("not enough memory", "can't allocate memory", "could not create a memory object", "bad_alloc")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)


def autocast(device: torch.device, compute: torch.dtype) -> torch.autocast:
    """Matrix products in `compute`, while weights and the residual stay in fp32."""
    return torch.autocast(device.type, dtype=compute, enabled=compute != torch.float32)


@torch.no_grad()
def narrow_frozen(model: Any, compute: torch.dtype) -> None:
    """Keep linear layers and embeddings that do not learn in the type they compute in, where that changes no bit.

    What an embedding puts out stays in fp32: it is the beginning of the residual stream.
    """
    plain = (torch.nn.Linear, torch.nn.Embedding)
    narrowed = [module for module in model.modules() if type(module) in plain]  # a quantised layer is a kind of Linear
    others = [module for module in model.modules() if type(module) not in plain]
    elsewhere = {id(one) for module in others for one in module.parameters(recurse=False)}  # tied to a scaled embedding
    for module in narrowed:
        own = list(module.parameters(recurse=False))
        if any(p.requires_grad or id(p) in elsewhere or not torch.equal(p.to(compute).to(p.dtype), p) for p in own):
            continue
        module.to(compute)
        if type(module) is torch.nn.Embedding:
            module.register_forward_hook(lambda _, __, out: out.float())


def predictions(
    model: Any, batch: Batch, compute: torch.dtype, *, seen: Seen | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the head reads (targets, hidden), what follows (targets,), and the places in the row (targets,).

    The model must attend by piece; `seen` takes what some of its layers compare.
    """
    device, more = model.device, {} if seen is None else {"seen": seen}
    ids, (predictors, predicted) = batch.ids.to(device), targets_of(batch)
    with autocast(device, compute):
        hidden = backbone(model)(
            input_ids=ids, position_ids=batch.positions.to(device), pieces=batch.pieces, use_cache=False, **more
        ).last_hidden_state
    scale = getattr(model.config, "logits_scaling", 1.0)  # Granite's
    return hidden[0, predictors.to(device)] / scale, ids[0, predicted.to(device)], predictors


def cross_entropy(model: Any, rows: torch.Tensor, goals: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """Mean loss of `goals` given what the head reads, nats."""
    softcap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2's
    return linear_cross_entropy(rows, head_weight(model), goals, dtype=compute, softcap=softcap)


def batch_loss(model: Any, batch: Batch, compute: torch.dtype) -> torch.Tensor:
    """Mean loss of a batch outside a training, nats; its gradient must be asked for before the model attends anew."""
    with by_piece(model):
        rows, goals, _ = predictions(model, batch, compute)
    return cross_entropy(model, rows, goals, compute)


def backbone(model: Any) -> Any:
    """The model without its head, under PEFT's wrapper as well."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.model


def head_weight(model: Any) -> torch.Tensor:
    """The head's matrix (vocabulary, hidden)."""
    weight: torch.Tensor = model.get_output_embeddings().weight
    return weight
