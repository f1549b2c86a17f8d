"""What a supervisor hands to a worker: one phase, where to read, where to stage, what it may use."""

from __future__ import annotations

from pathlib import Path

from scaler_wizard.grow import Operator
from scaler_wizard.metrics import Measurement
from scaler_wizard.phases import Base, Phase
from scaler_wizard.recipe import Breaker
from scaler_wizard.record import Record


class AfterStop(Record):
    """What a person chose after the breaker had stopped the training."""

    keep: int | None
    """End at this step, the last good one; null: go on from there, and only warn."""


class Task(Record):
    """One phase for one worker; the very same file runs on a local child, under torchrun or on another machine."""

    run_id: str
    """Which run."""
    trace_id: str
    """One id for everything that belongs together."""
    phase: Phase
    """What to do."""
    base: Base
    """The model that the run began with."""
    current: Path
    """Folder of the checkpoint that this phase starts from; the base's folder at first."""
    staging: Path
    """Folder that the phase's model is written into; exists and is empty, or holds an interrupted attempt."""
    scratch: Path
    """Folder for training snapshots; survives the worker and is removed when the phase is committed."""
    report: Path | None
    """Folder for the report, where the phase writes one."""
    run_folder: Path
    """The run folder, to read its journal for the report and the model card; a worker never writes to the journal."""
    data: str
    """Text to heal with and to measure on."""
    target_context: int
    """Longest window of the whole run: what the baseline is measured out to."""
    baseline: Measurement | None
    """What phase P0 measured; null in P0 itself."""
    grown_by: tuple[Operator, ...] = ()
    """Growth operators between the base and `current`; training needs them to know what is new."""
    breaker: Breaker
    """When training is stopped."""
    after_stop: AfterStop | None = None
    """What was chosen after it had been stopped; null where it was not."""
    memory_limit_bytes: int
    """Most memory that the worker may use."""
    threads: int
    """Processor threads."""
    compute_dtype: tuple[str, str] | None = None
    """Type to compute in and why, as the first phase found it; null in the first phase, which probes."""
    seed: int
    """Seed of everything random."""

    def owns(self, folder: Path) -> bool:
        """Whether a folder lies in the run folder, where nobody else writes."""
        return folder.is_relative_to(self.run_folder)
