"""Prove on the user's own model that growth kept its function: the logits before and after, in fp32.

Compared are a plain pass, generation with a key/value cache, and a left-padded batch. One model is in memory at a
time. Not covered: sampling, and prompts other than those given.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaler_wizard.grow import Preserves
from scaler_wizard.record import Record
from scaler_wizard.untrusted.folder import inert

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LARGEST_DIFFERENCE = 1e-3  # of a logit, in fp32; longer sums round differently by about 1e-4
LARGEST_KL = 1e-6  # nats per position
DECODED = 4  # tokens that are generated one by one with the cache
KEPT_BYTES = 256 * 2**20  # logits that are kept of one model
ALIGNED = 64  # bytes; what an allocator gives
CHUNK = 16  # positions whose probabilities are compared at once, in double precision

Way = Literal["plain", "cached", "padded"]
Prompts = Sequence[Sequence[int]]


class Check(Record):
    """One way of running both models, and how far their logits are apart."""

    way: Way
    """plain: one pass over each prompt; cached: the last tokens one by one with a key/value cache; padded: all prompts
    in one left-padded batch."""
    positions: int
    """Positions that were compared."""
    largest_difference: float
    """Largest absolute difference of a logit."""
    logit_scale: float
    """Largest absolute logit before growth: what the difference is relative to."""
    kl: float
    """Mean Kullback-Leibler divergence of the grown model's predictions from the old ones, nats per position."""
    bitwise: bool
    """Not one bit differs."""


class Proof(Record):
    """What was promised, what was found, and whether the grown model may be kept."""

    promised: Preserves
    """bitwise, exact, or no."""
    checks: tuple[Check, ...]
    """What was compared; empty where nothing could be."""
    largest_difference: float | None
    """Largest difference of all checks; None where a check could not run."""
    kl: float | None
    """Largest divergence of all checks; None where a check could not run."""
    passed: bool
    """Whether the promise was kept; a proof that could not run has failed."""
    reason: str
    """The same in one sentence."""


def prove(before: Path, after: Path, prompts: Prompts, *, promised: Preserves) -> Proof:
    """Run both models on `prompts` (token numbers) and judge the difference by what was promised."""
    if not prompts or any(len(prompt) <= DECODED for prompt in prompts):
        return _failed(promised, f"each prompt needs more than {DECODED} tokens, and one prompt at least")
    try:
        old = _logits(before, prompts, keep=None)
        new = _logits(after, prompts, keep=old["plain"].shape[0] // len(prompts))
        checks = tuple(_compare(way, old[way], new[way]) for way in old)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the border to other people's model code: it may raise anything
        return _failed(promised, f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return judge(checks, promised)


def judge(checks: Sequence[Check], promised: Preserves) -> Proof:
    """Was the promise kept?"""
    difference = _largest(check.largest_difference for check in checks)
    kl = _largest(check.kl for check in checks)
    passed, reason = _verdict(difference, kl, all(check.bitwise for check in checks), promised)
    return Proof(
        promised=promised, checks=tuple(checks), largest_difference=difference, kl=kl, passed=passed, reason=reason
    )


def _verdict(difference: float, kl: float, bitwise: bool, promised: Preserves) -> tuple[bool, str]:
    found = f"largest change of a logit {difference:.1e}, divergence {kl:.1e} nats"
    if not (math.isfinite(difference) and math.isfinite(kl)):
        return False, "the grown model's logits are not finite"
    if promised == "no":
        return True, f"This growth changes the model and must be healed: {found}."
    if bitwise:
        return True, "The grown model gives the same logits, bit for bit."
    if promised == "bitwise":
        return False, f"equal bits were promised: {found}"
    if difference > LARGEST_DIFFERENCE or kl > LARGEST_KL:
        return False, f"{found}; limits {LARGEST_DIFFERENCE:.0e} and {LARGEST_KL:.0e}"
    return True, f"The grown model computes the same function: {found} (limits 1e-03 and 1e-06)."


def _failed(promised: Preserves, why: str) -> Proof:
    return Proof(
        promised=promised,
        checks=(),
        largest_difference=None,
        kl=None,
        passed=False,
        reason=f"the proof could not run: {why}",
    )


def _largest(values: Iterator[float]) -> float:
    """The largest; NaN if any is NaN, which `max` would lose."""
    found = list(values)
    return math.nan if any(math.isnan(value) for value in found) else max(found)


# -- comparing ------------------------------------------------------------------------------------------------------


def _compare(way: Way, old: torch.Tensor, new: torch.Tensor) -> Check:
    """Logits (positions, vocabulary); tokens that are new at the end of the vocabulary are left out."""
    import torch

    if old.shape[0] != new.shape[0] or old.shape[1] > new.shape[1]:
        raise ValueError(f"{way}: logits {tuple(old.shape)} before and {tuple(new.shape)} after")
    new = new[:, : old.shape[1]]
    kl = torch.cat([_divergence(a, b) for a, b in zip(old.split(CHUNK), new.split(CHUNK), strict=True)]).mean().item()
    return Check(
        way=way,
        positions=old.shape[0],
        largest_difference=(new - old).abs().max().item(),
        logit_scale=old.abs().max().item(),
        kl=abs(kl),  # rounding may take it just below zero
        bitwise=torch.equal(old, new),
    )


def _divergence(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    import torch

    log_old, log_new = (torch.log_softmax(logits.double(), dim=-1) for logits in (old, new))
    return (log_old.exp() * (log_old - log_new)).sum(-1)


# -- running one model ----------------------------------------------------------------------------------------------


def _logits(folder: Path, prompts: Prompts, *, keep: int | None) -> dict[Way, torch.Tensor]:
    """fp32 logits of the last `keep` positions of each prompt, as (positions, vocabulary), for each way."""
    import torch

    model = load_exactly(folder)
    if keep is None:
        fitting = KEPT_BYTES // (4 * int(model.config.vocab_size) * 3 * len(prompts))
        keep = min(max(fitting, 1), *(len(prompt) for prompt in prompts))
    ways: dict[Way, Callable[[PreTrainedModel, Prompts, int], torch.Tensor]] = {
        "plain": _plain,
        "cached": _cached,
        "padded": _padded,
    }
    with torch.inference_mode():
        found = {way: run(model, prompts, keep) for way, run in ways.items()}
    del model
    gc.collect()
    return found


def load_exactly(folder: Path) -> PreTrainedModel:
    """The model in fp32, with every weight from the file: transformers fills missing ones with random numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with inert(folder) as view:
        model, info = AutoModelForCausalLM.from_pretrained(
            view,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]
    if wrong:
        raise ValueError(f"{len(wrong)} weights of {folder.name} do not fit its configuration, such as {wrong[0]}")
    _align(model)
    model.eval()
    return model


def _align(model: PreTrainedModel) -> None:
    """Move weights that a file's header has pushed off the grid: there, kernels add in another order."""
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNED:
            parameter.data = parameter.data.clone()


def _plain(model: PreTrainedModel, prompts: Prompts, keep: int) -> torch.Tensor:
    import torch

    return torch.cat([model(torch.tensor([list(prompt)]), logits_to_keep=keep).logits[0] for prompt in prompts])


def _cached(model: PreTrainedModel, prompts: Prompts, keep: int) -> torch.Tensor:
    import torch

    found = []
    for prompt in prompts:
        tokens = torch.tensor([list(prompt)])
        step = model(tokens[:, :-DECODED], use_cache=True, logits_to_keep=1)
        found.append(step.logits[0])
        for place in range(tokens.shape[1] - DECODED, tokens.shape[1]):
            step = model(tokens[:, place : place + 1], past_key_values=step.past_key_values, use_cache=True)
            found.append(step.logits[0])
    return torch.cat(found)


def _padded(model: PreTrainedModel, prompts: Prompts, keep: int) -> torch.Tensor:
    import torch

    width = max(len(prompt) for prompt in prompts) + 2  # even the longest is padded
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(tokens, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits
    return logits.flatten(0, 1)
