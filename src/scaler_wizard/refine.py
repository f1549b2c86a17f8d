"""Rotary factors by gradient: one for each pair of dimensions, begun at the best point that a search found.

An option, off by default: with d/2 free numbers it may learn the calibration windows by heart (docs/log.md). Three
guards: the factors stay monotone and within [1, 2s], so that slower pairs are never stretched less; three quarters of
the windows teach and the last quarter says when to stop; and what comes out is one more finalist, judged beside the
rest on other text of the true length. The weights are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from scaler_wizard.attention import by_piece
from scaler_wizard.calibrate import Asked, Calibration, Sample
from scaler_wizard.context.frequencies import frequencies, plain
from scaler_wizard.context.rope import extended_config, positions
from scaler_wizard.context.search import Candidate
from scaler_wizard.errors import ScalerError
from scaler_wizard.losses import head_loss

LEARNING_RATE = 0.02
LOOK_EVERY, PATIENCE = 5, 3
"""Steps between two looks at the windows that do not teach, and looks without a better score before it ends."""
LEAST_SCALE, MOST_SCALE = 0.9, 1.6
ROWS_AT_ONCE = 4


class Turned(torch.nn.Module):  # type: ignore[misc]
    """Stands in for a model's rotary embedding, with factors that learn."""

    def __init__(self, plain_inverse: torch.Tensor, factors: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.plain = plain_inverse
        self.factors = torch.nn.Parameter(factors.log())
        self.scale = torch.nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, tokens) positions -> cos and sin (n, tokens, width), times the scale."""
        angles = position_ids[..., None].float() * (self.plain / self.factors.exp())
        both = torch.cat([angles, angles], dim=-1)
        return (both.cos() * self.scale.exp()).to(x.dtype), (both.sin() * self.scale.exp()).to(x.dtype)

    @torch.no_grad()
    def project(self, most: float) -> None:
        """Factors monotone in the pairs, from 1 to `most`; a scale that no paper exceeds."""
        self.factors.copy_(self.factors.clamp(0, math.log(most)).cummax(0).values)
        self.scale.clamp_(math.log(LEAST_SCALE), math.log(MOST_SCALE))

    @torch.no_grad()
    def candidate(self) -> Candidate:
        """The factors as settings that anyone can run."""
        options: dict[str, Any] = {
            "long_factor": tuple(round(float(value), 6) for value in self.factors.exp()),
            "attention_factor": round(float(self.scale.exp()), 6),
        }
        return Candidate(name="gradient", method="longrope", options=options)


def refine(
    calibration: Calibration, begin: Candidate, *, steps: int, over: Callable[[], bool] = lambda: False
) -> Candidate:
    """Factors that score better than `begin` on windows that did not teach; `begin` itself where none do.

    Raises ScalerError where the base is scaled already or has two sets of settings: factors would replace the scaling.
    """
    turned, most = _turned(calibration, begin)
    teaching, watching = _apart(calibration.first)
    best, lowest, waited = begin, calibration.on(watching, begin).total, 0
    optimiser = torch.optim.Adam(turned.parameters(), lr=LEARNING_RATE)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        _descend(calibration.model, turned, teaching, step)
        optimiser.step()
        turned.project(most)
        if step % LOOK_EVERY and step < steps:
            continue
        score = calibration.on(watching, turned.candidate()).total
        best, lowest, waited = (turned.candidate(), score, 0) if score < lowest else (best, lowest, waited + 1)
        if waited == PATIENCE or over():
            break
    return best


def _turned(calibration: Calibration, begin: Candidate) -> tuple[Turned, float]:
    base = positions(calibration.base)
    if base.rope["rope_type"] != "default" or "layer_types" in calibration.base.get("rope_parameters", {}):
        raise ScalerError("extend.gradient: the base is scaled already", "leave extend.gradient out")
    options: dict[str, Any] = dict(begin.options)
    found = positions(extended_config(calibration.base, calibration.length, begin.method, **options))
    now = frequencies(found.rope, width=base.width, window=found.window)
    inverse = plain(base.theta, base.width)
    factors = torch.tensor(inverse / now.inverse, dtype=torch.float32)
    turned = Turned(torch.tensor(inverse, dtype=torch.float32), factors, now.scale)
    most = 2 * calibration.length / base.window
    turned.project(most)
    return turned.to(calibration.model.device), most


def _apart(drawn: Sample) -> tuple[Sample, Sample]:
    """Three quarters of a sample, and the rest."""
    at, short = max(1, len(drawn.ids) * 3 // 4), max(1, len(drawn.short) * 3 // 4)
    return _part(drawn, slice(at), slice(short)), _part(drawn, slice(at, None), slice(short, None))


def _part(drawn: Sample, rows: slice, short: slice) -> Sample:
    questions = tuple(Asked(one.ids[rows], one.answers[rows]) for one in drawn.questions)
    return replace(
        drawn, ids=drawn.ids[rows], positions=drawn.positions[rows], questions=questions, short=drawn.short[short]
    )


def _descend(model: Any, turned: Turned, drawn: Sample, step: int) -> None:
    """Gradients of far + long + short, as the score adds them up; one question a window, another one at each step."""
    question = drawn.questions[step % len(drawn.questions)]
    before = model.model.rotary_emb
    model.requires_grad_(False)
    model.model.rotary_emb = turned
    try:
        for at in range(0, len(drawn.ids), ROWS_AT_ONCE):
            rows = slice(at, at + ROWS_AT_ONCE)
            share = len(drawn.ids[rows]) / len(drawn.ids)
            (_long(model, _part(drawn, rows, slice(0)), _part_of(question, rows)) * share).backward()
        _short(model, drawn).backward()
    finally:
        model.model.rotary_emb = before


def _part_of(question: Asked, rows: slice) -> Asked:
    return Asked(question.ids[rows], question.answers[rows])


def _long(model: Any, drawn: Sample, question: Asked) -> torch.Tensor:
    """Mean loss of the answers and of the text in the second half."""
    text, asked = (torch.from_numpy(part).long().to(model.device) for part in (drawn.ids, question.ids))
    places = torch.from_numpy(drawn.positions).long().to(model.device)
    after = places[:, -1:] + 1 + torch.arange(asked.shape[1], device=places.device)
    ids, read = torch.cat([text, asked], 1), text.shape[1]
    hidden = _hidden(model, ids, torch.cat([places, after], 1))
    half = read // 2
    long = head_loss(model, hidden[:, half : read - 1].flatten(0, 1), ids[:, half + 1 : read].flatten())
    rows = [slice(read + one.start - 1, read + one.stop - 1) for one in question.answers]
    states = torch.cat([row[part] for row, part in zip(hidden, rows, strict=True)])
    told = torch.cat([row[part.start + 1 : part.stop + 1] for row, part in zip(ids, rows, strict=True)])
    return long + head_loss(model, states, told)


def _short(model: Any, drawn: Sample) -> torch.Tensor:
    ids = torch.from_numpy(drawn.short).long().to(model.device)
    hidden = _hidden(model, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
    return head_loss(model, hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _hidden(model: Any, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(n, tokens, hidden); all rows end to end, since transformers would take skipped positions for packed texts."""
    count, length = ids.shape
    with by_piece(model):
        flat = model.model(
            input_ids=ids.reshape(1, -1), position_ids=places.reshape(1, -1), use_cache=False, pieces=[length] * count
        ).last_hidden_state
    hidden: torch.Tensor = flat.reshape(count, length, -1)
    return hidden
