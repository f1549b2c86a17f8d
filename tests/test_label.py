import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from commands import scaler
from scaler_wizard.data import load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.label import BUILT_IN, LabelCard, Rule, Rules, label, load_rules, speaks
from scaler_wizard.readers import Passage

FIT = "The old road went over the hill, and at its end stood a house in which nobody lived. "
UNFIT = "Buy now, only today, click here for more. "


def rule(**conditions: Any) -> Rule:
    return Rule(name="r", label="fit", **conditions)


@pytest.mark.parametrize(
    ("conditions", "text", "wanted"),
    [
        ({"contains": ("HOUSE",)}, FIT, True),
        ({"contains": ("road", "house"), "at_least": 3}, FIT, False),
        ({"contains": ("road", "house"), "at_least": 3}, FIT * 2, True),
        ({"lacks": ("Hill",)}, FIT, False),
        ({"words": (None, 17)}, FIT, False),
        ({"words": (18, 18)}, FIT, True),
        ({"letters": (0.99, None)}, FIT, False),
        ({"capitals": (0.5, None)}, FIT.upper(), True),
        ({"sentence": (17, 19)}, FIT * 3, True),
        ({"sentence": (17, 19)}, FIT + UNFIT, False),
        ({"source": ("novels",)}, FIT, True),
        ({"source": ("web",)}, FIT, False),
        ({"language": "en"}, FIT, True),
        ({"language": "de"}, FIT, False),
        ({"running_text": True}, FIT * 2, True),
        ({"running_text": False}, "word " * 50, True),
        ({"contains": ("road",), "words": (500, None)}, FIT, False),
    ],
)
def test_a_rule_speaks_where_every_condition_is_met(conditions: Any, text: str, wanted: bool) -> None:
    assert speaks(rule(**conditions), Passage("a", text, "novels")) is wanted


def pool(folder: Path, count: int = 400) -> tuple[Path, list[bool]]:
    """Texts with a hidden truth; marks of each kind show it more or less often."""
    chance, truth, lines = np.random.default_rng(0), [], []
    for number in range(count):
        fit = bool(chance.random() < 0.6)
        marks = [mark if (chance.random() < right) == fit else f"no{mark}" for mark, right in MARKS]
        spoken = [mark for mark in marks if chance.random() < 0.7]
        truth.append(fit)
        lines.append(json.dumps({"text": f"text {number} {'yes' if fit else 'no'}: {' '.join(spoken)}."}))
    (folder / "pool.jsonl").write_text("\n".join(lines))
    return folder / "pool.jsonl", truth


MARKS = (("alpha", 0.92), ("beta", 0.58), ("gamma", 0.56), ("delta", 0.55), ("kappa", 0.85))
WEAK = tuple(
    Rule(name=f"{sign}{mark}", label=to, contains=(f" {sign}{mark}",))
    for mark, _ in MARKS
    for sign, to in (("", "fit"), ("no", "unfit"))
)


def test_the_label_model_learns_whom_to_trust_and_beats_the_majority(tmp_path: Path) -> None:
    source, truth = pool(tmp_path, 1500)
    card = label(source, tmp_path / "out.jsonl", Rules(rules=WEAK))
    assert card.decided_by == "label model" and card.texts == 1500
    kept = {json.loads(line)["text"].split()[1] for line in (tmp_path / "out.jsonl").read_text().splitlines()}
    ours = np.mean([(str(number) in kept) == fit for number, fit in enumerate(truth)])
    votes = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    majority = [sum(f" {m}" in v for m, _ in MARKS) >= sum(f" no{m}" in v for m, _ in MARKS) for v in votes]
    assert ours > np.mean(np.array(majority) == truth) + 0.02
    accuracy = {one.rule: one.accuracy or 0.0 for one in card.rules}
    assert min(accuracy["alpha"], accuracy["kappa"]) > max(accuracy["gamma"], accuracy["delta"])


def test_the_table_counts_what_each_rule_said(tmp_path: Path) -> None:
    texts = ["one alpha", "two alpha beta", "three beta", "four", "five"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    how = Rules(
        rules=(
            Rule(name="a", label="fit", contains=("alpha",)),
            Rule(name="b", label="unfit", contains=("beta",)),
        ),
        least=0.6,
    )
    card = label(tmp_path / "a.jsonl", tmp_path / "out.jsonl", how)
    assert [(one.coverage, one.overlaps, one.conflicts, one.accuracy) for one in card.rules] == [
        (0.4, 0.2, 0.2, None),
        (0.4, 0.2, 0.2, None),
    ]
    assert (card.decided_by, card.silent, card.kept) == ("majority", 2, 3)
    assert LabelCard.load(tmp_path / "out.jsonl.card.json") == card
    silent = label(tmp_path / "a.jsonl", tmp_path / "out.jsonl", how.model_copy(update={"silent": "drop"}))
    assert silent.kept == 1


def test_a_weighted_set_keeps_every_likely_text_with_its_probability_for_the_training(tmp_path: Path) -> None:
    source, truth = pool(tmp_path)
    label(source, tmp_path / "out.jsonl", Rules(rules=WEAK, weighted=True))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    weights = {row["text"].split()[1]: row.get("sampling_weight", 1.0) for row in rows}
    assert len(weights) > 390
    mean = {
        fit: np.mean([weights.get(str(n), 0.0) for n, is_fit in enumerate(truth) if is_fit == fit]) for fit in (0, 1)
    }
    assert mean[1] > mean[0] + 0.4
    corpus = load_corpus(str(tmp_path / "out.jsonl"))
    assert any(0 < one.weight < 1 for one in corpus.train)


def test_our_own_rules_tell_prose_from_what_the_web_wraps_around_it(tmp_path: Path) -> None:
    prose = [one.text[:1500] for one in load_corpus("kjv").train[:12]]
    furniture = [f"{UNFIT}Subscribe! Accept every cookie. All rights reserved. Sign in. {n}. " * 5 for n in range(6)]
    lines = [json.dumps({"text": text, "name": str(n)}) for n, text in enumerate([*prose, *furniture])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    card = label(tmp_path / "a.jsonl", tmp_path / "out.jsonl", Rules(built_in=True))
    kept = (tmp_path / "out.jsonl").read_text()
    assert card.kept == 12 and "Subscribe" not in kept


def test_the_command_prints_the_table_and_says_how_to_use_the_result(tmp_path: Path) -> None:
    source, _ = pool(tmp_path)
    rules = {"rules": [one.model_dump(mode="json", exclude_defaults=True) for one in WEAK]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    said = scaler("label", str(source), str(tmp_path / "rules.yaml"), "-o", str(tmp_path / "out.jsonl"))
    assert said.returncode == 0, said.stderr
    assert "coverage" in said.stdout and "alpha" in said.stdout and "decided by  label model" in said.stdout
    assert load_rules(tmp_path / "rules.yaml").rules == WEAK


@pytest.mark.parametrize(
    ("how", "wrong"),
    [
        ({"rules": [{"name": "a", "label": "fit"}]}, "rule a: no condition"),
        ({"rules": [{"name": "a", "label": "good", "contains": ["x"]}]}, "good is not one of labels"),
        ({}, "no rule: write some"),
        ({"rules": [{"name": "a", "label": "fit", "pattern": "(x+)+y"}]}, "pattern"),
        ({"built_in": True, "labels": ["yes", "no"], "keep": ["yes"]}, "fit is not one of labels"),
        ({"rules": [{"name": "a", "label": "fit", "contains": ["x"]}] * 2}, "same name"),
    ],
)
def test_rules_that_say_nothing_or_something_unknown_are_refused(how: Any, wrong: str) -> None:
    with pytest.raises((ValidationError, ScalerError), match=wrong.replace("(", r"\(")):
        Rules.model_validate(how)


def test_without_a_spoken_word_or_without_snorkel_it_is_refused_in_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = pool(tmp_path, 20)
    with pytest.raises(ScalerError, match="no rule speaks of any of 20 texts"):
        label(source, tmp_path / "out.jsonl", Rules(rules=(rule(contains=("zebra",)),)))
    with pytest.raises(ScalerError, match="keep none of 20 texts"):
        all_of_it = Rule(name="r", label="unfit", words=(1, None))
        label(source, tmp_path / "out.jsonl", Rules(rules=(all_of_it,)))
    monkeypatch.setitem(sys.modules, "snorkel.labeling", None)
    with pytest.raises(ScalerError) as refused:
        label(source, tmp_path / "out.jsonl", Rules(rules=WEAK))
    assert refused.value.cure == 'pip install "scaler-wizard[label]"'
    assert not (tmp_path / "out.jsonl").exists()


def test_our_own_rules_have_different_names() -> None:
    assert len({one.name for one in BUILT_IN}) == len(BUILT_IN) >= 6
