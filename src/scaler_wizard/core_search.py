"""What stands between the stacked adapters of a merge, learnt from calibration text and from the adapters themselves.

Adapters B_i A_i of one base, side by side: B = [B_1 ... B_n], A = [A_1; ...; A_n]. A merged matrix is base + B C A with
a square C, its side the sum of the ranks. A weight for every model is a C with equal numbers along each model's part
of the diagonal; `direction` learns the whole diagonal, a weight for every rank-one part; `core` learns all of C, so
that what one adapter reads may be written as another writes it (for one adapter: LoRA-XS, arXiv:2405.17604). Nothing
outside the span of the adapters can be learnt, and the result is an adapter again.

On each text the adapter that reads it best is the teacher: the loss is the divergence from what the teacher says, and a
part of the text's own. One window of four is left out of it and says which step was best. The first step that is looked
at is the start, so the result is no worse there. Holds the base in memory once, and the teachers' last hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scaler_wizard.data import Tokens
from scaler_wizard.distill import Hidden, distilled_loss
from scaler_wizard.evals.perplexity import nll_of
from scaler_wizard.judging import SMALLEST_GAIN, kept_score
from scaler_wizard.merge.adapters import Adapter, Factors, Fused, factors, modules_of
from scaler_wizard.weights.evaluate import Source

if TYPE_CHECKING:
    import numpy.typing as npt

By = Literal["direction", "core"]
RATE = {"direction": 0.1, "core": 0.01}
"""Adam's peak step."""
WARM_UP, BETAS = 0.15, (0.9, 0.95)
TAUGHT = 0.8
"""Share of the loss that is the divergence from the teacher; the rest is the text's own."""
CHECKED = 4
"""One window of so many is left out of the loss, to say which step was best."""
PAUSE = 8
"""Steps from one look at these windows to the next."""


@dataclass(frozen=True)
class Learnt:
    """What was learnt, and what it keeps of each teacher's gain on the windows that nothing learnt from."""

    fused: Fused
    """What the merged adapter adds."""
    trace: Mapping[int, dict[str, float]]
    """Kept share by text, at each step that was looked at; step 0 is the start."""
    step: int
    """Which of them was best."""


class CoredLinear(torch.nn.Module):  # type: ignore[misc]
    """A linear layer with stacked adapters: y = W x + B C A x; the core is C (rank, rank), or its diagonal (rank,)."""

    def __init__(self, linear: torch.nn.Linear, left: torch.Tensor, right: torch.Tensor, core: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.core = linear, torch.nn.Parameter(core)
        self.register_buffer("left", left.to(linear.weight.dtype))  # (rows, rank)
        self.register_buffer("right", right.to(linear.weight.dtype))  # (rank, columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., columns) -> (..., rows)."""
        inner, core = x @ self.right.T, self.core.to(x.dtype)
        mixed = inner * core if core.dim() == 1 else inner @ core.T
        found: torch.Tensor = self.linear(x) + mixed @ self.left.T
        return found


@dataclass(frozen=True)
class Lesson:
    """One text: its windows (count, length), and what its teacher makes of them."""

    name: str
    ids: torch.Tensor
    states: torch.Tensor
    """The teacher's last hidden states (count, length - 1, hidden)."""
    base: npt.NDArray[np.float64]
    """Loss of the base for each window, nats per token."""
    teacher: npt.NDArray[np.float64]

    @property
    def checked(self) -> list[int]:
        """Windows that nothing is learnt from."""
        return list(range(0, len(self.ids), CHECKED))

    @property
    def read(self) -> list[int]:
        """All others."""
        return [number for number in range(len(self.ids)) if number % CHECKED]

    @property
    def gain(self) -> float:
        """What the teacher gained over the base, nats per token."""
        return max(float((self.base - self.teacher).mean()), SMALLEST_GAIN)

    def kept(self, losses: npt.NDArray[np.float64]) -> float:
        """Share of the gain that these losses of the checked windows keep."""
        base, teacher = self.base[self.checked].mean(), self.teacher[self.checked].mean()
        return float((base - losses.mean()) / max(base - teacher, SMALLEST_GAIN))


class Stack:
    """The base with every adapter of the merge beside each other, and a core between them in each layer."""

    def __init__(self, model: Any, adapters: Sequence[Adapter], by: By) -> None:
        self.model, self.count, self.rate = model.requires_grad_(False), len(adapters), RATE[by]
        self.parts: dict[str, list[tuple[int, Factors]]] = dict(_parts(adapters))
        self._cores: dict[str, CoredLinear] = {}
        for module, parts in self.parts.items():
            left = np.concatenate([part.left for _, part in parts], axis=1)
            right = np.concatenate([part.right for _, part in parts], axis=0)
            core = torch.zeros((left.shape[1],) * (1 if by == "direction" else 2))
            layer = CoredLinear(model.get_submodule(module), torch.from_numpy(left), torch.from_numpy(right), core)
            model.set_submodule(module, layer.to(model.device))
            self._cores[module] = layer

    @property
    def cores(self) -> list[torch.nn.Parameter]:
        """What is learnt."""
        return [layer.core for layer in self._cores.values()]

    def weigh(self, weights: Callable[[str, int], float]) -> None:
        """A weight for every model, by module and number."""
        for module, parts in self.parts.items():
            diagonal = np.concatenate([np.full(part.rank, weights(module, number)) for number, part in parts])
            core, found = self._cores[module].core, torch.from_numpy(diagonal)
            core.data.copy_(found if core.dim() == 1 else torch.diag(found))

    def alone(self, chosen: int | None) -> None:
        """One adapter as it is, or the base."""
        self.weigh(lambda module, number: float(number == chosen))

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states (count, length - 1, hidden)."""
        found: torch.Tensor = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        return found

    @torch.no_grad()
    def losses(self, ids: torch.Tensor) -> npt.NDArray[np.float64]:
        """Of each window, nats per token."""
        return np.array([_window_loss(self.model, self.hidden(row[None]), row) for row in ids])

    def fused(self) -> Fused:
        """B C and A: what the merged adapter adds."""
        found = {}
        for module, parts in self.parts.items():
            core = self._cores[module].core.detach().double().cpu().numpy()
            left = np.concatenate([part.left for _, part in parts], axis=1)
            right = np.concatenate([part.right for _, part in parts], axis=0)
            found[module] = Factors(left * core if core.ndim == 1 else left @ core, right)
        return found


def core_search(
    stack: Stack,
    texts: Mapping[str, Tokens],
    start: Callable[[str, int], float],
    *,
    steps: int,
    go_on: Callable[[], bool] = lambda: True,
) -> Learnt:
    """Learn the cores; texts are windows (count, length) by name, `start` gives the weight of each module and adapter
    that the search begins with. Stops after `steps`, or when `go_on`, asked before each, says no; the best of the steps
    that were looked at is taken."""
    lessons = [_lesson(stack, name, ids) for name, ids in texts.items()]
    stack.weigh(start)
    watch = _Watch(stack, lessons)
    optimiser = torch.optim.Adam(stack.cores, lr=stack.rate, betas=BETAS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, stack.rate, total_steps=max(steps, 2), pct_start=WARM_UP)
    for step in range(steps):
        if not go_on():
            break
        _loss(stack, lessons, step).backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if (step + 1) % PAUSE == 0 or step + 1 == steps:
            watch.look(step + 1)
    return watch.best()


class _Watch:
    """Which step was best on the windows that nothing learns from."""

    def __init__(self, stack: Stack, lessons: Sequence[Lesson]) -> None:
        self._stack, self._lessons = stack, lessons
        self._best, self._step = -np.inf, 0
        self.trace: dict[int, dict[str, float]] = {}
        self.look(0)

    def look(self, step: int) -> None:
        """Read them, and remember the cores where they were read best."""
        kept = {one.name: one.kept(self._stack.losses(one.ids[one.checked])) for one in self._lessons}
        self.trace[step] = kept
        if kept_score(kept) > self._best:
            self._best, self._step = kept_score(kept), step
            self._cores = [core.detach().clone() for core in self._stack.cores]

    def best(self) -> Learnt:
        """Put the best cores back."""
        for core, found in zip(self._stack.cores, self._cores, strict=True):
            core.data.copy_(found)
        return Learnt(self._stack.fused(), self.trace, self._step)


def _parts(adapters: Sequence[Adapter]) -> Iterator[tuple[str, list[tuple[int, Factors]]]]:
    """By module, what each adapter adds to it."""
    source = Source(0)
    try:
        for module in modules_of(adapters):
            used = [(number, one) for number, one in enumerate(adapters) if module in one.products]
            yield module, [(number, factors(one, module, source)) for number, one in used]
    finally:
        source.close()


def _lesson(stack: Stack, name: str, ids: Tokens) -> Lesson:
    """What the base and the best adapter make of a text; the one that reads the checked windows best is the teacher."""
    rows = torch.from_numpy(ids.astype(np.int64)).to(stack.model.device)
    found = []
    for teacher in range(stack.count):
        stack.alone(teacher)
        found.append(stack.losses(rows[::CHECKED]).mean())
    stack.alone(int(np.argmin(found)))
    with torch.no_grad():
        states = torch.cat([stack.hidden(row[None]) for row in rows])
        losses = [_window_loss(stack.model, own[None], row) for own, row in zip(states, rows, strict=True)]
    stack.alone(None)
    return Lesson(name, rows, states, stack.losses(rows), np.array(losses))


def _window_loss(model: Any, hidden: torch.Tensor, row: torch.Tensor) -> float:
    return float(nll_of(model, hidden.flatten(0, 1), row[1:]).mean())


def _loss(stack: Stack, lessons: Sequence[Lesson], step: int) -> torch.Tensor:
    """Mean over texts of (loss / gain), of each text's next window."""
    picks = [one.read[step % len(one.read)] for one in lessons]
    hidden = stack.hidden(torch.stack([one.ids[pick] for one, pick in zip(lessons, picks, strict=True)]))
    head = stack.model.lm_head.weight
    parts = [
        distilled_loss(own, head, one.ids[pick, 1:], Hidden(one.states[pick], head), weight=TAUGHT) / one.gain
        for own, one, pick in zip(hidden, lessons, picks, strict=True)
    ]
    return torch.stack(parts).mean()
