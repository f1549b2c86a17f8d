"""A run for other people's instruments: OpenTelemetry traces and metrics over HTTP, and Prometheus text.

All of it is read from the journal, so it can be sent while a run goes on, afterwards, or again: identifiers follow from
the run and the phase, so that a span that is sent twice is the same span. What was not measured is not sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

from scaler_wizard.errors import ScalerError
from scaler_wizard.journal import Row
from scaler_wizard.run import Run

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan

NAME = "scaler-wizard"
SECOND = 1_000_000_000
TIMEOUT_SECONDS = 10
POINTS: dict[str, tuple[str, str, str, str]] = {  # journal's kind and field: name of the metric, unit, what it is
    "usage ram_bytes": ("scaler.memory", "scaler_memory_bytes", "By", "Memory of the worker"),
    "usage vram_bytes": ("scaler.gpu_memory", "scaler_gpu_memory_bytes", "By", "GPU memory of the worker"),
    "usage cpu_seconds": ("scaler.cpu_time", "scaler_cpu_seconds", "s", "Processor time of the phase"),
    "step loss": ("scaler.training.loss", "scaler_training_loss", "1", "Training loss, nats per token"),
    "step tokens": ("scaler.training.tokens", "scaler_training_tokens", "1", "Tokens seen by the arm in training"),
    "evaluated nll": ("scaler.evaluation.loss", "scaler_evaluation_loss", "1", "Loss on calibration text"),
}
SPAN_EVENTS = ("gate", "decision", "telegram", "failed", "note", "moved")
TOLD = ("action", "cause", "reason", "sentence", "step", "text", "wrong", "how", "before", "after")
"""Fields of an event that become attributes; who decided stays in the journal."""


def trace_id(run: Run) -> str:
    """32 hexadecimal digits: the run's uuid, which stands as traceId on every line of the flight log."""
    return UUID(run.journal.get("uuid")).hex


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------


def send(run: Run, endpoint: str) -> tuple[int, int]:
    """Send the run's spans and metrics to an OTLP/HTTP collector, and say how many of each.

    Raises ScalerError where the extra is missing or the collector does not take them.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import MetricExportResult
        from opentelemetry.sdk.trace.export import SpanExportResult
    except ImportError:
        raise ScalerError("OpenTelemetry is not installed", 'pip install "scaler-wizard[telemetry]"') from None
    if not endpoint.startswith(("http://", "https://")):
        raise ScalerError(f"{endpoint}: no address of a collector", "for example http://localhost:4318")
    place, made, points = endpoint.rstrip("/"), list(spans(run)), metrics(run)
    sent = OTLPSpanExporter(f"{place}/v1/traces", timeout=TIMEOUT_SECONDS).export(made)
    told = OTLPMetricExporter(f"{place}/v1/metrics", timeout=TIMEOUT_SECONDS).export(points)
    if sent is not SpanExportResult.SUCCESS or told is not MetricExportResult.SUCCESS:
        raise ScalerError(
            f"{endpoint}: the collector did not take it", "check its address, and that it speaks OTLP/HTTP"
        )
    return len(made), sum(
        len(metric.data.data_points) for metric in points.resource_metrics[0].scope_metrics[0].metrics
    )


def spans(run: Run) -> Iterator[ReadableSpan]:
    """One for the run, one for each attempt at a phase; gates, answers and the breaker's telegrams are their events."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanKind, Status, StatusCode

    rows = run.journal.events()
    if not rows:
        return
    root, resource = _context(run, "run"), _resource(run)
    attempts = [(row, _end(rows, place)) for place, row in enumerate(rows) if row.kind == "phase_started"]
    ended = run.status in ("completed", "stopped", "failed")
    bad = Status(StatusCode.ERROR, run.status) if run.status in ("stopped", "failed") else Status(StatusCode.UNSET)
    yield ReadableSpan(
        name="run",
        context=root,
        resource=resource,
        attributes={"scaler.run": run.id, "scaler.status": run.status, "scaler.ended": ended},
        events=_events(row for row in rows if row.phase is None),
        kind=SpanKind.INTERNAL,
        status=bad,
        start_time=_nanoseconds(rows[0].time),
        end_time=_nanoseconds(rows[-1].time),
    )
    for number, (begun, until) in enumerate(attempts):
        own = [row for row in rows if row.phase == begun.phase and begun.time <= row.time <= until]
        yield ReadableSpan(
            name=str(begun.phase),
            context=_context(run, f"{number} {begun.phase}"),
            parent=root,
            resource=resource,
            attributes={"scaler.phase": str(begun.phase), "scaler.stage": str(begun.data.get("stage", ""))},
            events=_events(iter(own)),
            kind=SpanKind.INTERNAL,
            start_time=_nanoseconds(begun.time),
            end_time=_nanoseconds(until),
        )


def _end(rows: list[Row], place: int) -> float:
    """When an attempt was over: the next one's start, or the last thing that was heard of it."""
    begun, end = rows[place], rows[place].time
    for row in rows[place + 1 :]:
        if row.kind == "phase_started":
            break
        if row.phase == begun.phase or row.kind in ("committed", "status", "decision"):
            end = row.time
    return end


def _events(rows: Iterator[Row]) -> list[Any]:
    from opentelemetry.sdk.trace import Event

    return [Event(row.kind, _attributes(row), _nanoseconds(row.time)) for row in rows if row.kind in SPAN_EVENTS]


def _attributes(row: Row) -> dict[str, Any]:
    told = {key: row.data[key] for key in TOLD if isinstance(row.data.get(key), (str, int, float))}
    return {f"scaler.{key}": str(value) if _nonfinite(value) else value for key, value in told.items()}


def metrics(run: Run) -> MetricsData:
    """Every measured point of the journal, as gauges with the phase and the arm."""
    from opentelemetry.sdk.metrics.export import (
        Gauge,
        Metric,
        MetricsData,
        NumberDataPoint,
        ResourceMetrics,
        ScopeMetrics,
    )
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    found: dict[str, list[NumberDataPoint]] = {key: [] for key in POINTS}
    for key, row, value in _points(run):
        moment = _nanoseconds(row.time)
        found[key].append(NumberDataPoint(_labels(row), moment, moment, value))
    made = [
        Metric(POINTS[key][0], POINTS[key][3], POINTS[key][2], Gauge(points)) for key, points in found.items() if points
    ]
    scope = ScopeMetrics(InstrumentationScope(NAME), made, "")
    return MetricsData([ResourceMetrics(_resource(run), [scope], "")])


def _points(run: Run) -> Iterator[tuple[str, Row, float]]:
    for row in run.journal.events(kinds=("usage", "step", "evaluated")):
        for key in POINTS:
            kind, field = key.split()
            value = row.data.get(field) if kind == row.kind else None
            if isinstance(value, (int, float)) and not _nonfinite(value):
                yield key, row, value


def _labels(row: Row) -> dict[str, str]:
    arm = row.data.get("arm")
    return {"phase": str(row.phase)} | ({"arm": str(arm)} if arm else {})


def _resource(run: Run) -> Any:
    from opentelemetry.sdk.resources import Resource

    return Resource({"service.name": NAME, "scaler.run": run.id})


def _context(run: Run, part: str) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    digest = blake2b(f"{trace_id(run)} {part}".encode(), digest_size=8).digest()
    span = int.from_bytes(digest, "big") or 1
    return SpanContext(int(trace_id(run), 16), span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(time: float) -> int:
    return int(time * SECOND)


def _nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


# -- Prometheus --------------------------------------------------------------------------------------------------------


def prometheus(run: Run) -> str:
    """The newest point of each metric in Prometheus' text format (version 0.0.4); no extra is needed."""
    newest: dict[str, dict[str, float]] = {}
    for key, row, value in _points(run):
        labels = {"run": run.id, **_labels(row)}
        text = ",".join(f'{name}="{_escaped(label)}"' for name, label in labels.items())
        newest.setdefault(key, {})[text] = value
    lines = ["# HELP scaler_run_status 1 for the status that the run has.", "# TYPE scaler_run_status gauge"]
    lines.append(f'scaler_run_status{{run="{_escaped(run.id)}",status="{_escaped(run.status)}"}} 1')
    for key, points in newest.items():
        _, name, _, what = POINTS[key]
        lines += [f"# HELP {name} {what}.", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{labels}}} {value:.10g}" for labels, value in points.items()]
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
