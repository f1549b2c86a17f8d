"""The catalogue of six languages, and the sentences of runs that it has to know."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest

import scaler_wizard
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.contract import Contract
from scaler_wizard.gate import Change, canonical, judge, stopped
from scaler_wizard.metrics import Interval, Measurement, NeedleCell, Probe
from scaler_wizard.recipe import Breaker, GateLimits
from scaler_wizard.record import to_json

LANGUAGES = ("en", "pt", "es", "fr", "de", "zh")
SENTENCES = Path(__file__).with_name("sentences.json")


def catalogue(language: str) -> dict[str, str]:
    """Every entry of a language, flat."""
    file = Path(scaler_wizard.__file__).parent / "words" / f"{language}.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    return {f"{part}.{key}": text for part, entries in data.items() for key, text in entries.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_entry_with_the_same_holes(language: str) -> None:
    english, other = catalogue("en"), catalogue(language)
    assert other.keys() == english.keys()
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", other[key])) == sorted(re.findall(r"\{\w+\}", text)), key
        assert other[key].strip(" ") or key == "say.arrow", key


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_language_is_a_translation_and_not_a_copy(language: str) -> None:
    english, other = catalogue("en"), catalogue(language)
    copied = [key for key, text in english.items() if other[key] == text and len(text.split()) > 2]
    assert copied == [], copied
    same = sum(other[key] == text for key, text in english.items())
    assert same < 0.12 * len(english)


def measured(*, rise: float = 0.0, gain: float = 0.02, found: int = 8, right: int = 7) -> Measurement:
    return Measurement(
        corpus="x",
        native_length=128,
        target_length=512,
        short_nll=3.0 + rise,
        short_nll_by_window=(3.0 + rise,),
        context_gain=Interval(value=gain, low=gain - 0.01, high=gain + 0.01),
        needles=(
            NeedleCell(length=128, depth=0.5, found=8, asked=8, nll=0.1),
            NeedleCell(length=512, depth=0.5, found=found, asked=8, nll=0.1),
        ),
        probe=Probe(
            name="capitals",
            correct=right,
            asked=10,
            chance=0.25,
            accuracy=Interval(value=right / 10, low=right / 10 - 0.05, high=right / 10 + 0.05),
        ),
        seconds=1.0,
    )


def sentences() -> list[str]:
    """What gates, the breaker, the contract and the server say."""
    titles = {
        "baseline": "baseline",
        "grow": "growth 820K -> 1.24M",
        "extend": "window 128 -> 8K",
        "heal": "training on 197K tokens",
        "merge": "merge with base",
        "export": "export",
    }
    base, worse = measured(), measured(rise=0.087, gain=-0.2, found=2, right=1)
    found: set[str] = set()
    for (kind, title), following in product(titles.items(), [*titles.values(), None]):
        change = Change(kind, title, exact=kind == "grow", next=following)  # type: ignore[arg-type]
        for after in (base, worse, None):
            found.add(canonical(change, base, base, after, asks=after is worse))
            for proof in ({}, {"proof": {"passed": False}}, {"proof": {"passed": True}}):
                verdict = judge(change, baseline=base, before=base, after=after, evidence=proof, limits=GateLimits())
                found |= {verdict.sentence, *verdict.reasons}
    found |= merged(base)
    found |= {line.partition(". ")[2] for line in Contract().text().splitlines()} | set(tripped())
    found |= {stopped("", step=7, steps=120, kept=5).sentence, "Training goes on; the breaker only warns."}
    return sorted(found)


def merged(base: Measurement) -> set[str]:
    """What a gate says of a merge that loses nowhere, and of one that loses everywhere."""
    found: set[str] = set()
    for title, lost in product(("merge with base", "merge of 3 models"), (0.0, 0.2)):
        gain = {"value": -lost, "low": -lost - 0.01, "high": 0.01 - lost}
        measures = [{"what": what, "best": "base", "gain": gain} for what in ("loss", "accuracy")]
        worth = {"domains": [{"name": "kjv", "counts": True, "measures": measures}], "vibe": {"value": 0.97}}
        change, evidence = Change("merge", title, exact=False, next="export"), {"merge": {"judgement": worth}}
        verdict = judge(change, baseline=base, before=base, after=base, evidence=evidence, limits=GateLimits())
        assert verdict.action == ("ask" if lost else "pass")
        found |= {verdict.sentence, *verdict.reasons}
    return found


def tripped() -> list[str]:
    """Every telegram of the breaker."""
    losses, rising, falling = (CircuitBreaker(Breaker(), base_accuracy=0.8) for _ in range(3))
    told = [losses.observe(3, float("nan")), losses.observe_evaluation(3, float("inf"))]
    losses.observe_evaluation(0, 1.0)
    told += [losses.observe(step, 9.0) for step in range(5)]
    told += [rising.observe_evaluation(step, 1.0 + 3 * step) for step in range(12)]
    told += [falling.observe_evaluation(1, 1.0, accuracy=0.2)]
    return [telegram.sentence for telegram in told if telegram is not None]


def test_the_cockpit_is_tested_on_every_sentence_that_a_run_can_say() -> None:
    assert json.loads(SENTENCES.read_text(encoding="utf-8")) == sentences(), "stale: make generate"


if __name__ == "__main__":
    SENTENCES.write_text(to_json(sentences()).replace('","', '",\n"') + "\n", encoding="utf-8")
