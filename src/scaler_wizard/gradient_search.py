"""One weight for every matrix of every model of a merge, learnt from the loss on calibration text.

A merged matrix is base + sum of w_i D_i, so the slope of the loss in w_i is the inner product of D_i with the slope in
the matrix: one backward pass gives those of all weights. The grain is that of layer-wise AdaMerging (arXiv:2310.02575),
matrix by matrix; what falls is the loss on text instead of the entropy of unlabelled answers. Holds the model and every
model's changes in memory in fp32, and one gradient at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scaler_wizard.data import Tokens
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge import Parent, TaskArithmetic, Tensors
from scaler_wizard.merge.method import positive_sum
from scaler_wizard.merge.program import merged_view, placed
from scaler_wizard.weights import Expression, values

if TYPE_CHECKING:
    import torch

RATE = 0.05
"""Adam's peak step: a weight moves by about half of RATE x steps at most."""
WARM_UP = 0.15
"""Share of the steps in which the step rises."""
BETAS = (0.9, 0.95)


def gradient_search(
    method: TaskArithmetic,
    parents: Mapping[str, Parent],
    texts: Mapping[str, Tokens],
    gains: Mapping[str, float],
    *,
    steps: int,
    go_on: Callable[[], bool] = lambda: True,
) -> TaskArithmetic:
    """The method with a weight for every matrix that some model changed; its own weights are where the search begins.

    texts are windows (count, length) by name, read in turn, one of each text a step; gains by the same names are what
    the best parent gained over the base: the loss of each text counts as a share of that. Stops after `steps`, or when
    `go_on`, asked before each, says no.
    """
    import torch

    from scaler_wizard.models import empty_model

    view = merged_view(method, parents)
    if view.experts is not None:
        raise ScalerError("by: matrix: the experts of a mixture are not matrices of their own", "search by: model")
    model = empty_model(dict(view.config), dtype="float32").requires_grad_(False)
    matrices = list(_matrices(model, method, parents))
    optimiser = torch.optim.Adam([one.weights for one in matrices], lr=RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=max(steps, 2), pct_start=WARM_UP)
    for step in range(steps):
        if not go_on():
            break
        _loss(model, texts, gains, step).backward()
        optimiser.step()
        schedule.step()
        for one in matrices:
            one.put()
    return _method(method, {one.name: one.weights.detach().tolist() for one in matrices})


class MixedMatrix:
    """One tensor of the merged model as base + sum of w_i D_i; its gradient becomes that of the weights at once."""

    def __init__(
        self, name: str, parameter: torch.nn.Parameter, base: torch.Tensor, changes: torch.Tensor, start: list[float]
    ) -> None:
        self.name = name
        self.weights = parameter.new_tensor(start).requires_grad_(True)
        self._parameter, self._base, self._changes = parameter, base, changes
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(self._project)
        self.put()

    def put(self) -> None:
        """Mix by the weights as they are now."""
        mixed = self._base + self.weights.detach() @ self._changes
        self._parameter.data.copy_(mixed.view_as(self._parameter))

    def _project(self, parameter: torch.Tensor) -> None:
        """Free the matrix's gradient as soon as it is known along the changes."""
        assert parameter.grad is not None
        self.weights.grad = self._changes @ parameter.grad.flatten()
        parameter.grad = None


def _matrices(model: Any, method: TaskArithmetic, parents: Mapping[str, Parent]) -> Iterator[MixedMatrix]:
    """Fill the model; every tensor that some model changed, mixed by the method's own weights."""
    import torch

    parameters = dict(model.named_parameters())
    for tensors in placed(method, parents):
        parameter = parameters[tensors.name]
        base, *models = (_numbers(one, method.seed) for one in tensors.bases)
        with torch.no_grad():
            parameter.copy_(base.view_as(parameter))
        changes = torch.stack([one - base for one in models])
        if changes.any():
            yield MixedMatrix(tensors.name, parameter, base, changes, start=shares(method, tensors))


def shares(method: TaskArithmetic, tensors: Tensors) -> list[float]:
    """What each change is multiplied with in the end."""
    scale = tensors.value(method.scale)
    total = positive_sum(tensors.weights, tensors.name) if method.normalize else 1.0
    return [scale * weight / total for weight in tensors.weights]


def _method(method: TaskArithmetic, found: Mapping[str, list[float]]) -> TaskArithmetic:
    """The weights as filters; every other tensor is the same in all models."""
    block = method.model_dump(mode="json") | {"scale": 1.0, "normalize": False}
    for number, model in enumerate(block["models"]):
        filters = [{"filter": name, "value": round(weights[number], 4)} for name, weights in found.items()]
        model["weight"] = [*filters, {"value": 0.0}]
    return TaskArithmetic.read(block, "search")


def _numbers(expression: Expression, seed: int) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.concatenate(list(values(expression, seed=seed))))


def _loss(model: Any, texts: Mapping[str, Tokens], gains: Mapping[str, float], step: int) -> torch.Tensor:
    """Mean over texts of (loss / gain), of each text's next window."""
    import torch

    from scaler_wizard.losses import head_loss

    rows = [ids[step % len(ids)] for ids in texts.values()]
    batch = torch.from_numpy(np.stack(rows).astype(np.int64)).to(model.device)
    hidden = model.model(input_ids=batch, use_cache=False).last_hidden_state[:, :-1]
    shares = torch.tensor([1 / gains[name] for name in texts])[:, None].expand(hidden.shape[:2]).flatten()
    return head_loss(model, hidden.flatten(0, 1), batch[:, 1:].flatten(), weights=shares)
