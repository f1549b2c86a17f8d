"""Choose merge weights on calibration text by few measured tries, merge with the best, judge it on held-out text.

    merge:
      method: task_arithmetic
      base: path/to/base
      models: [{model: path/to/code, weight: 0.5}, {model: path/to/prose, weight: 0.5}]
    search:
      texts: {code: path/to/code.txt, prose: kjv}   # one for each skill that the merge shall keep
      tries: 24

Coordinate search: one weight at a time is made larger or smaller, and what is better is kept; the best so far is known
at any time. What counts is the worst kept share of a skill: what the merged model has of the best parent's gain over
the base. Held-out text is read once, at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scaler_wizard.data import Tokens
from scaler_wizard.errors import ScalerError
from scaler_wizard.judging import Judgement, domain_windows, judge, losses_of, losses_of_folder
from scaler_wizard.merge import METHODS, Method, WeightedModel
from scaler_wizard.merge.recipe import read_merge
from scaler_wizard.merging import Merged, Prepared, Tell, merge_models, prepare
from scaler_wizard.recipe import load_yaml
from scaler_wizard.record import Record, to_json
from scaler_wizard.weights import Program
from scaler_wizard.weights.evaluate import Source, evaluate, from_float, to_float

Floats = npt.NDArray[np.float64]
JUDGEMENT = "judgement.json"
STEPS = (1.5, 1.2)
"""By how much a weight is made larger or smaller: first coarse, then fine."""
SMALLEST_GAIN = 0.05
"""Nats per token: where the best parent gained less, shares are taken of this, since almost nothing can be lost."""
MEAN_SHARE = 0.1
"""What the mean kept share counts beside the worst."""


class Search(Record):
    """How merge weights are chosen."""

    texts: Annotated[dict[str, str], Field(min_length=1)]
    """Text for each skill that the merge shall keep: `kjv`, a file or a folder, by a name."""
    tries: Annotated[int, Field(ge=1, le=1000)] = 24
    """Merges that are measured at most."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Time after which the best so far is taken."""
    windows: Annotated[int, Field(ge=4, le=1000)] = 8
    """Calibration windows of each text; twice as many held-out ones judge the result."""
    length: Annotated[int, Field(ge=16, le=8192)] = 256
    """Tokens of a window."""


class Try(Record):
    """One merge that was measured."""

    weights: dict[str, float]
    """Every weight that was searched."""
    kept: dict[str, float]
    """Share of the best parent's gain over the base that is kept, by text."""
    score: float
    """The worst kept share and a tenth of the mean."""


class Found(Record):
    """What a search found."""

    tries: tuple[Try, ...]
    """Every merge that was measured, in order."""
    best: int
    """Which of them was taken."""
    judgement: Judgement
    """The taken one on held-out text."""


@dataclass(frozen=True)
class Knob:
    """One number of a recipe that is searched."""

    name: str
    model: int | None
    """Which model's weight; None for a setting of the method."""

    def get(self, method: Method) -> float:
        """Its value."""
        return float(method.models[self.model].weight if self.model is not None else getattr(method, self.name))

    def set(self, method: Method, value: float) -> Method:
        """The method with another value."""
        block = method.model_dump(mode="json")
        if self.model is None:
            block[self.name] = value
        else:
            block["models"][self.model]["weight"] = value
        return read_merge(block, "search", METHODS)


def knobs(method: Method) -> list[Knob]:
    """The numbers that a search turns: each model's weight, and `scale` or `t` where the method has one."""
    found = [
        Knob(model.model, number)
        for number, model in enumerate(method.models)
        if isinstance(model, WeightedModel) and isinstance(model.weight, float | int)
    ]
    return found + [Knob(name, None) for name in ("scale", "t") if isinstance(getattr(method, name, None), float | int)]


def load_search(path: Path) -> Search | None:
    """The `search:` block of a recipe file; None where it has none."""
    data = load_yaml(path)
    return Search.read(data["search"], f"{path.name}: search") if isinstance(data.get("search"), dict) else None


# -- searching ------------------------------------------------------------------------------------------------------

Score = Callable[[Method], Try]


def coordinate_search(
    method: Method, score: Score, *, tries: int, expired: Callable[[], bool] = lambda: False
) -> tuple[list[tuple[Method, Try]], int]:
    """Every merge that was tried and which one is best; the recipe's own weights are the first."""
    seen = [(method, score(method))]
    for candidate in _candidates(lambda: seen[_best(seen)][0]):
        if len(seen) >= tries or expired():
            break
        seen.append((candidate, score(candidate)))
    return seen, _best(seen)


def _best(seen: list[tuple[Method, Try]]) -> int:
    """The first of the best."""
    return max(range(len(seen)), key=lambda number: seen[number][1].score)


def _candidates(current: Callable[[], Method]) -> Iterator[Method]:
    """Neighbours of the best so far, one knob at a time; a direction that helped is followed."""
    for step in STEPS:
        while True:
            before = current()
            for knob in knobs(before):
                for factor in (step, 1 / step):
                    yield from _along(knob, factor, current)
            if current() == before:
                break


def _along(knob: Knob, factor: float, current: Callable[[], Method]) -> Iterator[Method]:
    while True:
        start = current()
        value = round(knob.get(start) * factor, 4)
        if value == knob.get(start) or not _allowed(knob, start, value):
            return
        yield knob.set(start, value)
        if current() == start:
            return


def _allowed(knob: Knob, method: Method, value: float) -> bool:
    try:
        knob.set(method, value)
    except ScalerError:
        return False  # outside the setting's range
    return True


# -- measuring ------------------------------------------------------------------------------------------------------


class Bench:
    """A model in memory that takes every merge's weights in turn, with the calibration text and the parents' losses."""

    def __init__(self, ready: Prepared, texts: Mapping[str, Tokens]) -> None:
        from scaler_wizard.models import load_model

        self._texts = texts
        self.parents: dict[str, dict[str, Floats]] = {}
        first = next(iter(ready.parents.values()))
        self._model = load_model(first.folder, dtype="float32")
        for name, one in ready.parents.items():
            self._put(Program(dict(one.view.config), one.tensors))
            self.parents[name] = losses_of(self._model, texts)
        self._base = ready.method.base

    def score(self, method: Method) -> Try:
        """Merge in memory, measure, compare."""
        self._put(prepare(method).program)
        found = losses_of(self._model, self._texts)
        kept = {name: self._kept(name, float(losses.mean())) for name, losses in found.items()}
        weights = {knob.name: knob.get(method) for knob in knobs(method)}
        shares = list(kept.values())
        return Try(weights=weights, kept=kept, score=min(shares) + MEAN_SHARE * sum(shares) / len(shares))

    def _kept(self, text: str, loss: float) -> float:
        """1: as good as the best parent; 0: as good as the base, or as the worst parent where there is no base."""
        losses = {name: float(found[text].mean()) for name, found in self.parents.items()}
        best = min(losses.values())
        start = losses[self._base] if self._base is not None else max(losses.values())
        return (start - loss) / max(start - best, SMALLEST_GAIN)

    def _put(self, program: Program) -> None:
        """The program's weights, rounded as they would be written, into the model."""
        import torch

        source = Source(program.seed)
        parameters = dict(self._model.named_parameters())
        try:
            for name, tensor in program.tensors.items():
                if name not in parameters:
                    raise ScalerError(f"{name}: the loaded model has no such tensor", "search works on dense models")
                values = evaluate(tensor, 0, tensor.shape[0], source).reshape(-1)
                stored = to_float(from_float(values, tensor.dtype), tensor.dtype).reshape(tensor.shape)
                with torch.no_grad():
                    parameters[name].copy_(torch.from_numpy(stored.copy()))
        finally:
            source.close()


def search_and_merge(
    recipe: Path | Method, search: Search, out: Path, *, force: bool = False, tell: Tell = lambda doing, share: None
) -> tuple[Merged, Found]:
    """Choose the weights, merge, judge on held-out text; the judgement is written beside the model."""
    from scaler_wizard.models import load_tokenizer

    ready = prepare(recipe)
    if not knobs(ready.method):
        raise ScalerError("search: this merge has no single weights to turn", "choose task_arithmetic, or leave it out")
    tokenizer = load_tokenizer(next(iter(ready.parents.values())).folder)
    calibration = domain_windows(search.texts, tokenizer, "calibration", length=search.length, count=search.windows)
    heldout = domain_windows(search.texts, tokenizer, "heldout", length=search.length, count=2 * search.windows)
    begun = time.monotonic()
    bench = Bench(ready, calibration)
    done = 0

    def score(method: Method) -> Try:
        nonlocal done
        tell("trying weights", done / search.tries)
        done += 1
        return bench.score(method)

    seen, best = coordinate_search(
        ready.method,
        score,
        tries=search.tries,
        expired=lambda: search.seconds is not None and time.monotonic() - begun > search.seconds,
    )
    merged = merge_models(seen[best][0], out, force=force, tell=tell)
    tell("judging on held-out text", 0.0)
    final = Bench(ready, heldout)
    parents = {name: found for name, found in final.parents.items() if name != ready.method.base}
    judgement = judge(losses_of_folder(out, heldout), parents)
    found = Found(tries=tuple(one for _, one in seen), best=best, judgement=judgement)
    (out / JUDGEMENT).write_text(to_json(found) + "\n", encoding="utf-8")
    return merged, found
