"""The folders of a run around the embedded model and a small text, to heal a model in and to look at what is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaler_wizard.architecture import read_architecture
from scaler_wizard.events import WorkerEvent
from scaler_wizard.grow import grow_program
from scaler_wizard.grow.depth import IdentityBlocks
from scaler_wizard.heal import Conduct, heal
from scaler_wizard.models import EMBEDDED
from scaler_wizard.phases import Base, Estimate, Phase, Train
from scaler_wizard.recipe import Breaker
from scaler_wizard.task import Task
from scaler_wizard.weights import copy_companions, write

WORDS = "in the beginning was a small house and the road of many stones went over it to the sea again".split()
WINDOW = 64


class Room:
    """A run's folders around the embedded model, a small text, and what a healing says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder, list[WorkerEvent]()
        for name in ("staging", "scratch"):
            (folder / name).mkdir()
        shutil.copytree(EMBEDDED, folder / "base")
        (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in stories()))

    def grow(self, *operators: IdentityBlocks) -> Room:
        grown = self.folder / "grown"
        grown.mkdir()
        write(grow_program(read_architecture(self.folder / "base"), list(operators), seed=1), grown, seed=1)
        copy_companions(self.folder / "base", grown)
        self.operators = operators
        return self

    def heal(self, *, should_stop: Callable[[], bool] = lambda: False, **changes: Any) -> dict[str, Any]:
        evidence: dict[str, Any] = heal(self.task(**changes), Conduct(self.events.append, should_stop))["training"]
        return evidence

    def task(self, **changes: Any) -> Task:
        plain = {"train": "all", "steps": 3, "windows_per_step": 4, "micro_batch": 4, "window": WINDOW}
        pace = {"learning_rate": 1e-3, "warmup_steps": 1, "evaluate_every": 2, "short_share": 0.0, "compute": "float32"}
        train = Train(**{**plain, **pace, **changes})
        base, operators = read_architecture(self.folder / "base"), getattr(self, "operators", ())
        return Task(
            run_id="r",
            trace_id="t",
            phase=Phase(number=3, stage="P3", name="heal", title="heal", change=train, measure=None, estimate=NOTHING),
            base=Base(
                source="embedded",
                folder=self.folder / "base",
                name="embedded",
                licence=None,
                family=base.family,
                parameters=base.parameters,
                layers=base.layers,
                hidden=base.hidden,
                native_context=base.native_context,
                dtype=base.dtype,
            ),
            current=self.folder / ("grown" if operators else "base"),
            staging=self.folder / "staging",
            scratch=self.folder / "scratch",
            report=None,
            run_folder=self.folder,
            data=str(self.folder / "text.jsonl"),
            target_context=128,
            baseline=None,
            grown_by=operators,
            breaker=Breaker(),
            memory_limit_bytes=2**33,
            threads=1,
            seed=0,
        )


NOTHING = Estimate(seconds=None, memory_bytes=None, disk_bytes=None, basis="")


def stories() -> list[str]:
    return [" ".join(WORDS[(number * step + number) % len(WORDS)] for step in range(150)) for number in range(1, 80)]
