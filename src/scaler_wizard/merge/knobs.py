"""The numbers of a merge that a search turns: each model's weight, and `scale` or `t` where the method has one."""

from __future__ import annotations

from dataclasses import dataclass

from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.method import Method, WeightedModel
from scaler_wizard.merge.recipe import WeightSearch
from scaler_wizard.merge.settings import EVERYWHERE, Filtered, Setting, numbers
from scaler_wizard.merge.task import TaskArithmetic


@dataclass(frozen=True)
class Knob:
    """One number of a recipe that is searched."""

    name: str
    model: int | None
    """Which model's weight; None for a setting of the method."""

    def get(self, method: Method) -> float:
        """Its value."""
        return float(method.models[self.model].weight if self.model is not None else getattr(method, self.name))

    def set(self, method: Method, value: float) -> Method:
        """The method with another value."""
        block = method.model_dump(mode="json")
        if self.model is None:
            block[self.name] = value
        else:
            block["models"][self.model]["weight"] = value
        return type(method).read(block, "search")


def knobs(method: Method) -> list[Knob]:
    """The knobs of a merge, those that turn everything first: how much of all models is added decides most.

    Settings that differ by layer or part are no knobs.
    """
    whole = [Knob(name, None) for name in ("scale", "t") if isinstance(getattr(method, name, None), float | int)]
    return whole + [
        Knob(model.model, number)
        for number, model in enumerate(method.models)
        if isinstance(model, WeightedModel) and isinstance(model.weight, float | int)
    ]


def told(method: Method) -> dict[str, float]:
    """What a search found, in few numbers: every knob, and the mean of a model's weights where they differ by part."""
    found = {knob.name: knob.get(method) for knob in knobs(method)}
    for model in method.models:
        if isinstance(model, WeightedModel) and model.model not in found:
            weights = list(numbers(_named(model.weight)))
            found[model.model] = round(sum(weights) / len(weights), 4)
    return found


def _named(weight: Setting) -> Setting:
    """Without the value that is left for what no filter names, which a search does not turn."""
    if not isinstance(weight, tuple):
        return weight
    return tuple(part for part in weight if not isinstance(part, Filtered) or part.filter != EVERYWHERE) or weight  # type: ignore[return-value]


def refuse_search(method: Method, search: WeightSearch) -> None:
    """Refuse a search that has nothing to turn."""
    if search.tries == 1:
        return
    if search.by != "model" and not isinstance(method, TaskArithmetic):
        name = getattr(method, "method", "")
        raise ScalerError(f"search.by: {search.by}: not for {name}", "choose method: task_arithmetic, or by: model")
    if search.by == "model" and not knobs(method):
        raise ScalerError("search: this merge has no single weights to turn", "choose task_arithmetic, or leave it out")
