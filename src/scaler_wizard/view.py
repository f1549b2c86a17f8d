"""A run in words and rows, as the command line shows it; everything is read from the run folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from scaler_wizard.gate import context_retention, fused_vibe, needle_cells, tokens, vibe
from scaler_wizard.journal import Row
from scaler_wizard.metrics import Interval, Measurement
from scaler_wizard.payload import measurement_of
from scaler_wizard.phases import Phase, Plan
from scaler_wizard.run import Run

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30
Rows = list[tuple[str, str]]


# -- a plan ------------------------------------------------------------------------------------------------------------


def plan_table(plan: Plan) -> Iterator[Table | str]:
    """What would be done, before anything is: phases with their time, memory and disk, then notes."""
    from rich.table import Table

    from scaler_wizard.experience import error_note  # reads files: only a plan needs it

    base = plan.base
    yield (
        f"{base.name}: {base.parameters:,} -> {plan.parameters:,} parameters, "
        f"window {tokens(base.native_context)} -> {tokens(plan.context)}, text: {plan.data}"
    )
    table = Table("", "phase", "time", "memory", "disk", box=None, pad_edge=False)
    for phase in plan.phases:
        table.add_row(phase.stage, phase.title, *_needs(phase))
    total = plan.estimate
    table.add_row("", "all", duration(total.seconds), size(total.memory_bytes), size(total.disk_bytes))
    yield table
    yield f"Times and memory: {'; '.join(_bases(plan) or [plan.phases[0].estimate.basis, error_note(plan)])}."
    for note in plan.notes:
        yield f"- {note}"


def _bases(plan: Plan) -> list[str]:
    """How a trial found the times of a plan; empty where there was none."""
    tried = [phase.estimate.basis for phase in plan.phases if phase.estimate.band is not None]
    return [f"training by {tried[0]}", f"the rest {plan.phases[0].estimate.basis}"] if tried else []


def _needs(phase: Phase) -> tuple[str, str, str]:
    needs = phase.estimate
    band = "" if needs.band is None else f" ±{needs.band:.0%}"
    return duration(needs.seconds) + band, size(needs.memory_bytes), size(needs.disk_bytes)


def duration(seconds: float | None) -> str:
    """As people say it: 40 s, 12 min, 3.5 h."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int | None) -> str:
    """Bytes as people say them: 12 MB, 1.5 GB (powers of 1024)."""
    if count is None:
        return "unknown"
    return f"{count / GIB:.1f} GB" if count >= 0.95 * GIB else f"{count / 2**20:.0f} MB"


# -- a run -------------------------------------------------------------------------------------------------------------


def status_rows(run: Run) -> Rows:
    """Where a run stands, its checkpoints, and the open gate with its evidence and how to answer."""
    rows: Rows = [("run", run.id), ("status", run.status)]
    said = run.last("status")
    if said is not None and said.data["why"] and run.status in ("paused", "stopped", "failed"):
        rows.append(("why", said.data["why"]))
    current = run.current
    for row in run.committed():
        slug = row.data["slug"]
        rows.append(("-> current" if slug == current else "checkpoint", f"{slug}  {row.data['sentence']}"))
    gate = run.open_gate()
    if gate is not None:
        rows += [("gate", gate.data["sentence"]), *(("reason", text) for text in gate.data["verdict"]["reasons"])]
        rows += [(name, value) for name, value in evidence_rows(gate.data["evidence"])]
        rows.append(("answer", "scaler approve | scaler abort, then scaler resume"))
    elif run.status in ("paused", "stopped", "failed"):
        rows.append(("next", f"scaler resume {run.id}"))
    return rows


def evidence_rows(evidence: dict[str, Any]) -> Rows:
    """The figures of a gate, as a person reads them."""
    rows: Rows = []
    proof, training, stop = evidence.get("proof"), evidence.get("training"), evidence.get("stopped")
    if stop:
        rows += stop_rows(stop)
    if proof:
        rows.append(("proof", str(proof["reason"])))
    if training:
        before, after = training["before"], training["grown"]["nll"]
        rows.append(("held-out loss", f"{before:.4f} before, {after:.4f} after training"))
        if training["control"]:
            rows.append(("the base, same tokens", f"{training['control']['nll']:.4f}"))
    for domain in evidence["merge"]["judgement"]["domains"] if "merge" in evidence else ():
        rows += [(f"{domain['name']}: {one['what']}", _against(one)) for one in domain["measures"]]
    measured = measurement_of(evidence.get("measurement"))
    if measured is not None:
        rows += measurement_rows(measured)
    return rows


def _against(measure: dict[str, Any]) -> str:
    """The merged model's figure, those of its parents, and the difference to the best of them."""
    parents = ", ".join(f"{name} {value:.3f}" for name, value in measure["parents"].items())
    return f"{measure['merged']:.3f}; {parents}; {interval(Interval.read(measure['gain'], 'gain'))}"


def stop_rows(stop: dict[str, Any]) -> Rows:
    """Why the breaker stopped a training, what it had seen, and what can be chosen."""
    read = ", ".join(f"{step}: {nll:.3f}" for step, nll in stop["evaluations"][-6:])
    kept = (
        f"keeps the model of step {stop['kept']}" if stop["kept"] else "keeps the untrained model: no step was better"
    )
    return [
        ("stopped by", f"{stop['cause']} at step {stop['step']} of {stop['steps']}"),
        ("loss after step", read or "not evaluated"),
        ("approve", kept),
        ("go on anyway", "scaler approve --anyway trains on from there; the breaker then only warns"),
    ]


def measurement_rows(measured: Measurement) -> Rows:
    """What was measured; what was not is left out."""
    rows: Rows = []
    if measured.short_nll is not None:
        rows.append(("loss on short text", f"{measured.short_nll:.4f} nats per token"))
        rows.append(("perplexity", f"{math.exp(min(measured.short_nll, 700.0)):.3f}"))
    rows += [(f"loss at {one.start}-{one.end}", f"{one.nll:.4f}") for one in measured.buckets[-2:]]
    if measured.context_gain is not None:
        rows.append(("gain over truncation", interval(measured.context_gain)))
    for length in sorted({cell.length for cell in measured.needles}):
        cells = needle_cells(measured, length)
        found, asked = sum(cell.found for cell in cells), sum(cell.asked for cell in cells)
        rows.append((f"needles at {tokens(length)}", f"{found}/{asked}"))
    if measured.probe is not None:
        probe = measured.probe
        rows.append((f"probe: {probe.name}", f"{probe.correct}/{probe.asked}, chance {probe.chance:.0%}"))
    return rows


def interval(value: Interval) -> str:
    """A value with its 95 % interval."""
    return f"{value.value:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def log_line(row: Row) -> str:
    """One event on one line."""
    moment = datetime.fromtimestamp(row.time).strftime("%m-%d %H:%M:%S")
    return f"{row.seq:>5} {moment} {row.phase or '-':<18} {row.kind:<14} {_words(row)}"


def _words(row: Row) -> str:
    data = row.data
    match row.kind:
        case "status":
            return f"{data['status']}{': ' + data['why'] if data['why'] else ''}"
        case "step":
            return f"{data['step']}/{data['steps']} loss {data['loss']:.4f} ({data['arm']})"
        case "evaluated":
            return f"step {data['step']} loss {data['nll']:.4f} ({data['arm']})"
        case "usage":
            return f"{size(data['ram_bytes'])}, {data['doing']}"
        case "decision":
            return f"{data['action']} by {data['who']} ({data['how']}) on {data['evidence_hash'][:12]}"
        case "moved":
            return f"{data['how']}: {data['before']} -> {data['after']} by {data['who']}"
    for key in ("sentence", "text", "wrong", "slug", "name"):
        if key in data:
            return str(data[key])
    return " ".join(f"{key}={value}" for key, value in data.items())


def farewell(run: Run) -> str:
    """The last word of a run that is complete: where the model and the report are."""
    lines = [f"Done: {run.id}", f"model    {run.checkpoints / (run.current or '')}"]
    if (run.report / "report.html").exists():
        lines.append(f"report   {run.report / 'report.html'}")
    return "\n".join([*lines, "back     scaler rollback    what changed: scaler diff"])


# -- two checkpoints ---------------------------------------------------------------------------------------------------

Figures = dict[str, tuple[str, str]]


def changelog(run: Run, first: str | None, second: str | None) -> tuple[str, Figures]:
    """What changed between two checkpoints (the first and the current where left out): a sentence, and figures."""
    line = [row.data["slug"] for row in run.lineage()]
    rows = {row.data["slug"]: row for row in run.committed()}
    earlier = rows[run.slug(first) if first is not None else line[0]] if line else None
    later = rows[run.slug(second) if second is not None else line[-1]] if line else None
    if earlier is None or later is None:
        return "nothing was committed yet", {}
    before, after = (_shape(run, row) | _measured(run, row) for row in (earlier, later))
    changes = [text for key in before if (text := _changed(key, before[key], after[key])) is not None]
    figures = {key: (_shown(before[key]), _shown(after[key])) for key in before}
    sentence = ", ".join(changes) or "nothing that was measured changed"
    return sentence[:1].upper() + sentence[1:], figures


def _shape(run: Run, row: Row) -> dict[str, float | None]:
    from scaler_wizard.architecture import read_architecture

    found = read_architecture(run.checkpoints / row.data["slug"])
    return {"parameters": found.parameters, "context": found.config["max_position_embeddings"]}


def _measured(run: Run, row: Row) -> dict[str, float | None]:
    """A phase that measures nothing of its own has what the last one before it measured."""
    line = [one for one in run.committed() if one.seq <= row.seq]
    found = [one for each in line if (one := measurement_of(each.data.get("measurement"))) is not None]
    measured, baseline = (found[-1], found[0]) if found else (None, None)
    told = [each.data["evidence"] for each in line if each.data.get("measurement")]
    fused = fused_vibe(told[-1] if told else None)
    short = None if measured is None else measured.short_nll
    return {
        "perplexity": None if short is None else math.exp(min(short, 700.0)),
        "needles": None if measured is None else context_retention(measured),
        "accuracy": measured.probe.accuracy.value if measured and measured.probe else None,
        "vibe": fused if fused is not None else vibe(baseline, measured) if measured and baseline else None,
    }


def _changed(name: str, before: float | None, after: float | None) -> str | None:
    """In a few words; None where nothing changed or nothing is known."""
    if before is None or after is None or before == after or not before:
        return None
    ratio = after / before
    if name == "context" and ratio in (2.0, 0.5):
        return "context doubled" if ratio == 2.0 else "context halved"
    if name in ("context", "parameters"):
        return f"{name} {ratio:.3g}x"
    if name == "perplexity":
        return f"perplexity {ratio - 1:+.1%}" if abs(ratio - 1) >= 0.0005 else None
    return f"{name} {100 * (after - before):+.0f} %" if abs(after - before) >= 0.005 else None


def _shown(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
