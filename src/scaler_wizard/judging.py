"""Was the merge worth it? Its loss on held-out text against every parent's, domain by domain, and one score.

The score (`emergentVibeScore`, 0 to 1) is the mean over domains of min(1, perplexity of the best parent / perplexity of
the merged model); what a domain gains above its best parent is added only where the gain is statistically significant.
A merge as good as the best parent everywhere has 1; one that lost everything has 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scaler_wizard.data import Tokens, encode, load_corpus, windows
from scaler_wizard.errors import ScalerError
from scaler_wizard.gate import LONGEST, fit
from scaler_wizard.intervals import RESAMPLES, paired_gain
from scaler_wizard.metrics import Interval
from scaler_wizard.record import Record

Floats = npt.NDArray[np.float64]
Losses = Mapping[str, Floats]
"""Mean loss of each window, nats per token, by model."""
FEWEST_WINDOWS = 4


class Domain(Record):
    """One kind of text."""

    name: str
    """Which."""
    merged: float
    """Loss of the merged model on held-out text, nats per token."""
    parents: dict[str, float]
    """Loss of each parent on the same text."""
    best: str
    """The best parent here."""
    gain: Interval
    """Loss of the best parent less that of the merged model; above 0 the merged model is better."""
    kept: float
    """min(1, perplexity of the best parent / perplexity of the merged model)."""
    credit: float
    """What it is better by, where that is significant; else 0."""


class Judgement(Record):
    """What a merge is worth."""

    domains: tuple[Domain, ...]
    """Every kind of text."""
    vibe: Interval
    """emergentVibeScore with its 95 % bootstrap interval."""
    sentence: Annotated[str, Field(max_length=LONGEST)]
    """The same in words."""

    def rows(self) -> list[tuple[str, str]]:
        """The same for a table."""
        found = []
        for one in self.domains:
            parents = ", ".join(f"{name} {loss:.3f}" for name, loss in one.parents.items())
            gain = f"{one.gain.value:+.3f} ({one.gain.low:+.3f} to {one.gain.high:+.3f}) against {one.best}"
            found.append((one.name, f"merged {one.merged:.3f}, {gain}; parents: {parents}"))
        vibe = f"{self.vibe.value:.3f} ({self.vibe.low:.3f} to {self.vibe.high:.3f})"
        return [*found, ("emergent vibe score", vibe), ("verdict", self.sentence)]


def judge(merged: Losses, parents: Mapping[str, Losses], *, seed: int = 0) -> Judgement:
    """Compare losses on the same windows: `merged` by domain, `parents` by name, then by domain."""
    domains = tuple(_domain(name, losses, parents, seed) for name, losses in merged.items())
    return Judgement(domains=domains, vibe=_vibe(domains, merged, parents, seed), sentence=_sentence(domains))


def _domain(name: str, losses: Floats, parents: Mapping[str, Losses], seed: int) -> Domain:
    means = {parent: float(found[name].mean()) for parent, found in parents.items()}
    best = min(means, key=means.__getitem__)
    gain = paired_gain(parents[best][name], losses, seed=seed)
    ratio = math.exp(min(gain.value, 700.0))
    return Domain(
        name=name,
        merged=float(losses.mean()),
        parents=means,
        best=best,
        gain=gain,
        kept=min(1.0, ratio),
        credit=ratio - 1 if gain.low > 0 else 0.0,
    )


def _vibe(domains: Sequence[Domain], merged: Losses, parents: Mapping[str, Losses], seed: int) -> Interval:
    """The score, and the same for resampled windows; which gains are significant is decided once."""
    rng = np.random.default_rng(seed)
    scores = np.zeros(RESAMPLES)
    for one in domains:
        difference = parents[one.best][one.name] - merged[one.name]
        picks = rng.integers(0, len(difference), size=(RESAMPLES, len(difference)))
        ratios = np.exp(np.minimum(difference[picks].mean(axis=1), 700.0))
        scores += (ratios if one.credit else np.minimum(1.0, ratios)) / len(domains)
    low, high = np.quantile(np.minimum(1.0, scores), [0.025, 0.975])
    value = min(1.0, sum(one.kept + one.credit for one in domains) / len(domains))
    return Interval(value=value, low=float(low), high=float(high))


def _sentence(domains: Sequence[Domain]) -> str:
    worse = [one for one in domains if one.gain.high < 0]
    better = [one for one in domains if one.gain.low > 0]
    if not worse:
        much = f"and beats it on {len(better)}" if better else "and beats it nowhere"
        return fit([f"The merge loses to no best parent on {len(domains)} kinds of text", much], " ")
    most = min(worse, key=lambda one: one.gain.value)
    loss = f"most on {most.name}, by {-most.gain.value:.3f} nats per token"
    return fit([f"The merge loses to the best parent on {len(worse)} of {len(domains)} kinds of text", loss], ", ")


# -- measuring ------------------------------------------------------------------------------------------------------


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


def losses_of(model: Any, texts: Mapping[str, Tokens]) -> dict[str, Floats]:
    """Mean loss of each window, by domain."""
    from scaler_wizard.evals.perplexity import token_nll

    return {name: token_nll(model, ids).mean(axis=1) for name, ids in texts.items()}


def losses_of_folder(folder: Path, texts: Mapping[str, Tokens]) -> dict[str, Floats]:
    """The same of a model on disk."""
    from scaler_wizard.models import load_model

    return losses_of(load_model(folder, dtype="float32"), texts)
