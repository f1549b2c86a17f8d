"""Run a model that is never in memory as a whole: each module reads its weights before it runs and drops them after.

Weights come from the files of a folder, or from a checkpoint program whose numbers are taken in fp32 before they are
rounded to the stored type. What computes is the stock model of transformers. Not covered: training, and speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from scaler_wizard.architecture import Blueprint, Tensor
from scaler_wizard.weights import Program, values

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Read = Callable[[str], "torch.Tensor"]
"""The tensor of a name as in the files, with the shape that it has there."""


def layerwise_model(view: Blueprint, read: Read, dtype: torch.dtype) -> PreTrainedModel:
    """The stock model of a configuration, empty; every module fetches its weights with `read` when it runs."""
    from accelerate import init_empty_weights
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[view.family].from_dict(dict(view.config))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if names:
            module.register_forward_pre_hook(partial(_fetch, path=path, names=names, view=view, read=read, dtype=dtype))
            module.register_forward_hook(partial(_drop, names=names))
    model.eval()
    return model


def from_files(tensors: Mapping[str, Tensor]) -> Read:
    """Read from safetensors files, without mapping them into memory."""
    import torch

    stored = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

    def read(name: str) -> torch.Tensor:
        tensor = tensors[name]
        found = torch.empty(tensor.elements, dtype=stored[tensor.dtype])
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.start)
            into = memoryview(found.view(torch.uint8).numpy())
            while into:
                got = stream.readinto(into)
                if not got:
                    raise OSError(f"{tensor.file.name} became shorter while it was read")
                into = into[got:]
        return found.reshape(tensor.shape)

    return read


def from_program(program: Program) -> Read:
    """Compute from a program, in fp32 and unrounded."""
    import torch

    def read(name: str) -> torch.Tensor:
        found = torch.empty(program.stored_shape(name), dtype=torch.float32)
        flat = found.view(-1)
        place = 0
        for piece in values(program.tensors[name], seed=program.seed):
            flat[place : place + piece.size] = torch.from_numpy(piece)
            place += piece.size
        assert place == math.prod(found.shape), "a program's tensor has another size than it says"
        return found

    return read


def _fetch(
    module: Any, inputs: Any, *, path: str, names: list[str], view: Blueprint, read: Read, dtype: torch.dtype
) -> None:
    import torch

    for name in names:
        weight = _weight(f"{path}.{name}", view, read).to(dtype)
        module._parameters[name] = torch.nn.Parameter(weight, requires_grad=False)


def _drop(module: Any, inputs: Any, output: Any, *, names: list[str]) -> None:
    import torch

    for name in names:
        kept = module._parameters[name]
        module._parameters[name] = torch.nn.Parameter(torch.empty_like(kept, device="meta"), requires_grad=False)


def _weight(name: str, view: Blueprint, read: Read) -> torch.Tensor:
    """A parameter as transformers holds it, from the files' tensors: there, experts stand apart."""
    if name == "lm_head.weight" and view.tied:
        return read("model.embed_tokens.weight")
    if view.family == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    stem, _, part = name.partition(".experts.")
    if part in ("gate_up_proj", "down_proj"):
        return _experts(stem, part, view, read)
    return read(name.replace(".router.weight", ".router.layer.weight") if _stacked(view) else name)


def _stacked(view: Blueprint) -> bool:
    """Whether all experts' matrices are one tensor in the file as well."""
    return any(row.stacked for row in view.rows.rows)


def _experts(stem: str, part: str, view: Blueprint, read: Read) -> torch.Tensor:
    """All experts of a layer: (experts, 2 * neurons, hidden) or (experts, hidden, neurons)."""
    import torch

    into = part == "gate_up_proj"
    if _stacked(view):
        return read(f"{stem}.{'input' if into else 'output'}_linear.weight")
    mixtral = view.family == "mixtral"
    parts = (("w1", "w3") if into else ("w2",)) if mixtral else (("gate_proj", "up_proj") if into else ("down_proj",))
    experts = range(view.experts or 0)
    return torch.stack([torch.cat([read(f"{stem}.experts.{n}.{one}.weight") for one in parts]) for n in experts])
