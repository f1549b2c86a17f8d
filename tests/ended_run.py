"""A run folder as a finished run leaves it, with canaries in every place that a person fills in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from machines import machine
from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.metrics import Measurement
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.run import Run, create

CANARY = "canary-7f3a"
NUMBER = 918273645


def ended(folder: Path) -> Run:
    """1.3x the embedded model, twice its window; the loss rises by a seventh of a nat a phase."""
    base = read_architecture(EMBEDDED)
    recipe = Recipe(model=str(EMBEDDED), parameters="1.3x", context="2x", data=f"/home/{CANARY}/letters", name=CANARY)
    plan = make_plan(recipe, Source(EMBEDDED, CANARY, CANARY, CANARY), base, machine(16))
    signed = sign(Contract(), f"{CANARY} Smith", now=datetime.now(UTC))
    run = create(folder, to_yaml(plan), signed, name=CANARY, identity=CANARY, now=datetime.now(UTC))
    for number, phase in enumerate(plan.phases):
        measured = Measurement(
            corpus=CANARY, native_length=128, target_length=256, short_nll=3.0 + number / 7, seconds=1.0
        )
        run.journal.add("phase_started", {"slug": phase.slug}, phase=phase.slug)
        run.journal.add("usage", {"ram_bytes": NUMBER, "cpu_seconds": 12.345678, "doing": CANARY}, phase=phase.slug)
        verdict = {"action": "ask", "sentence": CANARY, "reasons": [CANARY]}
        evidence = {"measurement": measured.model_dump(), CANARY: CANARY}
        gate = {"gate": CANARY + phase.slug, "verdict": verdict, "evidence": evidence, "sentence": CANARY}
        run.journal.add("gate", gate, phase=phase.slug)
        run.journal.add("decision", {"gate": CANARY + phase.slug, "action": "approve", "who": CANARY, "how": CANARY})
    run.journal.set("status", "completed")
    return run
