"""A plan: every number of a run filled in, phase by phase; written by `scaler plan`, editable, runnable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from blake3 import blake3
from pydantic import Field, model_validator

from scaler_wizard.events import Stage
from scaler_wizard.grow import DuplicateLayers, Operator
from scaler_wizard.merge import AnyMethod
from scaler_wizard.merge.recipe import WeightSearch
from scaler_wizard.metrics import MeasureSpec
from scaler_wizard.recipe import Breaker, Distil, GateLimits, Limits, check_adapters
from scaler_wizard.record import Record, to_json


class Baseline(Record):
    """P0: measure the base, change nothing."""

    kind: Literal["baseline"] = "baseline"


class Grow(Record):
    """P1: more parameters."""

    kind: Literal["grow"] = "grow"
    operators: tuple[Operator, ...]
    """Growth operators, applied in one pass."""
    parameters: int
    """Exact number of parameters afterwards."""
    cheapest: bool = False
    """Repeat as many layers as `duplicate_layers` names, but those that are measured to cost least."""

    @model_validator(mode="after")
    def _measurable(self) -> Grow:
        if self.cheapest and not any(isinstance(first, DuplicateLayers) for first in self.operators[:1]):
            raise ValueError("cheapest needs duplicate_layers as the first operator: the base's layers are measured")
        return self

    def carried_out(self, evidence: Mapping[str, Any]) -> Grow:
        """The growth as its gate's evidence tells it: with the layers that were measured to cost least."""
        if "operators" not in evidence:
            return self
        return Grow.read({"operators": evidence["operators"], "parameters": self.parameters}, "what was grown")


class Search(Record):
    """Find the rotary settings for this model on calibration text, instead of taking a method's defaults."""

    evaluations: Annotated[int, Field(ge=1)] = 30
    """Candidates that are scored, the six of the grid among them; finalists come on top."""
    minutes: Annotated[float, Field(gt=0)]
    """Wall time; the best so far is taken when it is over."""
    window: Annotated[int, Field(ge=32)]
    """Tokens of a scored window; one shorter than the target reaches it by skipped positions."""
    windows: Annotated[int, Field(ge=1)]
    """Windows scored for each candidate."""
    facts: Annotated[int, Field(ge=1)] = 1
    """Far facts in each window."""
    digits: Annotated[int, Field(ge=1)]
    """Digits of a fact's code."""
    short_length: Annotated[int, Field(ge=16)]
    """Tokens of a short window."""
    short_windows: Annotated[int, Field(ge=1)]
    """Short windows scored for each candidate."""
    finalists: Annotated[int, Field(ge=0)]
    """Best candidates that are scored again, on other windows of the true length; these scores decide."""
    final_windows: Annotated[int, Field(ge=1)]
    """Windows of the true length."""
    gradient_steps: Annotated[int, Field(ge=0)] = 0
    """Most steps of gradient on one factor for each pair of dimensions, begun at the best candidate; 0: none."""
    seed: int = 0
    """Seed of the sample and of the search."""


class Extend(Record):
    """P2: one rung of the ladder to a longer window."""

    kind: Literal["extend"] = "extend"
    length: int
    """Window afterwards, in tokens."""
    method: str = "yarn"
    """How the rotary frequencies change."""
    options: dict[str, float | tuple[float, ...]] = Field(default={})
    """Settings of the method that differ from its defaults."""
    search: Search | None = None
    """Look for better settings than these; null: take them as they are."""
    stop: bool = False
    """End the ladder at the rung before where this one is outside a limit, instead of asking whether to keep it."""


RATES_TRIED = 40
"""Steps of a search for a learning rate."""


class Train(Record):
    """P3: train the grown model on packed text, under the circuit breaker."""

    kind: Literal["heal"] = "heal"
    train: Literal["new", "lora", "norms", "all"]
    """What learns: new parameters only, low-rank adapters (merged at the end), norms and embeddings, or everything."""
    steps: Annotated[int, Field(ge=1)]
    """Optimiser steps."""
    windows_per_step: Annotated[int, Field(ge=1)]
    """Training windows in one optimiser step: the effective batch."""
    micro_batch: Annotated[int, Field(ge=1)]
    """Windows that are in memory at once."""
    window: Annotated[int, Field(ge=8)]
    """Tokens per training window."""
    short_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of windows trained at native length and positions, as a guard of short text."""
    skip_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of windows with skipped positions out to the target length (PoSE, arXiv:2309.10400)."""
    target: int | None = None
    """The target length, in tokens; null: the longest window of the run."""
    needle_share: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    """Share of windows that carry a fact to retrieve."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    find_rate: bool = False
    """Look for the peak before, from a thirtieth to thirty times `learning_rate`."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Steps of linear warm-up; the schedule follows."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Cosine to a tenth of the peak, or the peak held and a decay to 0 in the last fifth (warm-up, stable, decay)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    lora_rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapters where `train` is lora (rank-stabilised scaling)."""
    distil: Distil | None = None
    """A teacher to learn from as well; null where there is none."""
    teacher_parameters: int | None = None
    """Size of the teacher, for the estimate; null where it is unknown or there is none."""
    lora_kind: Literal["lora", "dora", "pissa", "eva"] = "lora"
    """Plain adapters; weight-decomposed ones; or begun in the principal directions of the weights or of the text."""
    lora_ranks: Literal["uniform", "spectrum"] = "uniform"
    """The same rank everywhere, or its parameters spread over the matrices by the spectrum of their gradients."""
    lora_restarts: Annotated[int, Field(ge=0, le=100)] = 0
    """Times that the adapters are merged and begun anew at even intervals, each with a warm-up (arXiv:2307.05695)."""
    lora_base: Literal["whole", "nf4"] = "whole"
    """The frozen weights while adapters learn: as they are, or in 4 bits (QLoRA, arXiv:2305.14314)."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """AdamW with its moments in float32 or in 8 bits (arXiv:2110.02861)."""
    kernels: Literal["torch", "liger"] = "torch"
    """Torch's own layers, or Liger's fused ones."""
    long_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Within each source, this share of the tokens from texts longer than the native window, where it has such."""
    evaluate_every: Annotated[int, Field(ge=1)]
    """Steps between evaluations on calibration text."""
    evaluate_tokens: Annotated[int, Field(ge=1)] = 8_192
    """Calibration tokens of an evaluation; four windows at least."""
    held_out_tokens: Annotated[int, Field(ge=1)] = 32_768
    """Held-out tokens that the arms are compared on; four windows at least."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the matrix products; auto times both on this machine and takes the faster one, for both arms."""
    expects: Literal["float32", "bfloat16"] = "float32"
    """What auto will take, as far as a plan can tell: memory is counted by it."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    control: bool = True
    """Also train the base on the same tokens in the same order, to know whether growth paid."""
    when: Literal["always", "needed"] = "always"
    """Always, or only where the model before it is outside a limit of the gate."""

    @model_validator(mode="after")
    def _adapters(self) -> Train:
        check_adapters(self)
        return self

    def windows_of(self, tokens: int) -> int:
        """Windows that are read where `tokens` are to be read without learning: four at least, however long."""
        return max(4, tokens // self.window)


class Merge(Record):
    """P4: merge the grown model with others, and judge the merge against each of them."""

    kind: Literal["merge"] = "merge"
    method: AnyMethod
    """How; `grown` is the model that the run made, `base` the one that it began with, grown in the same way."""
    search: WeightSearch
    """Texts that it is judged on, and how its weights are chosen."""


class Export(Record):
    """P4: a stock Hugging Face folder, a model card and the report."""

    kind: Literal["export"] = "export"


Change = Annotated[Baseline | Grow | Extend | Train | Merge | Export, Field(discriminator="kind")]


class Estimate(Record):
    """What a phase will need, and where the numbers come from; unknown is null."""

    seconds: float | None
    """Wall time."""
    memory_bytes: int | None
    """Peak memory of the worker."""
    disk_bytes: int | None
    """New bytes in the run folder."""
    basis: str
    """How these were found."""
    band: float | None = None
    """Share by which the time may be off, by a trial of this very work; null where it was only counted."""


class Phase(Record):
    """One change to the model, with its measurement and its gate."""

    number: Annotated[int, Field(ge=0, le=999)]
    """Position in the run, from 0."""
    stage: Stage
    """P0 baseline, P1 parameters, P2 context, P3 quality, P4 merge and export."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """What the phase does, in one word or two: `extend-512`."""
    title: str
    """The same for a person: "window 128 -> 256"."""
    change: Change
    """The change."""
    measure: MeasureSpec | None
    """What is measured afterwards; null where the phase measures nothing of its own."""
    estimate: Estimate
    """What it will need."""

    @property
    def slug(self) -> str:
        """Name of the checkpoint folder: `003-extend-512`."""
        return f"{self.number:03d}-{self.name}"


class Base(Record):
    """The model that is grown, as the plan found it."""

    source: str
    """As the recipe named it."""
    folder: Path
    """Where its files are."""
    name: str
    """Its name."""
    licence: str | None
    """Its licence; null where the files do not say."""
    family: str
    """Its architecture."""
    parameters: int
    """Exact number of parameters."""
    layers: int
    """Transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    native_context: int
    """Window in tokens: what its configuration claims, or less where less was measured."""
    dtype: str
    """Type of its weights."""


class Plan(Record):
    """Everything that a run will do; a plan file can be edited and run itself."""

    format: Literal[1] = 1
    """Version of this file format."""
    name: str
    """Beginning of the run folder's name."""
    base: Base
    """What is grown."""
    parameters: int
    """Parameters at the end."""
    context: int
    """Window at the end, in tokens."""
    data: str
    """Text to heal with and to measure on."""
    phases: tuple[Phase, ...]
    """What will be done, in order."""
    limits: Limits
    """What the run may use."""
    gate: GateLimits
    """What a gate lets pass."""
    breaker: Breaker
    """When training is stopped."""
    seed: int
    """Seed of everything random."""
    estimate: Estimate
    """The whole run."""
    notes: tuple[str, ...] = ()
    """Choices that were made and wishes that were not followed, with the reasons."""
    recipe: dict[str, Any]
    """The recipe that this plan was made from, for the record."""

    def grown_by(self, current: str | None, evidence: Mapping[str, Mapping[str, Any]]) -> tuple[Operator, ...]:
        """Growth operators between the base and a checkpoint, as they were carried out by the evidence of its gates."""
        done = [
            phase.change.carried_out(evidence.get(phase.slug, {})).operators
            for phase in self.phases
            if isinstance(phase.change, Grow) and current is not None and phase.slug <= current
        ]
        return tuple(operator for operators in done for operator in operators)

    def identity(self) -> str:
        """The same for the same work: estimates and notes, which depend on the hour, do not count."""
        work = self.model_dump(mode="json", exclude={"estimate", "notes", "recipe"})
        for phase in work["phases"]:
            del phase["estimate"]
        return blake3(to_json(work).encode()).hexdigest()
