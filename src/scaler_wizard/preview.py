"""What a rollback brings back and what it leaves behind, in words and figures; changes nothing."""

from __future__ import annotations

import math

from scaler_wizard.journal import Row
from scaler_wizard.record import Record
from scaler_wizard.run import Run


class Work(Record):
    """What one phase made."""

    phase: str
    """Name of its checkpoint."""
    steps: int
    """Optimiser steps of the grown model; 0 where it trained nothing."""
    minutes: float | None
    """From its start to its commit, or to its last event; null where the journal does not hold its start."""
    perplexity: float | None
    """On short held-out text; null where it was not measured."""
    accuracy: float | None
    """Share of the probe's questions; null where none were asked."""
    kept: bool
    """True: it stays as a checkpoint, and an undo brings it back. False: it is unfinished, and is thrown away."""


class Preview(Record):
    """A rollback, before it is done."""

    returns: Work
    """What becomes the current model."""
    leaves: tuple[Work, ...]
    """What is left behind, oldest first."""
    sentence: str
    """The same in one sentence."""


def preview(run: Run, slug: str) -> Preview:
    """Look at a rollback to the checkpoint `slug`."""
    rows = {str(row.data["slug"]): row for row in run.committed()}
    current = run.current or ""
    leaves = [_work(run, name, row) for name, row in rows.items() if slug < name <= current]
    if (unfinished := _unfinished(run)) is not None:
        leaves.append(unfinished)
    returns = _work(run, slug, rows[slug])
    return Preview(returns=returns, leaves=tuple(leaves), sentence=_sentence(slug, leaves))


def _work(run: Run, slug: str, row: Row | None) -> Work:
    events = run.journal.events(phase=slug)
    begun = next((event for event in reversed(events) if event.kind == "phase_started"), None)
    since = [event for event in events if begun is not None and event.seq >= begun.seq]
    steps = [event.data["step"] for event in since if event.kind == "step" and event.data["arm"] == "grown"]
    end = row or (since[-1] if since else None)
    measured = (row.data.get("measurement") if row is not None else None) or {}
    nll, probe = measured.get("short_nll"), measured.get("probe")
    return Work(
        phase=slug,
        steps=max(steps, default=0),
        minutes=None if begun is None or end is None else max(0.0, end.time - begun.time) / 60,
        perplexity=None if nll is None else math.exp(min(nll, 700.0)),
        accuracy=None if probe is None else probe["accuracy"]["value"],
        kept=row is not None,
    )


def _unfinished(run: Run) -> Work | None:
    """The phase that is being made, where one is."""
    begun = run.last("phase_started")
    if begun is None or not run.staging.is_dir() or not any(run.staging.iterdir()):
        return None
    return _work(run, str(begun.data["slug"]), None)


def _sentence(slug: str, leaves: list[Work]) -> str:
    where = f"Back to phase {int(slug[:3])} ({slug[4:]})"
    if not leaves:
        return f"{where}: nothing is left behind."
    steps, minutes = sum(work.steps for work in leaves), sum(work.minutes or 0.0 for work in leaves)
    thrown = ", ".join(work.phase for work in leaves if not work.kept)
    words = f"{where} leaves {len(leaves)} phase{'s' * (len(leaves) > 1)} behind: {steps} steps, {minutes:.0f} minutes"
    return f"{words}; unfinished and thrown away: {thrown}." if thrown else f"{words}; an undo brings them back."
