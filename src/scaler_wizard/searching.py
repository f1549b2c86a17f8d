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

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.architecture import Blueprint
from scaler_wizard.beside import refuse_place
from scaler_wizard.errors import ScalerError
from scaler_wizard.judging import SMALLEST_GAIN, Answers, Exam, Judgement, domain_windows, judge, kept_score
from scaler_wizard.merge import Method, TaskArithmetic, merge_program
from scaler_wizard.merge.knobs import Knob, knobs, refuse_search, told
from scaler_wizard.merge.recipe import WeightSearch
from scaler_wizard.merging import MERGE, Merged, Prepared, Tell, merge_models, prepare
from scaler_wizard.record import Record, to_json
from scaler_wizard.weights import Program, stacks_of, write
from scaler_wizard.weights.evaluate import Source, evaluate, from_float, to_float

JUDGEMENT = "judgement.json"
STEPS = (1.5, 1.2)
"""By how much a weight is made larger or smaller: first coarse, then fine."""
QUESTIONS = 96
"""Questions of two hops."""


class Try(Record):
    """One merge that was measured."""

    weights: dict[str, float]
    """Every weight that was searched; the mean of each model's, where every matrix has its own; none of a core."""
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
    """A model in memory that takes every merge's weights in turn, and what the parents answer to the same exam.

    Computes in `dtype`: a search may take whatever is fast here, since all its candidates are rounded alike. `known`
    are answers of parents that were asked before.
    """

    def __init__(
        self, ready: Prepared, exam: Exam, *, dtype: str = "float32", known: Mapping[str, Answers] | None = None
    ) -> None:
        self.exam = exam
        self.parents: dict[str, Answers] = dict(known or {})
        self._ready = ready
        self._base = ready.method.base
        self._dtype = dtype
        self._config: dict[str, Any] = {}
        self._model: Any = None
        for name, one in ready.parents.items():
            if name not in self.parents:
                view = one.view
                self._put(Program(dict(view.config), one.tensors, seed=ready.method.seed, stacks=stacks_of(view)))
                self.parents[name] = exam.ask(self._model)

    def like(self, ready: Prepared) -> Bench:
        """The same exam and the same parents' answers for another merge of these models."""
        other = copy(self)
        other._ready = ready
        return other

    def score(self, method: Method) -> Try:
        """Merge in memory, measure, compare."""
        found = self.ask(method)
        kept = {name: self._kept(name, float(losses.mean())) for name, losses in found.losses.items()}
        return Try(weights=told(method), kept=kept, score=kept_score(kept))

    def ask(self, method: Method) -> Answers:
        """What the merged model answers."""
        self._put(merge_program(method, self._ready.parents))
        return self.exam.ask(self._model)

    def judged(self, merged: Answers) -> Judgement:
        """Against every parent but the base that only gives the task vectors."""
        return judge(
            merged,
            {name: found for name, found in self.parents.items() if name != self._base},
            base=self.parents[self._base] if self._base is not None else None,
            chances=self.exam.chances,
        )

    def gain(self, text: str) -> float:
        """What the best parent gained on a text, nats per token, SMALLEST_GAIN at least."""
        start, best = self._range(text)
        return max(start - best, SMALLEST_GAIN)

    def rest(self) -> None:
        """Free the model until the next merge needs one."""
        self._config, self._model = {}, None

    def _kept(self, text: str, loss: float) -> float:
        """1: as good as the best parent; 0: as good as the base, or as the worst parent where there is no base."""
        return (self._range(text)[0] - loss) / self.gain(text)

    def _range(self, text: str) -> tuple[float, float]:
        """Losses of the base, or of the worst parent where there is none, and of the best parent."""
        losses = {name: float(found.losses[text].mean()) for name, found in self.parents.items()}
        start = losses[self._base] if self._base is not None else max(losses.values())
        return start, min(losses.values())

    def _put(self, program: Program) -> None:
        """The program's weights, rounded as they would be written, into the model."""
        import torch

        if Blueprint(program.config).experts is not None:
            self._config, self._model = (
                {},
                _loaded(program, self._dtype),
            )  # experts stand side by side in files, stacked in memory
            return
        self._shape(dict(program.config))
        source = Source(program.seed)
        parameters = dict(self._model.named_parameters())
        try:
            for name, tensor in program.tensors.items():
                values = evaluate(tensor, 0, tensor.shape[0], source).reshape(-1)
                stored = to_float(from_float(values, tensor.dtype), tensor.dtype).reshape(tensor.shape)
                with torch.no_grad():
                    parameters[name].copy_(torch.from_numpy(stored.copy()))
        finally:
            source.close()

    def _shape(self, config: dict[str, Any]) -> None:
        """A model of this configuration: parents may differ from the merged model in window and rotary settings."""
        from scaler_wizard.models import empty_model

        if config != self._config:
            self._model = None  # free the one before first
            self._model, self._config = empty_model(config, dtype=self._dtype), config


def _loaded(program: Program, dtype: str) -> Any:
    """The program's model by way of a folder."""
    from scaler_wizard.models import load_model

    with tempfile.TemporaryDirectory() as folder:
        write(program, Path(folder), durable=False, hash=False)
        return load_model(Path(folder), dtype=dtype)


@dataclass(frozen=True)
class Exams:
    """The texts of a search, and tokens of other documents to judge by."""

    calibration: Exam
    heldout: Exam


def exams(search: WeightSearch, tokenizer: Any, *, seed: int = 0) -> Exams:
    """Calibration text alone for the search; held-out text and questions for the judgement."""
    cut: dict[str, Any] = {"length": search.length}
    calibration = domain_windows(search.texts, tokenizer, "calibration", count=search.windows, **cut)
    heldout = domain_windows(search.texts, tokenizer, "heldout", count=2 * search.windows, **cut)
    return Exams(Exam(calibration, tokenizer), Exam(heldout, tokenizer, QUESTIONS, seed))


def choose(
    ready: Prepared, search: WeightSearch, exam: Exam, tell: Tell = lambda doing, share: None
) -> tuple[list[tuple[Method, Try]], int]:
    """Every merge that was tried on calibration text, and which is best."""
    from scaler_wizard.models import best_dtype

    budget = _Budget(search, tell)
    bench = Bench(ready, exam, dtype=best_dtype()[0])

    def score(method: Method) -> Try:
        budget.go_on()
        return bench.score(method)

    if search.by == "model":
        return coordinate_search(ready.method, score, tries=search.tries, expired=budget.expired)
    seen = [(ready.method, bench.score(ready.method))]
    found = _by_matrix(ready, exam, bench, search.tries, budget.go_on)
    seen.append((found, bench.score(found)))
    return seen, _best(seen)


class _Budget:
    """How many tries and how much time are left."""

    def __init__(self, search: WeightSearch, tell: Tell) -> None:
        self._search, self._tell = search, tell
        self._begun, self._done = time.monotonic(), 0

    def expired(self) -> bool:
        """Whether the time is up."""
        return self._search.seconds is not None and time.monotonic() - self._begun > self._search.seconds

    def go_on(self) -> bool:
        """Tell of one try more; whether there is time for it."""
        self._tell("trying weights", self._done / self._search.tries)
        self._done += 1
        return not self.expired()


def _by_matrix(ready: Prepared, exam: Exam, bench: Bench, steps: int, go_on: Callable[[], bool]) -> Method:
    from scaler_wizard.gradient_search import gradient_search

    assert isinstance(ready.method, TaskArithmetic), "refuse_search has looked"
    gains = {name: bench.gain(name) for name in exam.texts}
    bench.rest()
    return gradient_search(ready.method, ready.parents, exam.texts, gains, steps=steps, go_on=go_on)


def search_and_merge(
    recipe: Path | Method,
    search: WeightSearch,
    out: Path,
    *,
    force: bool = False,
    tell: Tell = lambda doing, share: None,
) -> tuple[Merged, Found]:
    """Choose the weights, merge, judge on held-out text; the judgement is written beside the model."""
    from scaler_wizard.models import load_tokenizer

    refuse_place(out, MERGE, force=force)  # before anything long
    ready = prepare(recipe)
    refuse_search(ready.method, search)
    asked = exams(search, load_tokenizer(next(iter(ready.parents.values())).folder), seed=ready.method.seed)
    if search.by in ("direction", "core") and search.tries > 1:
        merged, tries, best = _by_core(ready, search, asked.calibration, out, force, tell)
    else:
        seen, best = choose(ready, search, asked.calibration, tell)
        merged, tries = merge_models(seen[best][0], out, force=force, tell=tell), [one for _, one in seen]
    tell("judging on held-out text", 0.0)
    judgement = Bench(ready, asked.heldout).judged(asked.heldout.ask_folder(out))
    found = Found(tries=tuple(tries), best=best, judgement=judgement)
    (out / JUDGEMENT).write_text(to_json(found) + "\n", encoding="utf-8")
    return merged, found


def _by_core(
    ready: Prepared, search: WeightSearch, exam: Exam, out: Path, force: bool, tell: Tell
) -> tuple[Merged, list[Try], int]:
    """The merge of the adapter that was learnt, every look at the windows that nothing learnt from, and the best."""
    from scaler_wizard.core_merge import ADAPTER, learn_core, learnt_merge
    from scaler_wizard.models import best_dtype

    assert isinstance(ready.method, TaskArithmetic) and search.by in ("direction", "core"), "refuse_search has looked"
    budget = _Budget(search, tell)
    how: Any = {"by": search.by, "steps": search.tries, "dtype": best_dtype()[0], "go_on": budget.go_on}
    learnt = learn_core(ready.method, ready.parents, exam.texts, **how)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        method, known = learnt_merge(ready.method, ready.parents, learnt, search.by, place, out)
        merged = merge_models(method, out, force=force, tell=tell, known=known, inside={ADAPTER: place})
    looks = list(learnt.trace.items())
    tries = [Try(weights={}, kept=kept, score=kept_score(kept)) for _, kept in looks]
    return merged, tries, [step for step, _ in looks].index(learnt.step)
