"""Add weighted task vectors to the base (task arithmetic, arXiv:2212.04089)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaler_wizard.merge.method import Method, Tensors, WeightedModel
from scaler_wizard.merge.settings import Scale
from scaler_wizard.merge.vectors import Weigh
from scaler_wizard.weights import Blend, Expression


class TaskArithmetic(Method):
    """The base and the weighted sum of what the models added to it."""

    title: ClassVar[str] = "sum of task vectors"
    paper: ClassVar[str] = "task arithmetic, arXiv:2212.04089"
    base_is: ClassVar[Literal["needed", "possible", "not used"]] = "needed"

    method: Literal["task_arithmetic"] = "task_arithmetic"
    """Which method."""
    models: Annotated[tuple[WeightedModel, ...], Field(min_length=1)]
    """The models, each with its `weight`."""
    scale: Scale = 1.0
    """Times the sum (lambda in the paper)."""
    normalize: bool = False
    """Divide by the sum of the weights."""

    def merged(self, tensors: Tensors) -> Expression:
        """base + scale * sum of w_i * (x_i - base)."""
        kernel = Weigh(tensors.weights, normalize=self.normalize, scale=tensors.value(self.scale))
        return Blend(tensors.bases, kernel, tensors.dtype, tensors.name)
