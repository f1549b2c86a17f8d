"""How far a model really reads: the window that its losses show, whatever its configuration claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scaler_wizard.architecture import Architecture
from scaler_wizard.context.native import NativeWindow, remember
from scaler_wizard.data import encode, load_corpus
from scaler_wizard.data import windows as cut
from scaler_wizard.evals.perplexity import Floats, Ints, block_means, sliding_nll, token_nll
from scaler_wizard.intervals import paired_gain
from scaler_wizard.models import load_tokenizer

MOST_WINDOWS, MOST_TOKENS = 32, 8192
"""Texts that are read: many short ones, or one long one."""
LOSS = 0.02
"""Loss against a sliding window, nats per token, above which far text no longer helps but harms."""


@dataclass(frozen=True)
class Reach:
    """Loss of the tokens at positions [start, end) with all text before them, less that with a sliding window."""

    start: int
    end: int
    worse: float
    """Nats per token; below 0 the long text helps."""
    low: float
    """Lower end of its 95 % interval."""


@dataclass(frozen=True)
class MeasuredWindow:
    """Where the losses turn up."""

    tokens: int | None
    """Longest window without harm; None where even the first stretch beyond the sliding window is harmed."""
    reaches: tuple[Reach, ...]

    @property
    def open(self) -> bool:
        """Whether no harm was seen as far as the text went: the window may be longer."""
        return self.tokens is not None and self.tokens == self.reaches[-1].end


def measure_native(base: Architecture, model: Any, *, data: str, native: int, seed: int = 0) -> NativeWindow:
    """How much of a window of `native` tokens a base reads well, on held-out text; kept for the next plan."""
    held_out = encode(load_corpus(data).heldout, load_tokenizer(base.folder))
    text = cut(held_out, native, limit=min(MOST_WINDOWS, max(1, MOST_TOKENS // native)))
    found = measured_window(model, text, claimed=native, seed=seed)
    measured = NativeWindow(claimed=base.native_context, measured=found.tokens or native // 2)
    remember(base, measured)
    return measured


def measured_window(
    model: Any, windows: Ints, *, claimed: int, bucket: int | None = None, seed: int = 0
) -> MeasuredWindow:
    """Read texts (n, length) whole and by a window of half the claimed size, and see up to where the whole is as good.

    A stretch is harmed where its loss is more than LOSS above that of the sliding window, and not by chance; one
    harmed stretch with a good one after it is taken for chance. Text that ends with the claimed window can only show
    that it is shorter, text of twice the length also that it is longer.
    """
    length, slide = claimed // 2, claimed // 4
    whole, sliding = token_nll(model, windows), sliding_nll(model, windows, length, slide)
    size = bucket or claimed // 8
    reaches = tuple(
        _reach(whole, sliding, start, min(start + size, windows.shape[1]), seed)
        for start in range(length, windows.shape[1] - size // 2, size)
    )
    tokens: int | None = None
    for number, reach in enumerate(reaches):
        if all(later.worse > LOSS and later.low > 0 for later in reaches[number : number + 2]):
            break
        tokens = reach.end
    return MeasuredWindow(tokens, reaches)


def _reach(whole: Floats, sliding: Floats, start: int, end: int, seed: int) -> Reach:
    part = slice(start - 1, end - 1)
    keep = np.ones_like(whole[:, part], dtype=bool)
    found = paired_gain(block_means(whole[:, part], keep), block_means(sliding[:, part], keep), seed=seed)
    return Reach(start, end, found.value, found.low)
