"""The runs as Prometheus reads them (text format 0.0.4); unknown values are left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaler_wizard.events import Cockpit
from scaler_wizard.journal import Row
from scaler_wizard.payload import cockpit
from scaler_wizard.run import Run, list_runs

KIND = "text/plain; version=0.0.4; charset=utf-8"
STATUSES = ("initializing", "running", "paused", "warning", "stopped", "completed", "failed")
HELP = {
    "scaler_runs": "Runs by status.",
    "scaler_run_events_total": "Events in the journal of a run.",
    "scaler_run_perplexity": "Perplexity on held-out text.",
    "scaler_run_accuracy": "Share of probe questions answered right.",
    "scaler_run_context_retention": "Share of needles found at the longest window.",
    "scaler_run_memory_gib": "Memory of the run's processes, GiB.",
    "scaler_run_step": "Optimiser step.",
    "scaler_run_loss": "Training loss of the newest step, nats per token.",
}


def exposition(runs: Path) -> str:
    """Everything, in the order that the format asks for."""
    samples: dict[str, list[str]] = {name: [] for name in HELP}
    counts = dict.fromkeys(STATUSES, 0)
    for folder in list_runs(runs):
        run = Run(folder)
        try:
            counts[run.status] = counts.get(run.status, 0) + 1
            for name, value in _values(cockpit(run), run.last("step"), run.journal.newest().seq):
                samples[name].append(f'{name}{{run="{run.id}"}} {value}')
        finally:
            run.journal.close()
    samples["scaler_runs"] = [f'scaler_runs{{status="{status}"}} {number}' for status, number in counts.items()]
    return "".join(_block(name, lines) for name, lines in samples.items() if lines)


def _values(shown: Cockpit, step: Row | None, newest: int) -> Iterator[tuple[str, float]]:
    quality = shown.quality_metrics
    found = {
        "scaler_run_events_total": newest,
        "scaler_run_perplexity": quality.perplexity,
        "scaler_run_accuracy": quality.accuracy,
        "scaler_run_context_retention": quality.context_retention,
        "scaler_run_memory_gib": shown.resource_usage.ram_used_gb,
        "scaler_run_step": shown.step,
        "scaler_run_loss": step.data["loss"] if step else None,
    }
    for name, value in found.items():
        if isinstance(value, (int, float)):
            yield name, value


def _block(name: str, lines: list[str]) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    return f"# HELP {name} {HELP[name]}\n# TYPE {name} {kind}\n" + "".join(f"{line}\n" for line in lines)
