"""Choose texts by many weak rules instead of reading them: each rule votes, a label model weighs the votes (Snorkel,
arXiv:1711.10160), and what is likely unfit is left out or read less often (`scaler label TEXT RULES -o OUT`).

labels: [fit, unfit]
keep: [fit]
built_in: true                   # the rules of this module vote as well
rules:
  - {name: adverts, label: unfit, contains: [buy now, special offer], at_least: 2}
  - {name: stories, label: fit, source: [novels], words: [200, null]}

Two passes over the texts: one vote of a byte for each text and rule is all that stays in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from scaler_wizard.clean import flaw, language_of
from scaler_wizard.errors import ScalerError
from scaler_wizard.prepare import row_of, text_files
from scaler_wizard.readers import Passage, Unreadable, texts
from scaler_wizard.record import Record
from scaler_wizard.safe_yaml import load_yaml

ABSTAIN = -1
EPOCHS = 500
LEAST_RULES = 3
"""Fewer rules that speak say nothing of each other's accuracy; then the majority decides."""
Votes = npt.NDArray[np.int8]
Range = tuple[float | None, float | None]


class Rule(Record):
    """One vote: a text that meets every condition gets the label, any other gets none."""

    name: Annotated[str, Field(pattern=r"^[\w -]{1,40}$")]
    """What the table calls it."""
    label: str
    """What it votes for."""
    contains: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Any of these words or phrases stands in the text; large and small letters are the same."""
    at_least: Annotated[int, Field(ge=1)] = 1
    """Times that they stand there, all together."""
    lacks: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """None of these stands in it."""
    words: Range | None = None
    """Number of words, [least, most]; null is open."""
    letters: Range | None = None
    """Share of its characters that are letters or spaces."""
    capitals: Range | None = None
    """Share of its letters that are capitals."""
    sentence: Range | None = None
    """Mean number of words in a sentence."""
    language: str | None = None
    """ISO 639-1 code of its language ("en"); needs scaler-wizard[data]."""
    source: tuple[str, ...] = ()
    """It comes from one of these."""
    running_text: bool | None = None
    """Whether it passes the quality rules of `scaler prepare`."""

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if not self.model_dump(exclude={"name", "label", "at_least"}, exclude_defaults=True):
            raise ValueError(f"rule {self.name}: no condition")
        return self


class Rules(Record):
    """What to vote on, and what to do with the outcome."""

    labels: Annotated[tuple[str, ...], Field(min_length=2, max_length=20)] = ("fit", "unfit")
    """All labels."""
    keep: Annotated[tuple[str, ...], Field(min_length=1)] = ("fit",)
    """Labels of the texts that are wanted."""
    rules: tuple[Rule, ...] = ()
    """Your own rules."""
    built_in: bool = False
    """Let our own rules vote as well; they know the labels `fit` and `unfit`."""
    least: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a wanted label from which a text is kept."""
    weighted: bool = False
    """Drop nothing, and write the probability as the text's `sampling_weight`: training reads it less often."""
    silent: Literal["keep", "drop"] = "keep"
    """What to do with a text that no rule speaks of."""

    @model_validator(mode="after")
    def _known(self) -> Rules:
        named = {*self.keep, *(rule.label for rule in self.voting)}
        if unknown := sorted(named - {*self.labels}):
            raise ValueError(f"{unknown[0]} is not one of labels: {', '.join(self.labels)}")
        if len(names := [rule.name for rule in self.voting]) != len(set(names)):
            raise ValueError("two rules have the same name")
        if not self.voting:
            raise ValueError("no rule: write some, or built_in: true")
        return self

    @property
    def voting(self) -> tuple[Rule, ...]:
        """All rules."""
        return self.rules + (BUILT_IN if self.built_in else ())


BUILT_IN = (
    Rule(name="running text", label="fit", running_text=True, words=(100, None)),
    Rule(name="flawed", label="unfit", running_text=False),
    Rule(name="whole sentences", label="fit", sentence=(8, 40), words=(50, None)),
    Rule(name="fragments", label="unfit", sentence=(None, 5)),
    Rule(name="shouting", label="unfit", capitals=(0.3, None)),
    Rule(name="signs", label="unfit", letters=(None, 0.75)),
    Rule(
        name="web furniture",
        label="unfit",
        contains=("cookie", "subscribe", "sign in", "all rights reserved", "click here", "privacy policy"),
        at_least=3,
    ),
)


class Said(Record):
    """How one rule voted."""

    rule: str
    """Its name."""
    label: str
    """What it votes for."""
    coverage: float
    """Share of the texts that it speaks of."""
    overlaps: float
    """Share that another rule speaks of as well."""
    conflicts: float
    """Share where another rule says something else."""
    accuracy: float | None
    """What the label model makes of it; null where the majority decided."""


class LabelCard(Record):
    """What was voted, and what came of it."""

    source: str
    """Where the texts were."""
    decided_by: Literal["label model", "majority"]
    """The majority decides where fewer than three rules speak."""
    texts: int
    """Texts that were read."""
    kept: int
    """Texts that were written."""
    silent: int
    """Texts that no rule spoke of."""
    labels: dict[str, int]
    """Texts by their likeliest label, where a rule spoke."""
    rules: tuple[Said, ...]
    """Every rule."""
    how: Rules
    """What was asked for."""


def load_rules(path: Path) -> Rules:
    """Rules from a YAML file."""
    return Rules.read(load_yaml(path), path.name)


def label(source: Path, out: Path, how: Rules, *, seed: int = 0) -> LabelCard:
    """Write the wanted texts of a file or folder to `out` (JSON lines), and a card beside it (`.card.json`).

    Raises ScalerError where Snorkel is missing, a text cannot be read, no rule speaks, or nothing would be left.
    """
    labeling = _snorkel()
    votes = np.array([votes_of(one, how) for one in _passages(source)], dtype=np.int8).reshape(-1, len(how.voting))
    if not (votes != ABSTAIN).any():
        raise ScalerError(f"{source}: no rule speaks of any of {len(votes)} texts", "write wider rules")
    shares, accuracies = _weighed(votes, len(how.labels), seed)
    wanted = shares[:, [how.labels.index(name) for name in how.keep]].sum(axis=1)
    spoken = (votes != ABSTAIN).any(axis=1)
    weights = _weights(wanted, spoken, how)
    if not weights.any():
        raise ScalerError(f"{source}: the rules keep none of {len(votes)} texts", "lower `least`, or mend the rules")
    card = LabelCard(
        source=str(source),
        decided_by="majority" if accuracies is None else "label model",
        texts=len(votes),
        kept=int((weights > 0).sum()),
        silent=int((~spoken).sum()),
        labels={name: int((shares[spoken].argmax(axis=1) == number).sum()) for number, name in enumerate(how.labels)},
        rules=tuple(_table(votes, accuracies, how, labeling)),
        how=how,
    )
    _write(_passages(source), weights, out)
    out.with_name(f"{out.name}.card.json").write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card


def _snorkel() -> Any:
    try:
        return import_module("snorkel.labeling")
    except ModuleNotFoundError:
        raise ScalerError("snorkel is needed to weigh rules", 'pip install "scaler-wizard[label]"') from None


def _passages(source: Path) -> Iterator[Passage]:
    for file in text_files(source):
        name = file.name if file == source else str(file.relative_to(source))
        try:
            for one in texts(file):
                yield replace(one, name=f"{name} {one.name}".strip(), source=one.source or Path(name).parts[0])
        except Unreadable as reason:
            raise ScalerError(f"{name}: {reason}", "sort the files first: scaler prepare") from None


# -- votes -------------------------------------------------------------------------------------------------------------


def votes_of(one: Passage, how: Rules) -> list[int]:
    """Each rule's label by its number, or ABSTAIN."""
    return [how.labels.index(rule.label) if speaks(rule, one) else ABSTAIN for rule in how.voting]


def speaks(rule: Rule, one: Passage) -> bool:
    """Whether a text meets every condition of a rule."""
    text, low = one.text, one.text.lower()
    words = text.split()
    letters = sum(sign.isalpha() for sign in text)
    sentences = len(re.findall(r"[.!?。！？]+(?:\s|$)", text)) or 1
    return (
        (not rule.contains or sum(low.count(part.lower()) for part in rule.contains) >= rule.at_least)
        and not any(part.lower() in low for part in rule.lacks)
        and _within(len(words), rule.words)
        and _within((letters + text.count(" ")) / max(1, len(text)), rule.letters)
        and _within(sum(sign.isupper() for sign in text) / max(1, letters), rule.capitals)
        and _within(len(words) / sentences, rule.sentence)
        and (not rule.source or one.source in rule.source)
        and (rule.running_text is None or (flaw(text) is None) == rule.running_text)
        and (rule.language is None or language_of(text) == rule.language)
    )


def _within(value: float, limits: Range | None) -> bool:
    least, most = limits or (None, None)
    return (least is None or value >= least) and (most is None or value <= most)


def _weighed(votes: Votes, labels: int, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
    """Probability of each label for each text (texts, labels), and each rule's accuracy where it could be learnt.

    The label model learns how accurate the rules are from how they agree, without any true label.
    """
    speaking = (votes != ABSTAIN).any(axis=0)
    if int(speaking.sum()) < LEAST_RULES:
        counts = np.stack([(votes == number).sum(axis=1) for number in range(labels)], axis=1).astype(float)
        return counts / np.maximum(1, counts.sum(axis=1, keepdims=True)), None
    model = import_module("snorkel.labeling.model").LabelModel(cardinality=labels, verbose=False)
    model.fit(votes[:, speaking].astype(int), n_epochs=EPOCHS, seed=seed, progress_bar=False)
    accuracies = np.full(votes.shape[1], np.nan)
    accuracies[speaking] = model.get_weights()
    return model.predict_proba(votes[:, speaking].astype(int)), accuracies


def _weights(wanted: npt.NDArray[np.float64], spoken: npt.NDArray[np.bool_], how: Rules) -> npt.NDArray[np.float64]:
    """How often to read each text; 0 leaves it out."""
    chosen = wanted if how.weighted else (wanted >= how.least).astype(float)
    return np.where(spoken, chosen, float(how.silent == "keep"))


def _table(votes: Votes, accuracies: npt.NDArray[np.float64] | None, how: Rules, labeling: Any) -> Iterator[Said]:
    analysis = labeling.LFAnalysis(votes.astype(int))
    columns = (analysis.lf_coverages(), analysis.lf_overlaps(), analysis.lf_conflicts())
    for number, rule in enumerate(how.voting):
        coverage, overlaps, conflicts = (float(column[number]) for column in columns)
        known = accuracies is not None and not np.isnan(accuracies[number])
        yield Said(
            rule=rule.name,
            label=rule.label,
            coverage=coverage,
            overlaps=overlaps,
            conflicts=conflicts,
            accuracy=float(accuracies[number]) if accuracies is not None and known else None,
        )


def _write(found: Iterator[Passage], weights: Sequence[float] | npt.NDArray[np.float64], out: Path) -> None:
    beside = out.with_name(f"{out.name}.new")
    with beside.open("w", encoding="utf-8") as stream:
        for one, weight in zip(found, weights, strict=True):
            if weight > 0:
                row = row_of(replace(one, weight=round(one.weight * float(weight), 4)))
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    beside.rename(out)
