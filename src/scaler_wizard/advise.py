"""The recipe for this wish, this model and this machine: what was wished where it fits, else the nearest that does.

How: plan what was wished; where the estimate says that it cannot run, give up one thing after the other in a fixed
order, and say so each time. Advice never raises a limit, and nothing that the estimate refuses is recommended.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from scaler_wizard.architecture import Architecture, read_architecture
from scaler_wizard.errors import ScalerError, Waiting
from scaler_wizard.hardware import GIB, Hardware, detect
from scaler_wizard.models import Source, resolve
from scaler_wizard.phases import Plan
from scaler_wizard.plan import make_plan
from scaler_wizard.recipe import Recipe, count, factor, find_recipe, set_field, shipped_recipes
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.target import parse_target, solve
from scaler_wizard.wishes import Advice, understand

LEAST_GROWTH = 1.05
SURE = 0.9
"""Belief in one choice from which a reader's answer is taken; a small model is often wrong (docs/log.md)."""
DAY = 24 * 3600.0


@dataclass(frozen=True)
class Recommendation:
    """A recipe, and why."""

    name: str
    """The shipped recipe that it began as."""
    data: dict[str, Any]
    """Its fields, as a file would hold them."""
    plan: Plan | None
    """The plan that fits; None where no model was named."""
    reasons: tuple[str, ...]
    """Why this recipe, and what was given up for it."""


@dataclass(frozen=True)
class Leaning:
    """What a reader makes of an open question."""

    recipe: str
    """The choice that it prefers."""
    share: float
    """Its belief in that choice, of 1 in all choices."""
    reader: str
    """Name of the model that was asked."""


Reader = Callable[[str, Sequence[str]], Leaning]
"""Prefers one of several recipes for a wish."""


Concession = tuple[dict[str, Any], str]
"""Changes to a recipe, and the sentence that says so."""


@dataclass(frozen=True)
class Case:
    """What a recommendation is for."""

    source: Source
    base: Architecture
    hardware: Hardware

    def plan(self, data: dict[str, Any]) -> Plan:
        """The plan of a recipe; raises ScalerError where it cannot run."""
        return make_plan(Recipe.read(data, "the recommendation"), self.source, self.base, self.hardware)


def recommend(advice: Advice, case: Case) -> Recommendation:
    """The nearest recipe to the wish that can run. Raises ScalerError where nothing of it can."""
    assert advice.recipe is not None
    data, impossible = _possible(_recipe(advice, case.source), case)
    made: list[Concession] = []
    for concession in _concessions(data, case):
        made.append(concession)
        try:
            plan = case.plan(_with(data, made))
        except ScalerError as error:
            refusal = error
            continue
        made, plan = _needed(data, made, plan, case)
        said = [*impossible, *(why for _, why in made if why), *_cost(plan)]
        return Recommendation(advice.recipe, _with(data, made), plan, (*advice.reasons, *said))
    raise ScalerError(
        f"{case.source.name} on this machine: not even a small part of {advice.recipe} fits; {refusal.wrong}",
        "begin with a smaller model (scaler models), or use a machine with more memory",
    )


def _needed(data: dict[str, Any], made: list[Concession], plan: Plan, case: Case) -> tuple[list[Concession], Plan]:
    """Take back every concession without which it fits as well, the mildest last."""
    for concession in reversed(made[:-1]):
        fewer = [one for one in made if one is not concession]
        try:
            plan = case.plan(_with(data, fewer))
        except ScalerError:
            continue  # it was needed
        made = fewer
    return made, plan


def _with(data: dict[str, Any], made: list[Concession]) -> dict[str, Any]:
    for changes, _ in made:
        data = _changed(data, changes)
    return data


def advised(
    wish: str, *, model: str | None, choose: str | None, runs: Path, reader: Reader | None = None
) -> Recommendation:
    """What `scaler wish` answers. Raises Waiting with the one question where the wish leaves it open."""
    if choose is not None and choose not in shipped_recipes():
        raise ScalerError(f"--choose {choose}: no such recipe", f"choose one of {', '.join(shipped_recipes())}")
    advice = understand(wish, chosen=choose)
    if advice.recipe is None:
        advice = _answered(wish, advice, reader)
    assert advice.recipe is not None
    if model is None:
        unfitted = "not fitted to a model yet: name one with --model, or later with --set model=..."
        return Recommendation(advice.recipe, _fields(advice), None, (*advice.reasons, unfitted))
    source = resolve(model)
    found = recommend(advice, Case(source, read_architecture(source.folder), detect(runs)))
    return replace(found, data={**found.data, "model": model})


def _answered(wish: str, advice: Advice, reader: Reader | None) -> Advice:
    """The open question, answered by the reader where there is one and it is sure enough."""
    answers = " or ".join(f"--choose {choice}" for choice in advice.choices)
    cure = f"say it again with {answers}"
    if reader is None:
        raise Waiting(str(advice.question), cure)
    leaning = reader(wish, advice.choices)
    choices = f"{leaning.share:.0%} of its belief in {len(advice.choices)} choices"
    said = f"{leaning.reader} leans to {leaning.recipe} ({choices})"
    if leaning.share < SURE:
        raise Waiting(f"{advice.question} {said}, which is too little to choose", cure)
    settled = understand(wish, chosen=leaning.recipe)
    why = f"{leaning.recipe}: {said}, since the rules leave it open: {advice.question}"
    return replace(settled, reasons=(settled.reasons[0], why, *settled.reasons[2:]))


def as_yaml(found: Recommendation) -> str:
    """The recipe as a file, with the reasons in it."""
    head = "".join(f"# {line}\n" for reason in found.reasons for line in textwrap.wrap(reason, 110))
    return head + yaml.safe_dump(found.data, sort_keys=False, allow_unicode=True, width=110)


def _recipe(advice: Advice, source: Source) -> dict[str, Any]:
    return {"model": str(source.folder), **_fields(advice)}


def _fields(advice: Advice) -> dict[str, Any]:
    data = load_yaml(find_recipe(Path(str(advice.recipe))))
    for field, value in advice.settings.items():
        set_field(data, f"{field}={value}")
    return data


def _possible(data: dict[str, Any], case: Case) -> tuple[dict[str, Any], list[str]]:
    """Drop what this model cannot do at any size: a window it has already, a mixture that its family has not."""
    given_up = []
    window, native = data.get("context"), case.base.native_context
    if window is not None and _tokens(str(window), native) <= native:
        given_up.append(f"no longer window: the model reads {native} tokens already, {window} were wished")
        data = _changed(data, {"context": None})
    if data.get("allow") and not _allowed(data, case):
        given_up.append(f"not by {', '.join(data['allow'])}: this model cannot grow that way; other operators do it")
        data = _changed(data, {"allow": None})
    if data.get("context") is None and data.get("parameters") is None:
        given_up.append("a little more room instead, since nothing else was left of the wish")
        data = _changed(data, {"parameters": "1.1x"})
    return data, given_up


def _allowed(data: dict[str, Any], case: Case) -> bool:
    try:
        solve(case.base, parse_target(str(data["parameters"]), case.base.parameters), allow=data["allow"])
    except ScalerError:
        return False
    return True


def _concessions(data: dict[str, Any], case: Case) -> Iterator[Concession]:
    """Changes to the recipe, the mildest first; each is laid over the ones before."""
    yield {}, ""
    if data.get("heal") is not False:
        yield {"heal.train": "lora", "heal.window": 512}, "adapters and short training windows, to fit the memory"
        yield {"heal.control": False}, "no control arm, to fit memory and disk"
    yield {"measure.windows": 1, "measure.needles": 4}, "fewer measurements"
    native = case.base.native_context
    target = _tokens(str(data["context"]), native) if data.get("context") is not None else native
    while target > 2 * native:
        target //= 2
        yield {"context": str(target)}, f"a window of {target} tokens instead"
    growth, mixture = _growth(data, case), "upcycle" in (data.get("allow") or ())
    while growth > LEAST_GROWTH:
        growth = 1 + (growth - 1) / 2
        smaller = {"parameters": f"{growth:.3g}x"} | ({"allow": None} if mixture else {})
        yield smaller, f"{growth:.3g}x the parameters instead" + (", without experts" if mixture else "")
    if data.get("heal") is not False:
        yield {"heal": False}, "no training here: the room is added and proved, to be filled on a larger machine"
    if target > native and growth > 1:
        yield {"context": None}, "the window stays as it is"


def _growth(data: dict[str, Any], case: Case) -> float:
    wish = data.get("parameters")
    if wish is None:
        return 1.0
    times = factor(str(wish))
    return times if times is not None else count(str(wish)) / case.base.parameters


def _tokens(wish: str, native: int) -> int:
    times = factor(wish)
    return int(native * times) if times is not None else count(wish, kilo=1024)


def _changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values; None takes a field away, a dotted name reaches into a group."""
    new = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for name, value in changes.items():
        group, _, field = name.rpartition(".")
        inner = new.setdefault(group, {}) if group else new
        if value is None:
            inner.pop(field, None)
        else:
            inner[field] = value
    return new


def _cost(plan: Plan) -> Iterator[str]:
    seconds, memory = plan.estimate.seconds, plan.estimate.memory_bytes
    if seconds is not None and memory is not None:
        yield f"by estimate {memory / GIB:.1f} GiB at most, {seconds / 60:.0f} minutes"
    if seconds is not None and seconds > DAY:
        yield f"it fits, but takes about {seconds / DAY:.0f} days here: a faster machine would be kinder"
