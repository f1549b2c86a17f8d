"""What a measurement says about a model: numbers with their sample sizes and intervals; unknown is None."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scaler_wizard.record import Record

Share = Annotated[float, Field(ge=0, le=1)]


class Interval(Record):
    """A value with its 95 % confidence interval."""

    value: float
    """The point estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class Bucket(Record):
    """Mean loss of the tokens that stand at positions [start, end) of their window."""

    start: int
    """First position."""
    end: int
    """One past the last position."""
    nll: float
    """Mean negative log-likelihood, nats per token."""
    truncated_nll: float | None = None
    """The same tokens when the model sees only its native window; None where the position is inside it."""
    tokens: int
    """How many tokens were scored."""


class NeedleCell(Record):
    """Facts hidden in a text and asked for at its end, at one length and one depth."""

    length: int
    """Tokens of context."""
    depth: Share
    """Where the fact stood: 0 at the start (far from the question), 1 at the end (near)."""
    found: int
    """Answers whose every token was the model's first choice."""
    asked: int
    """Questions asked."""
    nll: float
    """Mean negative log-likelihood of the answers, nats per token."""


class Probe(Record):
    """Multiple-choice questions answered by the likeliest choice."""

    name: str
    """Which questions."""
    correct: int
    """Right answers."""
    asked: int
    """Questions asked."""
    chance: Share
    """Accuracy of guessing."""
    accuracy: Interval
    """Share of right answers with its Wilson interval."""


class Measurement(Record):
    """Everything measured on one model; a part that was not measured is empty or None."""

    corpus: str
    """The held-out text."""
    native_length: int
    """Window of the base model, in tokens: the length that truncation keeps."""
    target_length: int
    """Longest window that was measured."""
    short_nll: float | None = None
    """Mean loss on windows of the native length (or shorter, where that is said by the plan), nats per token."""
    short_nll_by_window: tuple[float, ...] = ()
    """The same, one value per window, in a fixed order: pairs with other measurements of the same corpus."""
    buckets: tuple[Bucket, ...] = ()
    """Loss by position out to the target length."""
    tail_blocks: tuple[float, ...] = ()
    """Mean loss of blocks of neighbouring tokens in the last half native window of each long window."""
    truncated_blocks: tuple[float, ...] = ()
    """The same blocks when this model saw only its native window; empty where that was not measured."""
    truncation_by: Literal["self", "base"] | None = None
    """Whose truncated reading the gain is against: this model's own, or the base's."""
    context_gain: Interval | None = None
    """Loss saved by the long context against truncation, on the same tokens, nats per token; above 0 is a gain."""
    needles: tuple[NeedleCell, ...] = ()
    """Retrieval by length and depth."""
    probe: Probe | None = None
    """Knowledge probe."""
    seconds: float
    """Wall time of the measurement."""


class MeasureSpec(Record):
    """What to measure and how thoroughly; written by the plan, so that two measurements can be compared."""

    length: int
    """Longest window, in tokens."""
    windows: int
    """Long windows of held-out text."""
    bucket: int
    """Tokens in one bucket of positions."""
    truncated: bool
    """Also score the end of each long window when the model sees only its native window; else the base's is used."""
    short_length: int
    """Tokens in a short window; at most the native window."""
    short_windows: int
    """Short windows of held-out text."""
    needle_lengths: tuple[int, ...]
    """Context lengths at which facts are asked for."""
    needles: int
    """Facts asked for at the longest of them."""
    digits: int
    """Digits of a fact's code."""
    along: bool
    """Plant all facts in one long text and ask along a single pass, as large models need it."""
    probe: str | None
    """Multiple-choice questions: "capitals", or None."""
    probe_items: int = 0
    """How many questions."""
    seed: int = 0
    """Seed of facts, places and resampling."""
