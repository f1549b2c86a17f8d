"""Loss of a model on text, token by token, without ever holding the logits of a whole window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaler_wizard.context.frequencies import one_shot
from scaler_wizard.context.rope import rope_of
from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.onward import onward
from scaler_wizard.metrics import Bucket

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

CHUNK = 2048
"""Tokens of one forward pass; longer windows are read piece by piece into a cache."""
TOKENS_AT_ONCE = 8192
"""Short windows are scored in batches of about this many tokens."""
ROWS_AT_ONCE, WORDS_AT_ONCE = 1024, 2048
"""Logits held at once: 8 MB in fp32, and as much for their exponentials; the slices of the head stay in the cache."""
BLOCK = 64
"""Tokens that are resampled together: neighbouring losses are not independent."""

Visit = Callable[[int, Any], None]
"""Called with (tokens read, cache) after every piece of a long window."""


@torch.inference_mode()
def token_nll(model: Any, windows: Ints, *, visit: Visit | None = None, stops: tuple[int, ...] = ()) -> Floats:
    """Loss of every token after the first, nats: (n, length) ids -> (n, length - 1).

    A window longer than CHUNK is read in pieces that end at multiples of CHUNK and at `stops`; the scores are those
    of one whole pass. `visit` sees the cache at each end, and must leave it as it was. Where the frequencies follow the
    length of the text (dynamic NTK), pieces would be read at other frequencies than the whole: there is one pass only.
    """
    pieces = windows.shape[1] > CHUNK
    if pieces and one_shot(rope_of(model.config.to_dict())):
        pieces = False
        if visit is not None:
            raise ScalerError(
                "facts cannot be asked for along one pass: the frequencies follow the length of the text",
                "stretch the window with a static method (yarn, llama3, linear or searched)",
            )
    if pieces:
        return np.stack([_long(model, row, visit, stops) for row in windows])
    rows = max(1, TOKENS_AT_ONCE // windows.shape[1])
    return np.concatenate([_batch(model, windows[at : at + rows]) for at in range(0, len(windows), rows)])


def _batch(model: Any, windows: Ints) -> Floats:
    ids = torch.from_numpy(windows.astype(np.int64)).to(model.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return nll_of(model, hidden.flatten(0, 1), ids[:, 1:].flatten()).reshape(len(windows), -1)


def _long(model: Any, window: Ints, visit: Visit | None, stops: tuple[int, ...]) -> Floats:
    ids = torch.from_numpy(window.astype(np.int64)).to(model.device)[None]
    ends = sorted({*range(CHUNK, len(window), CHUNK), *(s for s in stops if s < len(window)), len(window)})
    cache, start, found = None, 0, []
    with onward(model):
        for end in ends:
            answer = model.model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            last = min(end + 1, len(window))
            found.append(nll_of(model, answer.last_hidden_state[0, : last - start - 1], ids[0, start + 1 : last]))
            start = end
            if visit is not None:
                visit(end, cache)
    return np.concatenate(found)


def nll_of(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> Floats:
    """Loss of each target (tokens,) given its hidden state (tokens, hidden); the softmax runs in fp32.

    bf16 logits would raise the perplexity by more than half a per cent, which is more than a gate may overlook.
    """
    rows = zip(hidden.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    pieces = [_nll(model, states, goals) for states, goals in rows if len(goals)]
    found: Floats = torch.cat(pieces).double().cpu().numpy() if pieces else np.empty(0)
    return found


def _nll(model: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logarithm of the summed exponentials, over slices of the vocabulary, less the target's own logit.

    The latter is computed in fp32: a product in bfloat16 rounds every logit, which evens out in the sum and does not in
    the target's.
    """
    head = model.lm_head
    bias = getattr(head, "bias", None)
    exact = (states.float() * head.weight[targets].float()).sum(-1)
    exact = _scaled(model, exact if bias is None else exact + bias[targets].float())
    total = torch.full_like(exact, -torch.inf)
    for at in range(0, len(head.weight), WORDS_AT_ONCE):
        words = slice(at, at + WORDS_AT_ONCE)
        with torch.autocast(model.device.type, enabled=False):  # a training's autocast would round the logits
            logits = torch.nn.functional.linear(
                states.to(head.weight.dtype), head.weight[words], None if bias is None else bias[words]
            ).float()
        logits = _scaled(model, logits)
        inside = ((targets >= at) & (targets < at + WORDS_AT_ONCE)).nonzero()[:, 0]
        logits[inside, targets[inside] - at] = exact[inside]
        total = torch.logaddexp(total, logits.logsumexp(-1))
    return total - exact


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits in fp32, with the family's divisor (Granite) and final cap (Gemma 2) where it has them."""
    with torch.autocast(model.device.type, enabled=False):  # a training's autocast would round the logits
        logits: torch.Tensor = model.lm_head(hidden.to(model.lm_head.weight.dtype)).float()
    return _scaled(model, logits)


def _scaled(model: Any, logits: torch.Tensor) -> torch.Tensor:
    divisor = getattr(model.config, "logits_scaling", None)
    if divisor:
        logits = logits / divisor
    cap = getattr(model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def truncated_nll(model: Any, windows: Ints, native: int) -> Floats:
    """Loss of the last native/2 tokens of each window when only its last `native` tokens are given.

    Each scored token has native/2 to native - 1 tokens before it: (n, length) -> (n, native / 2).
    """
    nll: Floats = token_nll(model, windows[:, -native:])
    return nll[:, -(native // 2) :]


def sliding_nll(model: Any, windows: Ints, length: int, stride: int) -> Floats:
    """Loss of every token after the first when a window of `length` slides over the text in steps of `stride`.

    Each token beyond the first window has length - stride to length - 1 tokens before it; YaRN's tables slide by 256
    (arXiv:2309.00071). (n, tokens) -> (n, tokens - 1).
    """
    total = windows.shape[1]
    if not 0 < stride < length:
        raise ValueError(f"stride {stride} must be below the window's {length}")
    if total <= length:
        whole: Floats = token_nll(model, windows)
        return whole
    found = np.empty((len(windows), total - 1))
    found[:, : length - 1] = token_nll(model, windows[:, :length])
    for done in range(length, total, stride):
        end = min(done + stride, total)
        found[:, done - 1 : end - 1] = token_nll(model, windows[:, end - length : end])[:, -(end - done) :]
    return found


def buckets(nll: Floats, size: int, *, keep: npt.NDArray[np.bool_], truncated: Floats | None) -> tuple[Bucket, ...]:
    """Mean loss by position of the scored token; `keep` leaves planted sentences out."""
    length = nll.shape[1] + 1
    found = []
    for start in range(0, length, size):
        end = min(start + size, length)
        part = slice(max(start, 1) - 1, end - 1)
        kept = keep[:, part]
        if kept.any():
            found.append(
                Bucket(
                    start=start,
                    end=end,
                    nll=float(nll[:, part][kept].mean()),
                    truncated_nll=_truncated_bucket(truncated, start, end, length, keep),
                    tokens=int(kept.sum()),
                )
            )
    return tuple(found)


def _truncated_bucket(
    truncated: Floats | None, start: int, end: int, length: int, keep: npt.NDArray[np.bool_]
) -> float | None:
    first = length - (0 if truncated is None else truncated.shape[1])
    if truncated is None or start < first:
        return None
    part, kept = truncated[:, start - first : end - first], keep[:, start - 1 : end - 1]
    return float(part[kept].mean()) if kept.any() else None


def block_means(nll: Floats, keep: npt.NDArray[np.bool_]) -> Floats:
    """Mean of each block of BLOCK neighbouring tokens, from the end backwards: (n, tokens) -> (blocks,).

    `keep` leaves planted sentences out; a block that has nothing else is NaN.
    """
    size = min(BLOCK, nll.shape[1])
    width = nll.shape[1] // size * size
    kept = np.where(keep, nll, np.nan)[:, -width:].reshape(-1, size)
    counts = np.sum(~np.isnan(kept), axis=1)
    return np.where(counts > 0, np.nansum(kept, axis=1) / np.maximum(counts, 1), np.nan)
