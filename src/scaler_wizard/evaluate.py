"""Measure a model outside a run (`scaler eval MODEL`): the same measurement that a run's gates judge by."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from scaler_wizard.architecture import read_architecture
from scaler_wizard.context.native import NativeWindow
from scaler_wizard.errors import ScalerError
from scaler_wizard.hardware import detect
from scaler_wizard.metrics import Measurement
from scaler_wizard.models import resolve
from scaler_wizard.plan import Setting, measure_spec, target_context
from scaler_wizard.recipe import Recipe, count

if TYPE_CHECKING:
    from scaler_wizard.evals.ruler import RulerScore

EVERY_SECONDS = 5.0


def evaluate_model(model: str, *, context: str | None, data: str) -> Measurement:
    """Measure on held-out text out to `context` (the model's own window where left out); talks on standard error."""
    from scaler_wizard.data import encode, load_corpus
    from scaler_wizard.evals.measure import measure
    from scaler_wizard.models import load_model, load_tokenizer, quiet

    source = resolve(model)
    found = read_architecture(source.folder)
    recipe = Recipe(model=model, context=context, data=data)
    setting = Setting(recipe, found, detect(source.folder))
    length = found.native_context if context is None else target_context(setting)
    quiet()
    tokenizer = load_tokenizer(source.folder)
    return measure(
        load_model(source.folder),
        tokenizer,
        held_out=encode(load_corpus(data).heldout, tokenizer),
        corpus=data,
        native=found.native_context,
        spec=measure_spec(setting, length),
        progress=Talk(),
    )


def measure_window(model: str, *, data: str) -> NativeWindow:
    """How much of the window that its configuration claims a model reads well; plans start their ladder there."""
    from scaler_wizard.evals.window import measure_native
    from scaler_wizard.models import load_model, quiet

    source = resolve(model)
    quiet()
    base = read_architecture(source.folder)
    return measure_native(base, load_model(source.folder), data=data, native=base.native_context)


def ruler_scores(model: str, lengths: Sequence[str], *, data: str, examples: int) -> tuple[RulerScore, ...]:
    """RULER's thirteen tasks at these lengths ("4K"), on held-out text."""
    from scaler_wizard.data import load_corpus
    from scaler_wizard.evals.ruler import TASKS, ruler
    from scaler_wizard.models import load_model, load_tokenizer, quiet

    source = resolve(model)
    quiet()
    essay = max((document.text for document in load_corpus(data).heldout), key=len)
    try:
        wanted = [count(length, kilo=1024) for length in lengths]
    except ValueError as error:
        raise ScalerError(f"--ruler: {error}", "for example --ruler 4K") from None
    return ruler(
        load_model(source.folder),
        load_tokenizer(source.folder),
        essay,
        lengths=wanted,
        tasks=list(TASKS),
        examples=examples,
    )


def effective(scores: Sequence[RulerScore]) -> int | None:
    """The longest length up to which the tasks' mean stays at 85 % of that at the shortest; None for one length."""
    from scaler_wizard.evals.ruler import effective_length

    lengths = sorted({one.length for one in scores})
    means = {length: fmean(one.score.value for one in scores if one.length == length) for length in lengths}
    return effective_length(means, reference=means[lengths[0]]) if len(lengths) > 1 else None


class Talk:
    """Progress on standard error, a line every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, share: float, doing: str) -> None:
        """Say how far it is."""
        if time.monotonic() - self._last > EVERY_SECONDS:
            self._last = time.monotonic()
            sys.stderr.write(f"{share:>4.0%} {doing}\n")
            sys.stderr.flush()
