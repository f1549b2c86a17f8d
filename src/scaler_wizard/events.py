"""What happens in a run, as events: the worker's lines, the journal's rows and the cockpit's payload."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

from scaler_wizard.metrics import Interval, Measurement
from scaler_wizard.record import Record

Stage = Literal["P0", "P1", "P2", "P3", "P4"]
Action = Literal["Approve", "Abort", "Rollback", "Pause", "Resume"]


class Status(StrEnum):
    """Where a run stands."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    PAUSED = "paused"
    WARNING = "warning"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"


# -- what a worker says, one JSON object a line ---------------------------------------------------------------------


class Progress(Record):
    """How far the phase is."""

    kind: Literal["progress"] = "progress"
    share: Annotated[float, Field(ge=0, le=1)]
    """Part of the phase that is done."""
    doing: str
    """What is being done, in a few words."""
    seconds_left: float | None = None
    """Estimated time to the end of the phase; None while unknown."""


class Step(Record):
    """One optimiser step."""

    kind: Literal["step"] = "step"
    step: int
    """Number of the step, from 1."""
    steps: int
    """Steps planned."""
    loss: float
    """Training loss of this step, nats per token."""
    learning_rate: float
    """Learning rate of this step."""
    gradient_norm: float | None = None
    """Norm of the gradient before clipping."""
    tokens: int
    """Tokens seen so far."""
    tokens_per_second: float | None = None
    """Training speed."""
    arm: Literal["grown", "control"] = "grown"
    """Which model is trained: the grown one, or the base that it is compared with."""


class Evaluated(Record):
    """A measurement inside training."""

    kind: Literal["evaluated"] = "evaluated"
    step: int
    """After which step; 0 is before training."""
    nll: float
    """Loss on calibration text, nats per token."""
    perplexity: float
    """exp(nll)."""
    accuracy: float | None = None
    """Share of probe answers that were right; None where no probe runs in training."""
    accuracy_interval: Interval | None = None
    """The same with its 95 % interval."""
    asked: int | None = None
    """Questions that the probe asked."""
    arm: Literal["grown", "control"] = "grown"
    """Which model was measured."""


class Usage(Record):
    """What the phase uses of the machine, seen by the supervisor about once a second."""

    kind: Literal["usage"] = "usage"
    ram_bytes: int
    """Memory of the worker and its children."""
    cpu_percent: float | None = None
    """Use of all processors by the worker, 0 to 100; None at the first look."""
    vram_bytes: int | None = None
    """GPU memory of the worker; None without a GPU."""
    cpu_seconds: float | None = None
    """Processor time that the phase took so far; None in runs of earlier releases."""
    share: float | None = None
    """Part of the phase that is done; None while unknown."""
    doing: str = ""
    """What is being done."""
    seconds_left: float | None = None
    """Estimated time to the end of the run; None while unknown."""


class Telegram(Record):
    """The circuit breaker's message: why training was stopped or warned about."""

    kind: Literal["telegram"] = "telegram"
    cause: Literal["nonfinite", "slope", "accuracy", "memory", "divergence", "stall"]
    """Which limit was broken."""
    step: int
    """At which step."""
    value: float | None
    """What was seen."""
    limit: float | None
    """What is allowed."""
    sentence: Annotated[str, Field(max_length=120)]
    """The same in words."""
    hard: bool = True
    """True stops the phase; False only warns."""


class Note(Record):
    """Something a person should know: a choice, a skipped wish, a fallback."""

    kind: Literal["note"] = "note"
    text: str
    """The sentence."""


class Done(Record):
    """The phase is staged and measured."""

    kind: Literal["done"] = "done"
    measurement: Measurement | None = None
    """What was measured on the staged model."""
    evidence: dict[str, Any] = Field(default={})
    """What the gate is shown beside the measurement: the proof, the control arm, the training summary."""


class Failed(Record):
    """The phase could not be done."""

    kind: Literal["failed"] = "failed"
    reason: Literal["input", "memory", "disk", "breaker", "proof", "fault"]
    """Whose turn it is: input is the user's, fault is ours."""
    wrong: str
    """What is wrong."""
    cure: str
    """What to do."""


WorkerEvent = Annotated[
    Progress | Step | Evaluated | Telegram | Note | Done | Failed,
    Field(discriminator="kind"),
]
worker_event: TypeAdapter[Progress | Step | Evaluated | Telegram | Note | Done | Failed] = TypeAdapter(WorkerEvent)


# -- what the cockpit sees -------------------------------------------------------------------------------------------


class Payload(Record):
    """Part of the cockpit's payload: camelCase outside, snake_case inside."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, alias_generator=to_camel, populate_by_name=True
    )


class Nonfinite(Payload):
    """A number that JSON cannot hold."""

    value: None = None
    """Always null."""
    nonfinite: Literal["nan", "inf", "-inf"]
    """Which one."""


Number = Annotated[float, Field(allow_inf_nan=False)] | Nonfinite | None
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | Nonfinite | None
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


class QualityMetrics(Payload):
    """How good the model is now."""

    perplexity: Number = None
    """exp of the mean held-out loss."""
    perplexity_slope: Number = None
    """Change of perplexity per evaluation over the breaker's window."""
    accuracy: Share = None
    """Share of probe questions answered right."""
    emergent_vibe_score: Share = None
    """How much of the best parent's skill is kept over all domains."""
    context_retention: Share = None
    """Share of needles found at the longest window."""
    canonical_sentence: Annotated[str, Field(max_length=120)] = ""
    """The one sentence that says where the run stands."""


class ResourceUsage(Payload):
    """What the run uses of the machine."""

    vram_used_gb: Amount = None
    """GPU memory in use, GiB; null without a GPU."""
    vram_total_gb: Amount = None
    """GPU memory, GiB; null without a GPU."""
    ram_used_gb: Amount = None
    """Memory of the run's processes, GiB."""
    cpu_utilization: Annotated[float, Field(ge=0, le=100)] | None = None
    """Use of all processors, per cent."""
    estimated_time_left_min: Amount = None
    """Minutes to the end of the run."""
    hybrid_mode: bool = False
    """True while part of the work runs on another machine."""
    cloud_provider: str | None = None
    """Where that is."""


class ContractState(Payload):
    """How the human contract stands."""

    version: str
    """Version that was signed."""
    guarantees_met: bool
    """False as soon as one guarantee is broken."""
    response_window_sec: Annotated[int, Field(ge=30, le=600)] = 120
    """Seconds a gate waits."""
    next_decision_point: AwareDatetime | None = None
    """When the open gate turns into a pause; null while no gate is open."""


class Cockpit(Payload):
    """Everything that one glance needs; validated against its schema at every emission."""

    run_id: UUID
    """Which run."""
    timestamp: AwareDatetime
    """When this was true."""
    phase: Stage
    """P0 baseline, P1 parameters, P2 context, P3 quality, P4 merge and export."""
    step: Annotated[int, Field(ge=0)]
    """Optimiser step inside the phase; 0 outside training."""
    status: Status
    """Where the run stands."""
    quality_metrics: QualityMetrics
    """How good the model is."""
    resource_usage: ResourceUsage
    """What is used."""
    human_contract: ContractState
    """What was promised."""
    actions: tuple[Action, ...]
    """What the person can do now."""
    trace_id: str
    """One id for everything that belongs together."""
    audit: dict[str, Any] = Field(default={})
    """Who decided what, on which evidence."""
    user_feedback: Annotated[str, Field(max_length=500)] | None = None
    """A note by the person."""
