"""What the cockpit and its server say to each other; the TypeScript types are generated from these records."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from scaler_wizard.events import Cockpit, Payload
from scaler_wizard.metrics import Measurement

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{16,64}$")]
"""Chosen by the client for one wish; the same key never has an effect twice."""
Slug = Annotated[str, Field(pattern=r"^\d{3}-[a-z0-9][a-z0-9-]*$")]
Verb = Literal["Approve", "Abort", "Rollback", "Pause", "Resume", "Undo", "Extend"]


class Trouble(Payload):
    """What is said when something cannot be done."""

    wrong: str
    """What is wrong with which value."""
    cure: str
    """What to do."""


class RunRow(Payload):
    """One run in the list."""

    id: str
    """Name of the run folder."""
    status: str
    """Where it stands."""
    at: str | None
    """Current checkpoint; null before the first."""
    sentence: str
    """The newest canonical sentence; empty before the first gate."""
    waits: bool
    """True while a gate waits for an answer."""
    model: str | None
    """What is grown; null where the plan cannot be read any more."""
    parameters: int | None
    """Parameters at the end."""
    context: int | None
    """Window at the end, in tokens."""
    trouble: str | None
    """Why the run cannot be opened; null where it can."""
    created: AwareDatetime
    """When it was created."""
    changed: AwareDatetime
    """When something last happened."""


class EstimateView(Payload):
    """What something will need; unknown is null."""

    seconds: float | None
    """Wall time."""
    memory_bytes: int | None
    """Peak memory."""
    disk_bytes: int | None
    """New bytes on disk."""
    basis: str
    """How these were found."""


class PhaseView(Payload):
    """One phase of a plan."""

    slug: str
    """Name of its checkpoint."""
    stage: str
    """P0..P4."""
    kind: str
    """baseline, grow, extend, heal, merge, export."""
    title: str
    """For a person."""
    estimate: EstimateView
    """What it will need."""


class BaseView(Payload):
    """The model that is grown."""

    name: str
    """Its name."""
    family: str
    """Its architecture."""
    licence: str | None
    """Its licence; null where nothing says."""
    parameters: int
    """Parameters."""
    layers: int
    """Blocks."""
    hidden: int
    """Width."""
    context: int
    """Window, in tokens."""


class PlanView(Payload):
    """A plan, as the wizard shows it; every number is the command line's."""

    name: str
    """Beginning of the run's name."""
    base: BaseView
    """What is grown."""
    parameters: int
    """Parameters at the end."""
    context: int
    """Window at the end, in tokens."""
    phases: tuple[PhaseView, ...]
    """What will be done."""
    estimate: EstimateView
    """The whole run."""
    using_bytes: int
    """Memory that the grown model needs later in use: its weights and the cache of one full window."""
    memory_limit_bytes: int
    """What the run may use at most."""
    trains: str | None
    """What learns in P3: new, lora, norms, all; null without training."""
    tokens: int | None
    """Tokens it learns from; null without training."""
    lora_rank: int | None
    """Rank of the adapters; null where none are trained."""
    notes: tuple[str, ...]
    """Choices that were made and wishes that were not followed."""
    recipe: str
    """The recipe as YAML, for `scaler run`."""


class Expected(Payload):
    """What past runs say of a wish's quality; unknown is null."""

    low: float | None
    """Change of the loss on short text, nats per token: the better end of the band that holds four of five runs."""
    middle: float | None
    """The median."""
    high: float | None
    """The worse end."""
    basis: str
    """By how many runs, or why it is not known."""


class CheckpointView(Payload):
    """A phase that passed its gate."""

    slug: str
    """Name of the folder."""
    stage: str
    """P0..P4."""
    sentence: str
    """What its gate said."""
    measurement: Measurement | None
    """What was measured; null where the phase measures nothing."""


class Figure(Payload):
    """A figure of the evidence, as a person reads it."""

    name: str
    """What was measured."""
    value: str
    """What came out."""


class GateView(Payload):
    """A question that waits for a person."""

    id: str
    """Which gate; a decision names it."""
    phase: str
    """Which phase asks."""
    sentence: str
    """The canonical sentence."""
    action: Literal["pass", "ask", "rollback"]
    """What the limits say."""
    reasons: tuple[str, ...]
    """What is outside a limit."""
    evidence: tuple[Figure, ...]
    """What the answer is made on."""
    evidence_hash: str
    """Fingerprint of the evidence; a decision names it."""
    measurement: Measurement | None
    """What was measured on the staged model."""
    stopped: bool
    """Whether the breaker stopped a training: Resume, naming this gate, goes on from its last good step."""


class RankView(Payload):
    """The adapter at one matrix."""

    layer: int | None
    """In which block; null outside the blocks."""
    matrix: str
    """Which matrix of it."""
    rank: int
    """Its rank."""


class LimitsView(Payload):
    """What a gate, the breaker and the supervisor hold the run to."""

    short_regression: float
    """Largest rise of the loss on short text, nats per token."""
    accuracy_drop: float
    """Largest fall of the probe's accuracy."""
    needle_share: float
    """Needles at the longest window, as a share of those in the native one."""
    slope: float
    """Largest relative rise of the perplexity per evaluation."""
    memory_bytes: int
    """Most memory that a worker may use."""


class RunDetail(Payload):
    """Everything of one run that is not in its event stream."""

    id: str
    """Name of the run folder."""
    cockpit: Cockpit
    """The payload of the first glance."""
    plan: PlanView
    """What it does."""
    limits: LimitsView
    """What it is held to."""
    checkpoints: tuple[CheckpointView, ...]
    """What passed, in order."""
    current: str | None
    """Where the pointer stands."""
    ranks: tuple[RankView, ...]
    """Adapters of the newest training, matrix by matrix; empty where none were trained."""
    gate: GateView | None
    """The open gate."""
    undo: str | None
    """Checkpoint that Undo returns to; null where there is nothing to undo."""
    alive: bool
    """True while a process works on the run."""
    signed_by: str
    """Who signed the contract."""
    has_report: bool
    """Whether the report is written."""
    sequence: int
    """Newest event in this answer."""


class FusionCell(Payload):
    """One part of one layer: how the models that a run will merge differ from its base."""

    layer: int | None
    """Which layer; null outside the layers."""
    part: str
    """attention, feed-forward, norms or embeddings."""
    change: float
    """Length of the models' changes as a share of the base's weights."""
    cosine: float | None
    """Between their changes: 1 they repeat each other, 0 independent, -1 opposite; null where only one changed."""
    agreement: float | None
    """Share of numbers changed by several models that all moved the same way."""


class FusionView(Payload):
    """What a merge at the end of a run will bring together, before it does."""

    method: str
    """How it merges."""
    models: tuple[str, ...]
    """Whose changes are compared; the base is what they are compared with."""
    cells: tuple[FusionCell, ...]
    """By layer and part."""


class Command(Payload):
    """A wish of the person; a decision on a gate carries the gate's id and the evidence it was made on."""

    key: Key
    """Chosen by the client; the same key never has an effect twice."""
    action: Verb
    """What is wished."""
    gate: Annotated[str, Field(max_length=64)] | None = None
    """Which gate is answered."""
    evidence_hash: Annotated[str, Field(max_length=128)] | None = None
    """The evidence that was on the screen."""
    to: Slug | None = None
    """Rollback: which checkpoint."""
    confirmed: bool = False
    """Rollback and Abort: the preview was shown and confirmed."""


class Outcome(Payload):
    """What a command did."""

    done: bool
    """False where the same wish had been carried out before."""
    sentence: str
    """In words."""


class Preview(Payload):
    """What a rollback would do; nothing is changed by asking."""

    to: str
    """Where it would return to."""
    leaves: tuple[str, ...]
    """Checkpoints that would stand aside; they stay on disk until something is built over them."""
    running: bool
    """Whether a running phase is stopped for it; its unfinished work is kept for the next attempt only."""
    sentence: str
    """What had been measured there."""
    bytes_copied: Literal[0] = 0
    """A rollback is a pointer."""


class ModelRow(Payload):
    """A model that can be grown; chosen by its id."""

    id: str
    """`embedded`, `smollm2`, a folder or GGUF file of the folder given with --models, or a hub id that was fetched."""
    name: str
    """For a person."""
    detail: str
    """Size and window, or what has to happen first."""
    ready: bool
    """False where it has to be fetched or converted first."""
    size_why: str | None = None
    """Why it cannot get even a little larger here; null where it can, or where that is not known yet."""
    window_why: str | None = None
    """Why its window cannot be doubled here; null likewise."""


class ModelWish(Payload):
    """Make a model ready to be planned with: fetch it, or convert it."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Id of a model, or of one on the Hugging Face hub (ORG/NAME)."""


class Wish(Payload):
    """What the wizard asks a plan for."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Id of a model."""
    parameters: Annotated[str, Field(max_length=20)] | None = None
    """"1.5x", "200M"; null keeps the size."""
    context: Annotated[str, Field(max_length=20)] | None = None
    """"2x", "16K"; null keeps the window."""
    data: Annotated[str, Field(max_length=64)] = "kjv"
    """`kjv`, or the id of an upload."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")] | None = None
    """Beginning of the run's name."""
    train: Literal["new", "lora", "norms", "all", "nothing"] | None = None
    """What learns; null lets the plan choose."""
    tokens: Annotated[str, Field(max_length=20)] | None = None
    """Tokens to learn from."""
    learning_rate: Annotated[float, Field(gt=0, le=100)] | None = None
    """Peak learning rate; null lets the plan choose."""
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank of the adapters, where adapters are trained."""
    control: bool = True
    """Also train the base on the same tokens, to know whether growth paid."""
    memory_share: Annotated[float, Field(gt=0, le=0.9)] = 0.9
    """Share of the memory that the run may use."""
    more: dict[str, Any] = Field(default={})
    """Fields of a recipe that have no control of their own, as advice gave them; checked as a recipe is."""


class Said(Payload):
    """A wish in a person's own words."""

    text: Annotated[str, Field(max_length=500)]
    """The words; en, pt, es, fr, de or zh."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Id of a model."""
    choose: Annotated[str | None, Field(max_length=60)] = None
    """A recipe, in answer to the question."""


class Advised(Payload):
    """What was understood: a wish to go on with, or one question."""

    recipe: str | None
    """The shipped recipe that it began as; null where a question has to be answered first."""
    wish: Wish | None
    """The same as the wizard's own fields."""
    reasons: tuple[str, ...]
    """Why, one sentence each."""
    question: str | None
    """The one question that decides."""
    choices: tuple[str, ...]
    """Recipes that answer it."""


class Start(Payload):
    """Begin a run."""

    key: Key
    """Chosen by the client; the same key never starts two runs."""
    wish: Wish
    """What is wished."""
    sign: Annotated[str, Field(min_length=1, max_length=80)]
    """Name under the human contract."""
    text_hash: Annotated[str, Field(max_length=128)]
    """Fingerprint of the contract text that was shown."""
    standing: bool = False
    """Standing approval of every gate that keeps its limits."""


class Started(Payload):
    """A run that was begun."""

    id: str
    """Its id."""


class ContractView(Payload):
    """The human contract as it will be signed."""

    version: str
    """Its version."""
    points: tuple[str, ...]
    """Its sentences."""
    text_hash: str
    """Fingerprint of every number and word."""


class Upload(Payload):
    """Text that was received, with what will be kept of it."""

    id: str
    """Names it in a wish."""
    name: str
    """What the person called it; never used as a path."""
    bytes: int
    """Size."""
    documents: int
    """Whole texts in it."""
    characters: int
    """Characters kept."""
    shares: dict[str, float]
    """Share of the characters in each part: to learn from, to tune by, to report on."""
    beginning: str
    """The first characters, as they will be read."""
    notes: tuple[str, ...]
    """What was left out or changed, and why."""


class Shift(Payload):
    """A figure at two checkpoints."""

    before: str
    """At the first."""
    after: str
    """At the second."""


class Difference(Payload):
    """What changed between two checkpoints."""

    sentence: str
    """In one sentence."""
    figures: dict[str, Shift]
    """By the name of the figure."""


class Feedback(Payload):
    """A note by the person, stored with the run."""

    text: Annotated[str, Field(max_length=500)]
    """The note."""


class Session(Payload):
    """A one-time token in exchange for a session."""

    token: Annotated[str, Field(min_length=1, max_length=128)]
    """From the fragment of the link."""


class Link(Payload):
    """A fresh one-time link."""

    path: str
    """Path and fragment, to be put behind this server's address."""


class Frame(Payload):
    """One event of the stream; `seq` is the journal's own number."""

    seq: int
    """Number in the journal."""
    time: float
    """Seconds since 1970, UTC."""
    phase: str | None
    """In which phase."""
    kind: str
    """What happened."""
    data: dict[str, Any]
    """Its details."""
