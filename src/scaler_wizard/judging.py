"""Was the merge worth it? What it reads and answers against every parent, domain by domain, and one score.

The score (`emergentVibeScore`, 0 to 1) is the mean over domains. A kind of text has two measures, the perplexity and
the share of tokens that were the likeliest; a set of questions has one, the share answered right. Each measure gives
min(1, merged / best parent), turned so that more is better, and what it gains above the best parent is added only where
the gain is statistically significant. A merge as good as the best parent everywhere has 1; one that lost everything 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scaler_wizard.data import Tokens, encode, load_corpus, windows
from scaler_wizard.errors import ScalerError
from scaler_wizard.gate import LONGEST, fit
from scaler_wizard.intervals import RESAMPLES, paired_gain, wilson
from scaler_wizard.metrics import Interval
from scaler_wizard.record import Record

Floats = npt.NDArray[np.float64]
FEWEST_WINDOWS = 4
SMALLEST_GAIN = 0.05
"""Nats per token: where the best parent gained less, shares are taken of this, since almost nothing can be lost."""
MEAN_SHARE = 0.1
"""What the mean kept share counts beside the worst, where merges are compared."""
HOPS = "two hops"
"""Name of the questions that need two facts at once."""


class Measure(Record):
    """One figure of the merged model and of its parents, on the same text or questions."""

    what: Literal["loss", "accuracy"]
    """Nats per token, or the share of tokens or questions that were right."""
    merged: float
    """Of the merged model."""
    parents: dict[str, float]
    """Of each parent."""
    best: str
    """The best parent here."""
    gain: Interval
    """By how much the merged model is better than the best parent: nats per token, or share."""
    kept: float
    """min(1, merged / best parent); of perplexities, the best parent's over the merged model's."""
    credit: float
    """What the ratio is above 1, where the gain is significant; else 0."""

    def says(self) -> str:
        """The same in a few words."""
        figures = f"{self.gain.value:+.3f} ({self.gain.low:+.3f} to {self.gain.high:+.3f}) against {self.best}"
        return f"{self.what} {self.merged:.3f}, {figures}"


class Domain(Record):
    """One kind of text, or one set of questions."""

    name: str
    """Which."""
    measures: tuple[Measure, ...]
    """What was measured on it."""
    interference: float | None = None
    """Share of the best parent's gain over the base that the merge lost; null where there is no base."""
    chance: float | None = None
    """Accuracy of guessing, for questions."""
    counts: bool = True
    """False where even the best parent only guesses: then nothing can be lost, and the score leaves it out."""

    @property
    def loses(self) -> bool:
        """Whether the merge is significantly worse than the best parent by some measure."""
        return self.counts and any(one.gain.high < 0 for one in self.measures)

    @property
    def wins(self) -> bool:
        """Whether it is significantly better by some measure, and worse by none."""
        return self.counts and not self.loses and any(one.gain.low > 0 for one in self.measures)


class Judgement(Record):
    """What a merge is worth."""

    domains: tuple[Domain, ...]
    """Every kind of text, and the questions."""
    vibe: Interval
    """emergentVibeScore with its 95 % bootstrap interval."""
    sentence: Annotated[str, Field(max_length=LONGEST)]
    """The same in words."""

    @property
    def losing(self) -> tuple[Domain, ...]:
        """Where the merge loses to its best parent."""
        return tuple(one for one in self.domains if one.loses)

    def rows(self) -> list[tuple[str, str]]:
        """The same for a table."""
        found = []
        for one in self.domains:
            rest = "" if one.interference is None else f"; interference {one.interference:.0%}"
            found += [(one.name, measure.says() + rest) for measure in one.measures[:1]]
            found += [(one.name, measure.says()) for measure in one.measures[1:]]
            if not one.counts:
                found.append((one.name, "does not count: even the best parent only guesses"))
        vibe = f"{self.vibe.value:.3f} ({self.vibe.low:.3f} to {self.vibe.high:.3f})"
        return [*found, ("emergent vibe score", vibe), ("verdict", self.sentence)]


@dataclass(frozen=True)
class Answers:
    """Everything that one model was asked, so that models can be compared pair by pair."""

    losses: Mapping[str, Floats]
    """Mean loss of each window, nats per token, by kind of text."""
    right: Mapping[str, Floats]
    """Share of each window's tokens that were the likeliest; 1 or 0 for each question."""


@dataclass(frozen=True)
class _Paired:
    """One measure of two models, unit by unit; what is larger is better."""

    measure: Measure
    merged: Floats
    best: Floats

    def scores(self, picks: npt.NDArray[np.int64]) -> Floats:
        """kept + credit for resampled units (resamples, units); which gains are significant is decided once."""
        ratios = _ratio(self.measure.what, self.merged[picks].mean(axis=1), self.best[picks].mean(axis=1))
        return ratios if self.measure.credit else np.minimum(1.0, ratios)


def judge(
    merged: Answers,
    parents: Mapping[str, Answers],
    *,
    base: Answers | None = None,
    chances: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Judgement:
    """Compare the answers of models to the same texts and questions; `chances` names the questions among them."""
    rng = np.random.default_rng(seed)
    domains, scores = [], []
    for name in merged.right:
        chance = (chances or {}).get(name)
        pairs = list(_pairs(name, merged, parents, seed))
        domain = Domain(
            name=name,
            measures=tuple(pair.measure for pair in pairs),
            interference=_interference(name, pairs, base),
            chance=chance,
            counts=chance is None or _knows(pairs[0].best, chance),
        )
        domains.append(domain)
        if domain.counts:
            units = len(pairs[0].merged)
            picks = rng.integers(0, units, size=(RESAMPLES, units))
            scores.append(np.mean([pair.scores(picks) for pair in pairs], axis=0))
    return Judgement(domains=tuple(domains), vibe=_vibe(domains, scores), sentence=_sentence(domains))


def _pairs(name: str, merged: Answers, parents: Mapping[str, Answers], seed: int) -> Any:
    if name in merged.losses:
        yield _paired("loss", merged.losses[name], {key: one.losses[name] for key, one in parents.items()}, seed)
    yield _paired("accuracy", merged.right[name], {key: one.right[name] for key, one in parents.items()}, seed)


def _paired(what: Literal["loss", "accuracy"], merged: Floats, parents: Mapping[str, Floats], seed: int) -> _Paired:
    sign = -1.0 if what == "loss" else 1.0
    means = {name: float(values.mean()) for name, values in parents.items()}
    best = max(means, key=lambda name: sign * means[name])
    gain = paired_gain(sign * merged, sign * parents[best], seed=seed)
    ratio = float(_ratio(what, np.array(merged.mean()), np.array(means[best])))
    measure = Measure(
        what=what,
        merged=float(merged.mean()),
        parents=means,
        best=best,
        gain=gain,
        kept=min(1.0, ratio),
        credit=ratio - 1 if gain.low > 0 else 0.0,
    )
    return _Paired(measure, merged, parents[best])


def _ratio(what: str, merged: Floats, best: Floats) -> Floats:
    """Merged over best, turned so that above 1 is better; where the best has nothing, nothing can be lost."""
    if what == "loss":
        found: Floats = np.exp(np.minimum(best - merged, 700.0))
        return found
    return np.where(best > 0, merged / np.where(best > 0, best, 1.0), 1.0)


def _interference(name: str, pairs: Sequence[_Paired], base: Answers | None) -> float | None:
    measure = pairs[0].measure
    if base is None or measure.what != "loss":
        return None
    lost = measure.merged - measure.parents[measure.best]
    return lost / max(float(base.losses[name].mean()) - measure.parents[measure.best], SMALLEST_GAIN)


def _knows(answers: Floats, chance: float) -> bool:
    return wilson(int(answers.sum()), len(answers)).low > chance


def _vibe(domains: Sequence[Domain], scores: Sequence[Floats]) -> Interval:
    """The score, and the same for resampled windows and questions."""
    points = [float(np.mean([one.kept + one.credit for one in domain.measures])) for domain in domains if domain.counts]
    low, high = np.quantile(np.minimum(1.0, np.mean(scores, axis=0)), [0.025, 0.975])
    return Interval(value=min(1.0, float(np.mean(points))), low=float(low), high=float(high))


def _sentence(domains: Sequence[Domain]) -> str:
    worse = [one for one in domains if one.loses]
    better = sum(one.wins for one in domains)
    if not worse:
        much = f"and beats it on {better}" if better else "and beats it nowhere"
        return fit([f"The merge loses to no best parent in {len(domains)} domains", much], " ")
    return fit([f"The merge loses to the best parent in {len(worse)} of {len(domains)} domains", _most(worse)], ", ")


def _most(worse: Sequence[Domain]) -> str:
    """Where it loses most, by the lost share of the best parent's figure."""
    most = max(worse, key=lambda one: 1 - min(measure.kept for measure in one.measures))
    measure = min((one for one in most.measures if one.gain.high < 0), key=lambda one: one.kept)
    if measure.what == "loss":
        return f"most on {most.name}, by {-measure.gain.value:.3f} nats per token"
    return f"most on {most.name}, by {-100 * measure.gain.value:.1f} points of accuracy"


# -- measuring ------------------------------------------------------------------------------------------------------


def kept_score(kept: Mapping[str, float]) -> float:
    """How good a merge is in a search: the worst kept share of a gain, and a little of the mean."""
    return min(kept.values()) + MEAN_SHARE * sum(kept.values()) / len(kept)


@dataclass(frozen=True)
class Exam:
    """Everything that every model of a merge is asked."""

    texts: Mapping[str, Tokens]
    """(windows, length) of each kind of text."""
    tokenizer: Any
    questions: int = 0
    """How many questions of two hops are asked."""
    seed: int = 0

    def ask(self, model: Any) -> Answers:
        """What one model makes of it."""
        from scaler_wizard.evals.hops import two_hops
        from scaler_wizard.evals.probe import ask_all
        from scaler_wizard.evals.reading import read_windows

        read = {name: read_windows(model, ids) for name, ids in self.texts.items()}
        right = {name: one.right for name, one in read.items()}
        if self.questions:
            right[HOPS] = np.array(ask_all(model, self.tokenizer, two_hops(self.questions, seed=self.seed)), np.float64)
        return Answers({name: one.losses for name, one in read.items()}, right)

    def ask_folder(self, folder: Path) -> Answers:
        """The same of a model on disk."""
        from scaler_wizard.models import load_model

        return self.ask(load_model(folder, dtype="float32"))

    @property
    def chances(self) -> dict[str, float]:
        """Accuracy of guessing, by questions."""
        from scaler_wizard.evals.hops import PAIRS

        return {HOPS: 1 / PAIRS}


def domain_windows(
    texts: Mapping[str, str], tokenizer: Any, part: str, *, length: int, count: int
) -> dict[str, Tokens]:
    """Windows (count, length) of one part (calibration or heldout) of each domain's text."""
    found = {}
    for name, source in texts.items():
        documents = getattr(load_corpus(source), part)
        found[name] = windows(encode(documents, tokenizer), length, limit=count)
        if len(found[name]) < FEWEST_WINDOWS:
            raise ScalerError(
                f"{name}: {len(found[name])} windows of {length} tokens in its {part} text",
                f"give more text, or shorter windows: at least {FEWEST_WINDOWS} are needed",
            )
    return found
