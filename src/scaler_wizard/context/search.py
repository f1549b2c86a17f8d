"""Rotary settings found for one model by few evaluations: six known candidates, then three numbers of `searched`.

The three numbers are ln(beta_fast), ln(beta_slow) and the temperature: a few at random, then each where a smooth
surface through all scores so far says that less may be found (`surface.py`): single scores are partly luck. The search
can be stopped at any time and keeps all it tried.

What is minimised is driven by needles, as in LongRoPE2 (arXiv:2502.20082): loss on answers whose facts stand far away,
plus loss on text at the end of the long window, plus loss on short text; nats per token, on calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from scaler_wizard.context.frequencies import yarn_scale
from scaler_wizard.context.surface import surface
from scaler_wizard.record import Record

RANDOM_SHARE = 1 / 6
"""Part of the evaluations after the grid that looks everywhere."""
LOWEST = (math.log(1.5), math.log(0.1), 1.0)
"""Below a temperature of 1 only short windows gain: at the true length it was worst (docs/log.md)."""
ALIKE = np.array([1.2, 0.8, 0.12])
"""How far apart, in each of the three numbers, points have like scores."""
STEP = ALIKE / 3
"""Standard deviation of a step from the best point."""
POOL = 800
"""Points everywhere, and as many around the best, among which the most promising is looked for."""
CEILING = 0.5
"""Nats above the best score at which a score only says "bad": how bad would bend the surface where it matters."""


class Candidate(Record):
    """Rotary settings to try."""

    name: str
    """How people know them."""
    method: str
    """Row of the methods' table."""
    options: dict[str, float | tuple[float, ...]] = Field(default={})
    """Its options."""


class Score(Record):
    """What one candidate did on calibration data; nats per token, lower is better."""

    far: float
    """Loss on the answers of facts that stand far back."""
    long: float
    """Loss on text at the end of the long window."""
    short: float
    """Loss on short text."""
    found: float
    """Share of far facts whose every token is the first choice; told, not minimised."""

    @property
    def total(self) -> float:
        """What is minimised; infinite where a part is not a number."""
        total = self.far + self.long + self.short
        return total if math.isfinite(total) else math.inf


class Trial(Record):
    """One evaluation."""

    candidate: Candidate
    """What was tried."""
    score: Score
    """What came out."""
    final: bool
    """Whether this was the second look, on other text and at the true length, that decides."""
    seconds: float
    """Wall time since the search began."""


class Found(Record):
    """What a search found, and all it tried."""

    best: Trial
    """The candidate to use."""
    trials: tuple[Trial, ...]
    """Everything, in order."""
    stopped_by: str
    """evaluations, or minutes."""


Scorer = Callable[[Candidate], Score]
Clock = Callable[[], float]
Heard = Callable[[list[Trial]], None]
Refine = Callable[[Candidate], Candidate]


def grid(*, scaled: bool = False) -> tuple[Candidate, ...]:
    """The six that are tried first: the best fixed bet in front, since a search may end at any time.

    Only `searched` can carry on a base that is `scaled` already: there, three points of it.
    """
    if scaled:
        points = ({"beta_fast": 32.0, "beta_slow": 1.0}, {"beta_fast": 4.0, "beta_slow": 0.5}, {"temperature": 1.0})
        names = ("32 / 1", "4 / 0.5", "32 / 1 without temperature")
        return tuple(
            Candidate(name=name, method="searched", options=options)
            for name, options in zip(names, points, strict=True)
        )
    return (
        Candidate(name="yarn", method="yarn"),
        Candidate(name="yarn 4 / 0.5", method="searched", options={"beta_fast": 4.0, "beta_slow": 0.5}),
        Candidate(name="yarn without temperature", method="yarn", options={"attention_factor": 1.0}),
        Candidate(name="llama3", method="llama3"),
        Candidate(name="linear", method="linear"),
        Candidate(name="none", method="ntk", options={"alpha": 1.0}),
    )


def search(
    score: Scorer,
    decide: Scorer,
    *,
    factor: float,
    evaluations: int,
    finalists: int,
    seconds: float,
    clock: Clock,
    rng: np.random.Generator,
    heard: Heard = lambda trials: None,
    refine: Refine | None = None,
    known: Sequence[Candidate] = grid(),
) -> Found:
    """The best of `evaluations` candidates by `score`, the `known` ones first, then of the `finalists` by `decide`.

    `decide` looks at other text: the lowest of thirty scores is partly luck. The first known one (plain YaRN), the best
    known one, and what `refine` makes of the best so far are always finalists. Half of the `seconds` belong to each
    stage; the first candidate of each is always scored. `heard` is told all trials after each.
    """
    begun = clock()
    trials: list[Trial] = []
    first = _stage(
        score,
        _proposals(trials, known, factor, evaluations, rng),
        trials,
        begun,
        clock,
        seconds / 2,
        heard,
        final=False,
    )
    if not finalists:
        best = min(trials, key=lambda trial: trial.score.total)
        return Found(best=best, trials=tuple(trials), stopped_by="evaluations" if first else "minutes")
    last = _finalists(trials, finalists, known=len(known))
    if refine is not None:
        last.insert(1, refine(min(trials, key=lambda trial: trial.score.total).candidate))
    second = _stage(decide, iter(last), trials, begun, clock, seconds, heard, final=True)
    best = min((trial for trial in trials if trial.final), key=lambda trial: trial.score.total)
    return Found(best=best, trials=tuple(trials), stopped_by="evaluations" if first and second else "minutes")


def _stage(
    scorer: Scorer,
    candidates: Iterator[Candidate],
    trials: list[Trial],
    begun: float,
    clock: Clock,
    seconds: float,
    heard: Heard,
    *,
    final: bool,
) -> bool:
    """Score candidates until they or the seconds end, the first one in any case; whether all were scored."""
    for number, candidate in enumerate(candidates):
        if number and clock() - begun > seconds:
            return False
        trials.append(Trial(candidate=candidate, score=scorer(candidate), final=final, seconds=clock() - begun))
        heard(trials)
    return True


def _finalists(trials: Sequence[Trial], count: int, *, known: int) -> list[Candidate]:
    """The first one, the best of the `known` ones, and the best `count` of all."""
    ranked = sorted(trials, key=lambda trial: trial.score.total)
    best = next(trial for trial in ranked if trial in trials[:known])
    chosen = [trials[0], *(trial for trial in ranked[:count] if trial is not trials[0])]
    return [trial.candidate for trial in [*chosen, *([] if best in chosen else [best])]]


def _proposals(
    trials: Sequence[Trial], known: Sequence[Candidate], factor: float, evaluations: int, rng: np.random.Generator
) -> Iterator[Candidate]:
    """The known ones, points at random, then the most promising points by all that the trials say meanwhile."""
    yield from known[:evaluations]
    rest = max(0, evaluations - len(known))
    for number in range(rest):
        everywhere = number < rest * RANDOM_SHARE
        yield _candidate(_anywhere(factor, rng) if everywhere else _promising(trials, factor, rng))


Point = np.ndarray[Any, np.dtype[np.float64]]


def _promising(trials: Sequence[Trial], factor: float, rng: np.random.Generator) -> Point:
    """Where the surface, less its uncertainty, is lowest."""
    tried = [trial for trial in trials if trial.candidate.method in ("searched", "yarn")]
    scores = np.array([trial.score.total for trial in tried])
    if not np.isfinite(scores).any():
        return _anywhere(factor, rng)
    points = np.array([_point(trial.candidate, factor) for trial in tried])
    through = surface(points, np.minimum(scores, scores.min() + CEILING), lengths=ALIKE)
    best = points[int(scores.argmin())]
    pool = [_anywhere(factor, rng) for _ in range(POOL)]
    pool += [_inside(best + rng.normal(size=3) * STEP, factor) for _ in range(POOL)]
    expected, deviation = through(np.array(pool))
    return pool[int((expected - deviation).argmin())]


def _anywhere(factor: float, rng: np.random.Generator) -> Point:
    low = np.array([math.log(2), math.log(0.2), 1.0])
    high = np.array([math.log(48), math.log(4), 1 + 2 * (yarn_scale(factor) - 1)])
    return _inside(rng.uniform(low, high), factor)


def _inside(point: Point, factor: float) -> Point:
    """Within what makes sense: fast above slow, and a temperature that no paper exceeds."""
    fast, slow, scale = np.clip(point, LOWEST, [math.log(256), math.log(16), 1 + 3 * (yarn_scale(factor) - 1)])
    return np.array([max(fast, slow + 0.1), slow, scale])


def _point(candidate: Candidate, factor: float) -> Point:
    """The three numbers of a candidate that has them."""

    def given(name: str, otherwise: float) -> float:
        value = candidate.options.get(name, otherwise)
        assert isinstance(value, float | int), name
        return float(value)

    scale = given("temperature", given("attention_factor", yarn_scale(factor)))
    return np.array([math.log(given("beta_fast", 32.0)), math.log(given("beta_slow", 1.0)), scale])


def _candidate(point: Point) -> Candidate:
    fast, slow, scale = (float(value) for value in point)
    options = {
        "beta_fast": round(math.exp(fast), 4),
        "beta_slow": round(math.exp(slow), 4),
        "temperature": round(scale, 4),
    }
    name = f"{options['beta_fast']:.3g} / {options['beta_slow']:.3g}, t {scale:.3f}"
    return Candidate(name=name, method="searched", options=options)
