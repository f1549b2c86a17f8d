"""What the user wants, in one YAML file: two lines suffice (`model:` and `context:` or `parameters:`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from scaler_wizard.errors import ScalerError
from scaler_wizard.record import Record
from scaler_wizard.safe_yaml import load_yaml

SHIPPED = Path(__file__).parent / "recipes"
ARROW = re.compile(r"(.+?)\s*(?:->|→)\s*(.+)")
FIT = re.compile(
    r"fit\s+([\d.]+\s*[kmg]?)i?b?(?:\s+(?:of\s+)?(?:v?ram|memory))?(?:\s+(?:at|with)\s+(\S+)(?:\s+context)?)?", re.I
)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([xX]|[kKmMbBgG]?)")


def count(text: str | int | float, *, kilo: int = 1000) -> int:
    """Read a number as people write it: 200M, 1.5B, 16K (`kilo=1024` for tokens), 16384."""
    match = _NUMBER.fullmatch(str(text).strip())
    if not match or (match[2] and match[2] in "xX"):
        raise ValueError("expected a number like 16384, 16K, 200M or 1.5B")
    power = {"": 0, "k": 1, "m": 2, "b": 3, "g": 3}[match[2].lower()]
    return int(float(match[1]) * kilo**power + 0.5)


def factor(text: str) -> float | None:
    """Read "1.5x" as 1.5; None where the text is no factor."""
    match = _NUMBER.fullmatch(str(text).strip())
    return float(match[1]) if match and match[2] in ("x", "X") else None


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _readable(value: str) -> str:
    if factor(value) is None:
        count(value)
    return value


def _size(value: str) -> str:
    if not (ARROW.fullmatch(value.strip()) or FIT.fullmatch(value.strip())):
        _readable(value)
    return value


def _tokens(value: Any) -> Any:
    return count(value, kilo=1024) if isinstance(value, str) else value


def _count(value: Any) -> Any:
    return count(value) if isinstance(value, str) else value


def _memory(value: Any) -> Any:
    return count(value, kilo=1024) if isinstance(value, str) else value


Target = Annotated[str, BeforeValidator(_as_text), AfterValidator(_readable)]
Size = Annotated[str, BeforeValidator(_as_text), AfterValidator(_size)]
Tokens = Annotated[int, BeforeValidator(_tokens), Field(gt=0)]
Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(_memory), Field(gt=0)]


class Limits(Record):
    """What a run may use; a recipe can lower these and never raise them above the human contract."""

    memory_share: Annotated[float, Field(gt=0, le=0.90)] = 0.90
    """Share of the device's memory."""
    memory: Bytes | None = None
    """Memory in bytes, where less than the share is wanted ("6G")."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processor threads of the worker; all that the machine gives where this is left out."""


class GateLimits(Record):
    """What a gate lets pass without asking twice."""

    short_regression: Annotated[float, Field(ge=0)] = 0.05
    """Largest rise of the loss on short text against the base, nats per token."""
    truncation_loss: Annotated[float, Field(ge=0)] = 0.10
    """Largest loss of the long window against simply truncating the text, nats per token, after a context phase."""
    rung_regression: Annotated[float, Field(ge=0)] = 0.15
    """The same as `short_regression` for a rung of the ladder that a later phase of the plan heals, nats per token."""
    rung_truncation_loss: Annotated[float, Field(ge=0)] = 0.20
    """The same as `truncation_loss` for a rung that is healed later, nats per token."""
    needle_share: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Needles found at the longest window, and still found in the native one, after a context phase or training, as a
    share of those that the base finds in its native window; counts only where the difference is outside chance."""
    accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest fall of the probe's accuracy against the base; only counted where it is outside the base's interval."""


class Breaker(Record):
    """The circuit breaker of a training phase."""

    window: Annotated[int, Field(ge=2, le=1000)] = 10
    """Evaluations in the rolling window."""
    slope: Annotated[float, Field(gt=0)] = 0.15
    """Largest rise of the perplexity per evaluation over the window, as a share of the first perplexity in it."""
    accuracy_floor: Annotated[float, Field(ge=0, le=1)] = 0.50
    """Lowest accuracy, for models whose base is above it; for weaker ones the base less `accuracy_margin` counts."""
    accuracy_margin: Annotated[float, Field(ge=0, le=1)] = 0.05
    """How far below its base a model may fall."""
    divergence: Annotated[float, Field(gt=0)] = 1.0
    """Largest training loss above the first evaluation's loss, nats per token, averaged over five steps."""
    action: Literal["stop", "warn"] = "stop"
    """Stop the phase and go back, or only warn; NaN, infinity and the memory ceiling always stop."""


class Distil(Record):
    """Also learn from a teacher's whole distribution, not only from the next token."""

    teacher: str = "base"
    """The model before growth (against forgetting), or a folder, a GGUF file or a hub id with the same vocabulary."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the loss that comes from the teacher."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Above 1, unlikely tokens count more."""
    first: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the steps, from the first on, that learn from the teacher; after them only the next token counts."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """Forward covers all that the teacher would say, reverse keeps to it, jsd stands between."""
    keep: Literal["likeliest", "states", "nothing"] = "likeliest"
    """What is kept on disk of the teacher: its likeliest tokens (288 bytes a token), its hidden states (exact, 2 bytes
    for each hidden unit), or nothing (it is asked at every step). Reverse and jsd need states or nothing."""
    hidden: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of making blocks' outputs like the teacher's, through projections that are learnt as well."""
    attention: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of looking where the teacher's blocks look (attention transfer)."""
    layers: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = ()
    """Which block of the model learns from which of the teacher, from 0: [[3, 7], [11, 15]]; four even pairs where
    left out. `hidden` and `attention` need keep: nothing."""

    @property
    def inner(self) -> bool:
        """Whether the teacher's blocks are asked, and not only its last word."""
        return self.hidden > 0 or self.attention > 0

    @model_validator(mode="after")
    def _exact(self) -> Distil:
        if self.keep == "likeliest" and self.divergence != "forward":
            raise ValueError(f"divergence {self.divergence} needs keep: states or nothing")
        if self.inner and self.keep != "nothing":
            raise ValueError("hidden and attention need keep: nothing, since a block's work is not kept on disk")
        if self.layers and not self.inner:
            raise ValueError("layers does nothing without hidden or attention")
        return self


class Adapters(Protocol):
    """What a recipe and a plan both say of adapters."""

    @property
    def lora_kind(self) -> str: ...
    @property
    def lora_ranks(self) -> str | None: ...
    @property
    def lora_restarts(self) -> int: ...
    @property
    def lora_base(self) -> str: ...


def check_adapters(said: Adapters) -> None:
    """Refuse choices that exclude each other, as ValueError."""
    if said.lora_restarts and (said.lora_kind != "lora" or said.lora_base != "whole"):
        raise ValueError("lora_restarts needs lora_kind: lora and lora_base: whole")
    if said.lora_base == "nf4" and (said.lora_kind not in ("lora", "dora") or said.lora_ranks == "spectrum"):
        raise ValueError("lora_base: nf4 needs lora_kind: lora or dora and lora_ranks: uniform")


class Heal(Record):
    """Training after growth."""

    tokens: Count | None = None
    """Tokens to train on ("200K"); chosen by the plan where left out."""
    train: Literal["new", "lora", "norms", "all"] | None = None
    """What learns: new parameters only, low-rank adapters, norms and embeddings, or everything; left out: the plan's
    choice."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["find"] | None = None
    """Peak learning rate; `find` looks for it in forty short steps before; chosen by the plan where left out."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Cosine to a tenth of the peak, or the peak held and a decay to 0 in the last fifth (warm-up, stable, decay)."""
    window: Tokens | None = None
    """Tokens per training window; chosen by the plan where left out."""
    distil: Distil | None = None
    """A teacher to learn from as well."""
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank of the adapters, for train: lora; left out: a 32nd of the hidden size, more where the text has more to teach
    than adapters of that rank hold, less where memory is short; from 8 to 128."""
    lora_kind: Literal["lora", "dora", "pissa", "eva"] = "lora"
    """Plain adapters; weight-decomposed ones; or begun in the principal directions of the weights or of the text."""
    lora_ranks: Literal["uniform", "spectrum"] | None = None
    """The same rank everywhere, or its parameters spread over the matrices by the spectrum of their gradients; chosen
    by the plan where left out: spread, where that takes a small part of the training and fits into memory."""
    lora_restarts: Annotated[int, Field(ge=0, le=100)] = 0
    """Times that plain adapters are merged into the model and begun anew, each with a warm-up (ReLoRA), so that low
    ranks add up to a higher one."""
    lora_base: Literal["whole", "nf4"] = "whole"
    """The frozen weights while adapters learn: as they are, or in 4 bits (QLoRA; needs a GPU)."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """AdamW with its moments in float32, or in 8 bits (needs a GPU)."""
    kernels: Literal["torch", "liger"] = "torch"
    """Torch's own norms, rotary and gated layers, or Liger's fused ones (needs a GPU)."""
    long_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Within each source, read texts longer than the native window more often, up to this share of its tokens; every
    text equally often where left out."""
    control: bool = True
    """Also train the base on the same tokens, to know whether growth paid."""

    @model_validator(mode="after")
    def _adapters(self) -> Heal:
        check_adapters(self)
        return self


class Stretch(Record):
    """How the window grows."""

    method: str | None = None
    """How the rotary frequencies change: yarn, llama3, ntk, linear, dynamic or searched; yarn where left out."""
    search: bool | None = None
    """Look for better settings on calibration text, at every rung; left out: for models below 20M parameters, unless a
    method is named."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Longest search at each rung; chosen by the plan where left out."""
    evaluations: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Candidates that a search scores; chosen by the plan where left out."""
    gradient: bool = False
    """Let a search also follow the gradient on one factor for each pair of dimensions; it may over-fit."""
    heal_rungs: bool = False
    """Also train after each rung that is outside the gate's limits; `heal` follows the last rung in any case."""
    stop: bool = False
    """Let a rung outside a limit end the ladder, at the rung before it, instead of asking whether to keep it."""


class Measure(Record):
    """How thoroughly to measure."""

    windows: Annotated[int, Field(ge=1)] | None = None
    """Long windows of held-out text; chosen by the plan where left out."""
    needles: Annotated[int, Field(ge=1)] | None = None
    """Facts asked for at each length; chosen by the plan where left out."""
    probe: Literal["capitals", "none"] | None = None
    """Multiple-choice questions; chosen by the plan where left out."""


class Recipe(Record):
    """What the user wants."""

    model: Annotated[str, Field(min_length=1)]
    """What to grow: a folder, a GGUF file, a hub id, or `embedded` or `smollm2`."""
    parameters: Size | None = None
    """Size to grow to: "1.3x", "200M", "3B -> 7B", "fit 12 GB of VRAM at 16K context"; left out, the size is kept."""
    context: Target | None = None
    """Window to grow to: "16K", "2x"; left out, the model keeps its window."""
    allow: tuple[str, ...] | None = None
    """Growth operators that may be used ("identity_blocks"); left out, all that keep the model's function."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")] | None = None
    """Name of the run's folder begins with this."""
    data: str = "kjv"
    """Text to heal with and to measure on: `kjv` (King James Bible, public domain) or a file or folder of text."""
    heal: Heal | Literal[False] = Heal()
    """Training after growth; false leaves it out."""
    merge: dict[str, Any] | None = None
    """Merge the grown model with others at the end: a block as `scaler merge` reads it, in which `grown` is the model
    that this run made and `base` the one that it began with, and a `search` block of its own."""
    extend: Stretch = Stretch()
    """How the window grows."""
    measure: Measure = Measure()
    """How thoroughly to measure."""
    limits: Limits = Limits()
    """What the run may use."""
    gate: GateLimits = GateLimits()
    """What a gate lets pass."""
    breaker: Breaker = Breaker()
    """When training is stopped."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random."""


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name, and lay `a.b=c` settings over it."""
    data = load_yaml(find_recipe(path))
    for setting in settings:
        set_field(data, setting)
    if "model" not in data and find_recipe(path).parent == SHIPPED:
        raise ScalerError(
            f"{path}: this recipe fits any model; which one?",
            "name it: --set model=FOLDER, a hub id, `embedded` or `smollm2`",
        )
    return Recipe.read(data, path.name)


def find_recipe(wanted: Path) -> Path:
    """The file itself, or the shipped recipe of that name."""
    shipped = SHIPPED / f"{wanted}.yaml"
    return shipped if str(wanted) in shipped_recipes() and not wanted.is_file() else wanted


def shipped_recipes() -> dict[str, str]:
    """Recipes that fit any model, with what they are for (the first line of each file)."""
    files = sorted(file for file in SHIPPED.glob("*.yaml") if not file.stem.startswith("demo"))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in files}


def set_field(data: dict[str, Any], setting: str) -> None:
    """Lay one "a.b=value" over a recipe's fields."""
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise ScalerError(f"--set {setting}: expected a.b=value", "for example --set heal.tokens=100K")
    *path, last = key.split(".")
    for part in path:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ScalerError(f"--set {setting}: {part} is a value, not a group", "check the name of the setting")
    data[last] = yaml.safe_load(value)
