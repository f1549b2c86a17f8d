"""The numbers of a merge that a search turns: each model's weight, and `scale` or `t` where the method has one."""

from __future__ import annotations

from dataclasses import dataclass

from scaler_wizard.merge.method import Method, WeightedModel


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
