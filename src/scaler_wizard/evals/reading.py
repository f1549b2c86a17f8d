"""How well a model reads windows of text: the loss of each, and the share of its tokens that were the likeliest one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaler_wizard.evals.perplexity import Floats, Ints, logits_of

WINDOWS_AT_ONCE = 8
LOGITS_AT_ONCE = 128
"""Rows of whole logits held at once: 25 MB for a vocabulary of 49K in fp32."""


@dataclass(frozen=True)
class Reading:
    """What one model made of the same windows: both (windows,)."""

    losses: Floats
    """Mean loss of each window, nats per token."""
    right: Floats
    """Share of each window's tokens that the model held for the likeliest."""


@torch.inference_mode()
def read_windows(model: Any, windows: Ints) -> Reading:
    """Read (windows, length) ids in one pass each; the first token of a window is not scored."""
    pieces = [_scored(model, windows[at : at + WINDOWS_AT_ONCE]) for at in range(0, len(windows), WINDOWS_AT_ONCE)]
    losses, right = (np.concatenate(parts).reshape(len(windows), -1) for parts in zip(*pieces, strict=True))
    return Reading(losses.mean(axis=1), right.mean(axis=1))


def _scored(model: Any, windows: Ints) -> tuple[Floats, Floats]:
    """Loss of every token, and 1 where it was the likeliest: both flat."""
    ids = torch.from_numpy(windows.astype(np.int64)).to(model.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten()
    losses, right = [], []
    for at in range(0, len(targets), LOGITS_AT_ONCE):
        goals = targets[at : at + LOGITS_AT_ONCE]
        logits = logits_of(model, hidden[at : at + LOGITS_AT_ONCE])
        losses.append(torch.nn.functional.cross_entropy(logits, goals, reduction="none"))
        right.append(logits.argmax(-1) == goals)
    return torch.cat(losses).double().cpu().numpy(), torch.cat(right).double().cpu().numpy()
