"""Gates: what passes, what asks, what is undone, and the one sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.gate import LONGEST, Change, Kind, judge
from scaler_wizard.metrics import Bucket, Interval, Measurement, NeedleCell, Probe
from scaler_wizard.recipe import GateLimits

PROOF = {"proof": {"passed": True}}


def measured(short: float = 3.0, *, near: int = 32, far: int = 32, gain: float | None = None, right: int | None = None):
    cells = tuple(
        NeedleCell(length=length, depth=0.1, found=found, asked=32, nll=0.1)
        for length, found in ((128, near), (512, far))
    )
    probe = None
    if right is not None:
        share = right / 100
        interval = Interval(value=share, low=share - 0.09, high=share + 0.09)
        probe = Probe(name="capitals", correct=right, asked=100, chance=0.25, accuracy=interval)
    return Measurement(
        corpus="kjv",
        native_length=128,
        target_length=512,
        short_nll=short,
        short_nll_by_window=(short - 0.5, short + 0.5),
        buckets=(Bucket(start=0, end=512, nll=short, tokens=511),),
        needles=cells,
        probe=probe,
        context_gain=None if gain is None else Interval(value=gain, low=gain - 0.01, high=gain + 0.01),
        seconds=1.0,
    )


def verdict(kind: Kind, after: Measurement | None, *, evidence: Any = PROOF, healed_later: bool = False, **base: Any):
    change = Change(kind, "a phase", exact=kind == "grow", next="export", healed_later=healed_later)
    baseline = measured(**base)
    return judge(change, baseline=baseline, before=baseline, after=after, evidence=evidence, limits=GateLimits())


def test_a_phase_within_every_limit_passes() -> None:
    found = verdict("heal", measured(3.01, gain=0.1))
    assert found.action == "pass" and not found.reasons
    assert found.sentence.startswith("a phase done: short loss +0.010") and "export next" in found.sentence


@pytest.mark.parametrize(
    ("after", "base", "words"),
    [
        (measured(3.06), {}, "short text rose by 0.060"),
        (measured(3.0, gain=-0.15), {}, "0.150 nats per token worse than truncation"),
        (measured(3.0, far=10), {}, "31% of the needles are found at 512"),
        (measured(3.0, near=8), {}, "25% of the needles are found at 128"),
        (measured(3.0, right=55), {"right": 71}, "accuracy fell by 16.0%"),
    ],
)
def test_a_phase_that_loses_something_asks_and_says_what(after: Measurement, base: Any, words: str) -> None:
    found = verdict("heal", after, **base)
    assert found.action == "ask" and len(found.reasons) == 1 and words in found.reasons[0]


def test_a_difference_of_needles_within_chance_is_no_reason() -> None:
    assert verdict("heal", measured(near=0, far=1), near=3).action == "pass"
    assert verdict("heal", measured(near=0, far=1), near=16).action == "ask"


def test_a_rung_that_is_healed_later_may_lose_a_little_more() -> None:
    after = measured(3.1, gain=-0.15)
    assert verdict("extend", after, healed_later=True).action == "pass"
    assert verdict("extend", after).action == "ask"
    assert verdict("extend", measured(3.2), healed_later=True).action == "ask"


@pytest.mark.parametrize("evidence", [{}, {"proof": None}, {"proof": {"passed": False}}])
def test_growth_without_a_proof_is_undone(evidence: Any) -> None:
    assert verdict("grow", measured(), evidence=evidence).action == "rollback"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_undone(loss: float) -> None:
    assert verdict("heal", measured(loss)).action == "rollback"


def test_nothing_measured_is_nothing_known() -> None:
    assert verdict("extend", None).action == "ask"


@given(
    title=st.text(min_size=1, max_size=200),
    following=st.none() | st.text(min_size=1, max_size=200),
    short=st.floats(allow_nan=True, allow_infinity=True),
    gain=st.none() | st.floats(-1e6, 1e6),
)
def test_the_sentence_never_has_more_than_120_characters(
    title: str, following: str | None, short: float, gain: float | None
) -> None:
    change = Change("extend", title, exact=False, next=following)
    found = judge(
        change,
        baseline=measured(),
        before=measured(2.5),
        after=measured(short, gain=gain),
        evidence={},
        limits=GateLimits(),
    )
    assert 0 < len(found.sentence) <= LONGEST
