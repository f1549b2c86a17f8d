"""Put dense fine-tunes of one base together as a mixture of experts (`scaler merge`, with `experts:`).

    merge:
      base: path/to/base           # gives attention, norms, embeddings
      experts:
        - {model: path/to/code, prompts: ["def main():", "import numpy as np"]}
        - {model: path/to/prose, prompts: ["It was a dark night", "She said that"]}
      active: 2

Llama and Mistral become Mixtral, Qwen2 becomes Qwen2-MoE (its shared expert is silent); experts' attention is not used.
With `router: hidden` each layer's router starts from the base's hidden states on the experts' prompts, found in a child
process (`python -m scaler_wizard.mixture`). With `train` they learn for some steps (`route.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from scaler_wizard import __version__
from scaler_wizard.architecture import Architecture, Blueprint, Place, read_architecture, read_header
from scaler_wizard.beside import beside, put, refuse_place, sweep
from scaler_wizard.errors import ScalerError
from scaler_wizard.fingerprint import fingerprint_of
from scaler_wizard.grow import GrowthOperator, SharedExpert, Upcycle, grow_program
from scaler_wizard.merge import Linear, Parent, WeightedModel
from scaler_wizard.merge.preflight import check
from scaler_wizard.merge.program import parent
from scaler_wizard.merging import MERGE, Ancestor
from scaler_wizard.models import resolve
from scaler_wizard.record import Record, to_json
from scaler_wizard.route import RouterLosses, RouterTraining, trained_routers
from scaler_wizard.safe_yaml import load_yaml
from scaler_wizard.weights import PROCESSES, Input, Program, check_disk, copy_companions, write, zeros

GAP = 2.0
"""How far an expert's logit stands above the mean on its own prompts, on average."""
PROMPT_TOKENS = 512
ROUTERS = "routers.safetensors"
DENSE = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""Mixtral's names of a feed-forward block's matrices."""
FAMILIES = ("llama", "mistral", "qwen2")
SILENT = 8
"""Neurons of a shared expert that says nothing."""


class Expert(Record):
    """A fine-tune whose feed-forward blocks become one expert."""

    model: Annotated[str, Field(min_length=1)]
    """A folder, a hub id, `embedded` or `smollm2`."""
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...] = ()
    """Texts that should be sent to it."""


class Mixture(Record):
    """How dense models become one mixture."""

    base: Annotated[str, Field(min_length=1)]
    """Gives everything but the experts."""
    experts: Annotated[tuple[Expert, ...], Field(min_length=2, max_length=512)]
    """The experts; the base may be one of them."""
    active: Annotated[int, Field(ge=1)] = 2
    """Experts that each token uses."""
    router: Literal["hidden", "random", "zero"] | None = None
    """Where the routers start: from the prompts' hidden states, at random, or at zero, which gives all experts the same
    weight. Left out: hidden where there are prompts, else random."""
    train: RouterTraining | None = None
    """Train the routers for some steps afterwards; everything else stands still."""
    noise: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Standard deviation of a random router's weights."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random."""

    @property
    def start(self) -> Literal["hidden", "random", "zero"]:
        """Where the routers start."""
        return self.router or ("hidden" if any(expert.prompts for expert in self.experts) else "random")

    @model_validator(mode="after")
    def _possible(self) -> Mixture:
        if self.active > len(self.experts):
            raise ValueError(f"active: {self.active} of {len(self.experts)} experts cannot be active")
        if self.start == "zero" and self.active < len(self.experts):
            raise ValueError("router: zero sends every token to the same experts, unless all of them are active")
        if self.train is not None and self.active == 1:
            raise ValueError("train: with one active expert its weight is always 1, so nothing is learnt; active: 2")
        if self.start == "hidden" and not all(expert.prompts for expert in self.experts):
            raise ValueError("router: hidden needs `prompts` for every expert")
        return self


class MixtureLineage(Record):
    """How a mixture was made: written beside it as merge.json."""

    format: Literal[1] = 1
    """Version of this file format."""
    made_by: str
    """Program and version."""
    recipe: dict[str, Any]
    """The merge block, with every default filled in."""
    models: tuple[Ancestor, ...]
    """The base and the experts."""
    parameters: int
    """Size of the mixture."""
    router_losses: RouterLosses | None = None
    """What training the routers did on calibration text; null where they were not trained."""
    files: dict[str, str | None]
    """blake3 of the weights and the configuration, by file name."""


@dataclass(frozen=True)
class Mixed:
    """A mixture in its place."""

    folder: Path
    lineage: MixtureLineage


def load_mixture(path: Path) -> Mixture | None:
    """The recipe of a file that makes a mixture; None where it merges something else."""
    block = load_yaml(path).get("merge")
    if not isinstance(block, dict) or "experts" not in block:
        return None
    return Mixture.read(block, f"{path.name}: merge")


def mix_models(recipe: Mixture, out: Path, *, force: bool = False, processes: int = PROCESSES) -> Mixed:
    """Make the mixture, and put it at `out` once it is whole; `force` replaces a merged model."""
    refuse_place(out, MERGE, force=force)
    names = list(dict.fromkeys([recipe.base, *(expert.model for expert in recipe.experts)]))
    found = {name: read_architecture(resolve(name).folder) for name in names}
    parents = {name: parent(name, one) for name, one in found.items()}
    check(Linear(models=tuple(WeightedModel(model=name) for name in names)), parents)
    program = mixture_program(recipe, found[recipe.base], parents)
    check_disk(out, program.bytes)
    ancestors = tuple(Ancestor(name=name, fingerprint=fingerprint_of(one)) for name, one in found.items())
    with beside(out, "merging") as staging:
        if recipe.start == "hidden":
            program = routed(program, _hidden_routers(recipe, found[recipe.base].folder, staging / ROUTERS))
        written = write(program, staging, processes=processes, finite=True)
        companions = copy_companions(found[recipe.base].folder, staging)
        losses = None
        if recipe.train is not None:
            losses = trained_routers(staging, staging / ROUTERS, recipe.train)
            written = write(routed(program, staging / ROUTERS), staging, processes=processes, finite=True)
        sweep(staging, keep={*written.files, *companions})
        lineage = MixtureLineage(
            made_by=f"scaler-wizard {__version__}",
            recipe=recipe.model_dump(mode="json"),
            models=ancestors,
            parameters=Blueprint(program.config).parameters,
            router_losses=losses,
            files={name: digest for name, (_, digest) in sorted(written.files.items())},
        )
        (staging / MERGE).write_text(to_json(lineage) + "\n", encoding="utf-8")
        put(staging, out)
    return Mixed(out, lineage)


# -- the program ----------------------------------------------------------------------------------------------------


def mixture_program(recipe: Mixture, base: Architecture, parents: Mapping[str, Parent]) -> Program:
    """The base upcycled, with each expert's own blocks in the places of the copies."""
    program = grow_program(base, [_operator(recipe, base)], seed=recipe.seed)
    view = Blueprint(program.config)
    if view.family == "qwen2_moe":
        view = view.changed(norm_topk_prob=True, shared_expert_intermediate_size=SILENT)
    tensors = dict(program.tensors)
    for place in view.places():
        if place.expert is not None:
            tensors[place.name] = parents[recipe.experts[place.expert].model].tensors[_dense(place)]
        elif "shared_expert." in place.name:
            tensors[place.name] = zeros(place.shape, program.tensors[place.name].dtype)
    return replace(program, config=dict(view.config), tensors=tensors, fresh={})


def _operator(recipe: Mixture, base: Architecture) -> GrowthOperator:
    noise = recipe.noise if recipe.start == "random" else 0.0
    count, active = len(recipe.experts), recipe.active
    if base.family not in FAMILIES:
        raise ScalerError(f"a mixture of {base.family} models is not made here", f"possible: {', '.join(FAMILIES)}")
    if base.family == "qwen2":
        return SharedExpert(experts=count, active=active, size=base.ffn, router_noise=noise)
    return Upcycle(experts=count, active=active, router_noise=noise)


def _dense(place: Place) -> str:
    """Name of the dense tensor that an expert's tensor comes from."""
    part = place.name.split(".")[-2]
    return f"model.layers.{place.layer}.mlp.{DENSE.get(part, part)}.weight"


def routed(program: Program, routers: Path) -> Program:
    """The program with the routers of a file."""
    stored = read_header(routers)
    places = [place for place in Blueprint(program.config).places() if place.row.role == "router"]
    rows = {place.name: Input(stored[str(place.layer)]) for place in places}
    return replace(program, tensors={**program.tensors, **rows})


# -- routers from hidden states -------------------------------------------------------------------------------------


def _hidden_routers(recipe: Mixture, base: Path, out: Path) -> Path:
    """Run the base on the prompts in a child process, so that this one loads no torch."""
    command = [sys.executable, "-m", "scaler_wizard.mixture", str(base), str(out)]
    prompts = json.dumps([expert.prompts for expert in recipe.experts])
    answer = subprocess.run(command, input=prompts, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ScalerError(f"the prompts' hidden states could not be found: {last:.200}", "or choose router: random")
    return out


def router_rows(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Rows of one router from the experts' mean hidden states (experts, hidden).

    What all experts have in common is taken off, so that no expert is favoured on every text; the rows are scaled so
    that an expert's logit on its own prompts stands GAP above the mean, on average.
    """
    common = means.mean(axis=0)
    apart = means - common
    apart -= np.outer(apart @ common / max(float(common @ common), 1e-30), common)
    size = float(np.square(apart).sum(axis=1).mean())
    if size < 1e-12:
        raise ScalerError("the experts' prompts give the same hidden states", "choose prompts that differ")
    rows: npt.NDArray[np.float32] = (GAP / size * apart).astype(np.float32)
    return rows


def _find_routers(base: Path, prompts: list[list[str]], out: Path) -> None:
    """The child: mean inputs of every layer's feed-forward block for each expert's prompts."""
    import torch
    from safetensors.numpy import save_file

    from scaler_wizard.models import load_model, load_tokenizer

    model, tokenizer = load_model(base, dtype="float32"), load_tokenizer(base)
    seen: dict[int, list[Any]] = {number: [] for number in range(len(model.model.layers))}
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda _, inputs, number=number: seen[number].append(inputs[0][0].double()))
    means = []
    for texts in prompts:
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids[:, :PROMPT_TOKENS]
            with torch.inference_mode():
                model.model(ids.to(model.device), use_cache=False)
        means.append([torch.cat(states).mean(0).cpu().numpy() for states in seen.values()])
        for states in seen.values():
            states.clear()
    rows = {str(number): router_rows(np.stack([expert[number] for expert in means])) for number in seen}
    save_file(rows, out)


if __name__ == "__main__":
    _find_routers(Path(sys.argv[1]), json.loads(sys.stdin.read()), Path(sys.argv[2]))
