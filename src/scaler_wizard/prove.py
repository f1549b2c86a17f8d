"""Prove on the user's own model that growth kept its function: the logits before and after, in fp32.

Compared are a plain pass, generation with a key/value cache, and a left-padded batch. One model is in memory at a
time, and of a model that does not fit one module at a time. A model stored in 16 bits is also compared as stored: it
may not be further from the fp32 base than the base itself is. Not covered: sampling, and other prompts.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scaler_wizard.architecture import Blueprint, read_architecture
from scaler_wizard.grow import Preserves
from scaler_wizard.hardware import detect
from scaler_wizard.layerwise import from_files, from_program, layerwise_model
from scaler_wizard.record import Record
from scaler_wizard.untrusted.folder import inert
from scaler_wizard.weights import Program

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LARGEST_DIFFERENCE = 1e-3  # of a logit, in fp32; longer sums round differently by about 1e-4
LARGEST_KL = 1e-6  # nats per position
LARGEST_RATIO = 1.5  # of the divergence as stored to that of the base: 1.0 to 1.3 is what longer sums cost
USABLE = 0.8  # of the free memory
DECODED = 4  # tokens that are generated one by one with the cache
KEPT_BYTES = 256 * 2**20  # logits that are kept of one model
ALIGNED = 64  # bytes; what an allocator gives
CHUNK = 16  # positions whose probabilities are compared at once, in double precision

Prompts = Sequence[Sequence[int]]


class Check(Record):
    """One way of running both models, and how far their logits are apart."""

    way: str
    """plain: one pass over each prompt; cached: the last tokens with a key/value cache; padded: all prompts in one
    left-padded batch; all in fp32. stored: one pass in the type that the weights are stored in, against the base in
    fp32. "unrounded ...": with the grown weights before they were rounded to that type."""
    positions: int
    """Positions that were compared."""
    largest_difference: float
    """Largest absolute difference of a logit."""
    logit_scale: float
    """Largest absolute logit before growth: what the difference is relative to."""
    kl: float
    """Mean Kullback-Leibler divergence of the grown model's predictions from the old ones, nats per position."""
    bitwise: bool
    """Not one bit differs (from the base in the same type)."""
    own_kl: float | None = None
    """The base's own divergence as stored from itself in fp32; null for the other ways."""


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


def prove(
    before: Path,
    after: Path,
    prompts: Prompts,
    *,
    promised: Preserves,
    program: Program | None = None,
    layerwise: bool | None = None,
) -> Proof:
    """Run both models on `prompts` (token numbers) and judge the difference by what was promised.

    `program` is what wrote `after`: where weights were rescaled and rounded to 16 bits, its unrounded numbers tell the
    operators' error from the rounding. `layerwise` reads the weights module by module; left out, it is done where
    the larger model does not fit into free memory.
    """
    if not prompts or any(len(prompt) <= DECODED for prompt in prompts):
        return _failed(promised, f"each prompt needs more than {DECODED} tokens, and one prompt at least")
    try:
        checks = tuple(_checks(before, after, prompts, promised, program, layerwise))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the border to other people's model code: it may raise anything
        return _failed(promised, f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return judge(checks, promised)


def _checks(
    before: Path,
    after: Path,
    prompts: Prompts,
    promised: Preserves,
    program: Program | None,
    layerwise: bool | None,
) -> Iterator[Check]:
    """Compare in fp32; a model stored in 16 bits is also compared in these, with its own error as the measure."""
    base, grown = read_architecture(before), read_architecture(after)
    if layerwise is None:
        layerwise = _too_large(max(base.parameters, grown.parameters), after)
    ways = _once if layerwise else _each
    opened = _layer_by_layer if layerwise else load_exactly
    if layerwise:
        load_exactly(after, empty=True)
    old = _logits(opened(before), ways(prompts), keep=None)
    keep = old["plain"].shape[0] // len(prompts)
    new = _logits(opened(after), ways(prompts), keep=keep)
    found = [_compare(way, old[way], new[way]) for way in old]
    yield from found
    if base.dtype == "float32" or promised == "no":
        return
    plain = {"plain": ways(prompts)["plain"]}
    own = _logits(opened(before, base.dtype), plain, keep=keep)["plain"]
    stored = _logits(opened(after, base.dtype), plain, keep=keep)["plain"]
    yield _compare("stored", old["plain"], stored, twin=own)
    if promised == "exact" and program is not None and not all(_within(check) for check in found):
        model = layerwise_model(Blueprint(program.config), from_program(program), torch_dtype("float32"))
        unrounded = _logits(model, _once(prompts), keep=keep)
        again = old if layerwise else _logits(load_exactly(before), _once(prompts), keep=keep)
        yield from (_compare(f"unrounded {way}", again[way], unrounded[way]) for way in again)


def judge(checks: Sequence[Check], promised: Preserves) -> Proof:
    """Was the promise kept? Unrounded numbers, where there are any, speak for the operators."""
    unrounded = [check for check in checks if check.way.startswith("unrounded")]
    deciding = unrounded or [check for check in checks if check.way != "stored"]
    difference = _largest(check.largest_difference for check in deciding)
    kl = _largest(check.kl for check in deciding)
    passed, reason = _verdict(checks, difference, kl, promised)
    return Proof(
        promised=promised, checks=tuple(checks), largest_difference=difference, kl=kl, passed=passed, reason=reason
    )


def _verdict(checks: Sequence[Check], difference: float, kl: float, promised: Preserves) -> tuple[bool, str]:
    found = f"largest change of a logit {difference:.1e}, divergence {kl:.1e} nats"
    if not all(math.isfinite(check.largest_difference) and math.isfinite(check.kl) for check in checks):
        return False, "the grown model's logits are not finite"
    if promised == "no":
        return True, f"This growth changes the model and must be healed: {found}."
    if all(check.bitwise for check in checks):
        return True, "The grown model gives the same logits, bit for bit."
    if promised == "bitwise":
        return False, f"equal bits were promised: {found}"
    if difference > LARGEST_DIFFERENCE or kl > LARGEST_KL:
        return False, f"{found}; limits {LARGEST_DIFFERENCE:.0e} and {LARGEST_KL:.0e}"
    for check in checks:
        if check.own_kl is not None and not check.bitwise and check.kl > LARGEST_RATIO * check.own_kl:
            rounding = f"divergence {check.kl:.1e} nats as stored, {check.own_kl:.1e} of the base itself"
            return False, f"{rounding}; limit {LARGEST_RATIO}x"
    rounded = any(check.way.startswith("unrounded") for check in checks)
    before = " before its weights are rounded" if rounded else ""
    return True, f"The grown model computes the same function{before}: {found} (limits 1e-03 and 1e-06)."


def _within(check: Check) -> bool:
    return check.largest_difference <= LARGEST_DIFFERENCE and check.kl <= LARGEST_KL


def _failed(promised: Preserves, why: str) -> Proof:
    return Proof(
        promised=promised,
        checks=(),
        largest_difference=None,
        kl=None,
        passed=False,
        reason=f"the proof could not run: {why}",
    )


def _largest(values: Iterable[float]) -> float:
    """The largest; NaN if any is NaN, which `max` would lose."""
    found = list(values)
    return math.nan if any(math.isnan(value) for value in found) else max(found)


# -- comparing ------------------------------------------------------------------------------------------------------


def _compare(way: str, old: torch.Tensor, new: torch.Tensor, *, twin: torch.Tensor | None = None) -> Check:
    """Logits (positions, vocabulary); tokens that are new at the end of the vocabulary are left out.

    `twin` is the old model in the type of the new one, where `old` is in fp32.
    """
    import torch

    if old.shape[0] != new.shape[0] or old.shape[1] > new.shape[1]:
        raise ValueError(f"{way}: logits {tuple(old.shape)} before and {tuple(new.shape)} after")
    new = new[:, : old.shape[1]]
    return Check(
        way=way,
        positions=old.shape[0],
        largest_difference=(new - old).abs().max().item(),
        logit_scale=old.abs().max().item(),
        kl=_kl(old, new),
        bitwise=torch.equal(old if twin is None else twin, new),
        own_kl=None if twin is None else _kl(old, twin),
    )


def _kl(old: torch.Tensor, new: torch.Tensor) -> float:
    import torch

    pieces = [_divergence(a, b) for a, b in zip(old.split(CHUNK), new.split(CHUNK), strict=True)]
    return abs(float(torch.cat(pieces).mean().item()))  # rounding may take it just below zero


def _divergence(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    import torch

    log_old, log_new = (torch.log_softmax(logits.double(), dim=-1) for logits in (old, new))
    return (log_old.exp() * (log_old - log_new)).sum(-1)


# -- running one model ----------------------------------------------------------------------------------------------

Run = Callable[["PreTrainedModel", int | None], "torch.Tensor"]
"""Logits (positions, vocabulary) of the last so many positions of each prompt."""


def _each(prompts: Prompts) -> dict[str, Run]:
    """Every prompt on its own, and token by token: as people use a model."""
    return {
        "plain": partial(_plain, prompts=[[prompt] for prompt in prompts]),
        "cached": partial(_cached, prompts=[[prompt] for prompt in prompts], stride=1),
        "padded": partial(_padded, prompts=prompts),
    }


def _once(prompts: Prompts) -> dict[str, Run]:
    """All prompts in one batch, cut to one length, and all the last tokens at once: a model is read four times."""
    shortest = min(len(prompt) for prompt in prompts)
    batch = [[prompt[:shortest] for prompt in prompts]]
    return {
        "plain": partial(_plain, prompts=batch),
        "cached": partial(_cached, prompts=batch, stride=DECODED),
        "padded": partial(_padded, prompts=prompts),
    }


def _logits(model: PreTrainedModel, ways: Mapping[str, Run], *, keep: int | None) -> dict[str, torch.Tensor]:
    """Logits in fp32 for each way; `keep` is how many of the last positions of a prompt, as many as fit if None."""
    import torch

    with torch.inference_mode():
        return {way: run(model, keep).float() for way, run in ways.items()}


def _kept(model: PreTrainedModel, prompts: Prompts, keep: int | None) -> int:
    fitting = KEPT_BYTES // (4 * int(model.config.vocab_size) * 3 * len(prompts))
    return min(keep or max(fitting, 1), *(len(prompt) for prompt in prompts))


def load_exactly(folder: Path, dtype: str = "float32", *, empty: bool = False) -> PreTrainedModel:
    """The model with every weight from the file: transformers fills missing ones with random numbers."""
    from transformers import AutoModelForCausalLM

    gc.collect()  # the model before this one holds itself by cycles
    with inert(folder) as view:
        model, info = AutoModelForCausalLM.from_pretrained(
            view,
            dtype=torch_dtype(dtype),
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            device_map="meta" if empty else None,
        )
    wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]
    if wrong:
        raise ValueError(f"{len(wrong)} weights of {folder.name} do not fit its configuration, such as {wrong[0]}")
    if not empty:
        _align(model)
    model.eval()
    return model


def _layer_by_layer(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    found = read_architecture(folder)
    return layerwise_model(found, from_files(found.tensors), torch_dtype(dtype))


def torch_dtype(name: str) -> torch.dtype:
    """torch's type of a name."""
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _too_large(parameters: int, folder: Path) -> bool:
    """Whether a model in fp32, with a little for activations, would fill the free memory."""
    return 4 * parameters * 1.2 > USABLE * detect(folder).free_bytes


def _align(model: PreTrainedModel) -> None:
    """Move weights that a file's header has pushed off the grid: there, kernels add in another order."""
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNED:
            parameter.data = parameter.data.clone()


def _plain(model: PreTrainedModel, keep: int | None, *, prompts: Sequence[Prompts]) -> torch.Tensor:
    import torch

    keep = _kept(model, [prompt for batch in prompts for prompt in batch], keep)
    passes = (model(torch.tensor(_lists(batch)), logits_to_keep=keep).logits for batch in prompts)
    return torch.cat([logits.flatten(0, 1) for logits in passes])


def _cached(model: PreTrainedModel, keep: int | None, *, prompts: Sequence[Prompts], stride: int) -> torch.Tensor:
    import torch

    found = []
    for batch in prompts:
        tokens = torch.tensor(_lists(batch))
        step = model(tokens[:, :-DECODED], use_cache=True, logits_to_keep=1)
        found.append(step.logits)
        for place in range(tokens.shape[1] - DECODED, tokens.shape[1], stride):
            step = model(tokens[:, place : place + stride], past_key_values=step.past_key_values, use_cache=True)
            found.append(step.logits)
    return torch.cat([logits.flatten(0, 1) for logits in found])


def _padded(model: PreTrainedModel, keep: int | None, *, prompts: Prompts) -> torch.Tensor:
    import torch

    width = max(len(prompt) for prompt in prompts) + 2  # even the longest is padded
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    keep = _kept(model, prompts, keep)
    return model(tokens, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits.flatten(0, 1)


def _lists(batch: Prompts) -> list[list[int]]:
    return [list(prompt) for prompt in batch]
