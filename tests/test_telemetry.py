"""A real collector over HTTP: what arrives is decoded from the wire, not from our objects."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from machines import machine
from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.errors import ScalerError
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.run import Run, create
from scaler_wizard.telemetry import prometheus, send, trace_id

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")


class Collector:
    """An OTLP/HTTP collector that keeps what it was sent."""

    def __init__(self, status: int = 200) -> None:
        bodies: dict[str, list[bytes]] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                packed = self.headers.get("Content-Encoding") == "gzip"
                bodies.setdefault(self.path, []).append(gzip.decompress(body) if packed else body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

        self.bodies = bodies
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies["/v1/traces"]]
        return [s for request in requests for r in request.resource_spans for p in r.scope_spans for s in p.spans]

    def metrics(self) -> dict[str, list[Any]]:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        requests = [ExportMetricsServiceRequest.FromString(body) for body in self.bodies["/v1/metrics"]]
        every = [m for q in requests for r in q.resource_metrics for p in r.scope_metrics for m in p.metrics]
        return {metric.name: list(metric.gauge.data_points) for metric in every}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def a_run(folder: Path) -> Run:
    plan = make_plan(
        Recipe(model="embedded", parameters="1.3x"),
        Source(EMBEDDED, "embedded", "apache-2.0", "test"),
        read_architecture(EMBEDDED),
        machine(16),
    )
    signed = sign(Contract(), "Ada", now=datetime.now(UTC))
    run = create(folder, to_yaml(plan), signed, name="traced", identity="x", now=datetime.now(UTC))
    for phase in plan.phases[:2]:
        run.journal.add("phase_started", {"slug": phase.slug, "stage": phase.stage}, phase=phase.slug)
        for step in (1, 2, 3):
            loss = float("nan") if step == 2 else 3.0 / step
            run.journal.add(
                "step", {"step": step, "loss": loss, "tokens": 100 * step, "arm": "grown"}, phase=phase.slug
            )
        usage = {"ram_bytes": 5 * 10**8, "vram_bytes": None, "cpu_seconds": 4.5}
        run.journal.add("usage", usage, phase=phase.slug)
        gate = {"gate": phase.slug, "sentence": f"{phase.title} done; approve?", "evidence": {}}
        run.journal.add("gate", gate, phase=phase.slug)
        run.journal.add("decision", {"gate": phase.slug, "action": "approve", "who": "secret person"})
    run.set_status("completed")
    run.write_metadata()
    return run


def test_a_collector_gets_the_run_its_phases_and_their_gates(tmp_path: Path, collector: Collector) -> None:
    run = a_run(tmp_path)
    assert send(run, collector.address)[0] == 3
    spans = {span.name: span for span in collector.spans()}
    root = spans.pop("run")
    assert set(spans) == {"000-baseline", "001-grow"}
    assert {span.trace_id.hex() for span in (root, *spans.values())} == {trace_id(run)}
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    assert all(root.start_time_unix_nano <= s.start_time_unix_nano <= s.end_time_unix_nano for s in spans.values())
    assert [event.name for event in spans["001-grow"].events] == ["gate"]
    assert "secret person" not in repr(root) + repr(spans)


def test_the_trace_is_the_one_of_the_flight_log(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    lines = [json.loads(line) for line in (run.folder / "flight_log.jsonl").read_text().splitlines()]
    assert {line["traceId"].replace("-", "") for line in lines} == {trace_id(run)}


def test_numbers_arrive_as_they_were_measured_and_what_is_no_number_does_not(
    tmp_path: Path, collector: Collector
) -> None:
    _, sent = send(a_run(tmp_path), collector.address)
    points = collector.metrics()
    assert sum(map(len, points.values())) == sent
    assert [point.as_double for point in points["scaler.training.loss"]] == [3.0, 1.0, 3.0, 1.0]
    assert [point.as_int for point in points["scaler.memory"]] == [5 * 10**8] * 2
    assert "scaler.gpu_memory" not in points


def test_sending_twice_sends_the_same_spans(tmp_path: Path, collector: Collector) -> None:
    run = a_run(tmp_path)
    send(run, collector.address)
    send(run, collector.address)
    ids = [span.span_id for span in collector.spans()]
    assert len(ids) == 6 and len(set(ids)) == 3


def test_a_collector_that_refuses_is_said_in_two_lines(tmp_path: Path) -> None:
    refusing = Collector(status=400)
    with pytest.raises(ScalerError, match="did not take it"):
        send(a_run(tmp_path), refusing.address)
    refusing.close()
    with pytest.raises(ScalerError, match="no address"):
        send(a_run(tmp_path / "b"), "localhost")


def test_prometheus_text_is_what_prometheus_reads(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    run = a_run(tmp_path)
    families = {family.name: family.samples for family in parser.text_string_to_metric_families(prometheus(run))}
    newest = {sample.labels["phase"]: sample.value for sample in families["scaler_training_loss"]}
    assert newest == {"000-baseline": 1.0, "001-grow": 1.0}
    assert families["scaler_run_status"][0].labels == {"run": run.id, "status": "completed"}


def test_the_command_sends_and_prints(tmp_path: Path, collector: Collector) -> None:
    run = a_run(tmp_path)
    command = [sys.executable, "-m", "scaler_wizard", "telemetry", run.id, "--runs", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert printed.stdout == prometheus(run)
    sent = subprocess.run([*command, "--to", collector.address], capture_output=True, text=True, check=True)
    assert "3 spans" in sent.stderr and len(collector.spans()) == 3
