"""A run folder as a real run leaves it, made in a moment: real plan, checkpoints and journal, made-up figures."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3

from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.gate import stopped
from scaler_wizard.hardware import detect
from scaler_wizard.metrics import Bucket, Interval, Measurement, NeedleCell
from scaler_wizard.models import resolve
from scaler_wizard.phases import Plan
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.record import to_json
from scaler_wizard.run import Run, create


def make_run(runs: Path, *, committed: int = 3, gate: bool = True, name: str = "recorded", **wish: Any) -> Run:
    """A run with `committed` phases behind it and, if wished, the gate of the next one open."""
    plan = a_plan(runs, name, **wish)
    signed = sign(Contract(), "Ada", now=datetime.now(UTC))
    runs.mkdir(parents=True, exist_ok=True)
    run = create(runs, to_yaml(plan), signed, name=name, identity=plan.identity(), now=datetime.now(UTC))
    run.journal.add("started", {"phases": len(plan.phases)})
    run.set_status("running")
    for phase in plan.phases[:committed]:
        _attempt(run, phase.slug, phase.stage)
        if phase.change.kind == "heal":
            train(run, phase.slug)
        sentence = f"{phase.title} done: perplexity 21.3; window 128 -> 256 next; approve?"
        opened = open_gate(run, phase.slug, sentence, **(TRAINED if phase.change.kind == "heal" else {}))
        run.decide(opened["gate"], opened["evidence_hash"], "approve", who="Ada", how="terminal")
        data = {"gate": opened["gate"], "sentence": opened["sentence"], "stage": phase.stage, "evidence": {}}
        run.commit(phase.slug, {**data, "measurement": opened["evidence"]["measurement"]})
    if gate:
        phase = plan.phases[committed]
        _attempt(run, phase.slug, phase.stage)
        open_gate(run, phase.slug, f"{phase.title} done: short loss +0.087, needles 32/32 at 512; approve?")
        run.set_status("paused", "the gate waits")
    return run


MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
TRAINED = {
    "training": {
        "before": 3.1,
        "grown": {"nll": 3.0},
        "control": None,
        "ranks": {f"model.layers.{n}.{name}": 1 + (7 * n + len(name)) % 16 for n in range(6) for name in MATRICES},
    }
}
"""What a training with adapters leaves in the evidence."""


def a_plan(runs: Path, name: str = "planned", **wish: Any) -> Plan:
    """A plan that grows both ways, and does what else is wished."""
    recipe = Recipe.read({"model": "embedded", "parameters": "1.5x", "context": "4x", "name": name, **wish}, "recipe")
    source = resolve("embedded")
    return make_plan(recipe, source, read_architecture(source.folder), detect(runs))


def _attempt(run: Run, slug: str, stage: str) -> None:
    run.journal.add("phase_started", {"slug": slug, "stage": stage}, phase=slug)
    shutil.rmtree(run.staging, ignore_errors=True)
    run.staging.mkdir()
    for file in resolve("embedded").folder.iterdir():
        if file.name != "training.jsonl" and file.is_file():
            shutil.copyfile(file, run.staging / file.name)
    (run.staging / "phase.txt").write_text(slug, encoding="utf-8")


def stop_training(run: Run) -> dict[str, Any]:
    """What a tripped breaker leaves: training events, a telegram, and a gate that offers the last good step."""
    slug = run.last("phase_started").data["slug"]  # type: ignore[union-attr]
    train(run, slug, steps=20)
    sentence = "Perplexity rises 30% per evaluation; the limit is 15%."
    told = {"kind": "telegram", "cause": "slope", "step": 20, "value": 0.3, "limit": 0.15, "hard": True}
    run.journal.add("telegram", {**told, "sentence": sentence}, phase=slug)
    stop = {"cause": "slope", "step": 20, "steps": 40, "value": 0.3, "limit": 0.15, "sentence": sentence}
    evidence = {"stopped": {**stop, "evaluations": [[10, 3.06], [20, 3.4]], "kept": 10, "snapshot": "grown-10.pt"}}
    verdict = stopped(sentence, step=20, steps=40, kept=10)
    digest = blake3(to_json(evidence).encode()).hexdigest()
    gate = {"gate": "gate-stop", "phase": slug, "sentence": verdict.sentence, "verdict": verdict.model_dump()}
    run.journal.add("gate", {**gate, "evidence": evidence, "evidence_hash": digest}, phase=slug)
    return {**gate, "evidence_hash": digest}


def open_gate(run: Run, slug: str, sentence: str, *, action: str = "ask", **more: Any) -> dict[str, Any]:
    """Open a gate on a made-up measurement."""
    evidence = {**more, "measurement": measurement(rise=0.03).model_dump(mode="python")}
    digest = blake3(to_json(evidence).encode()).hexdigest()
    reason = "loss on short text rose by 0.087 nats per token; the limit is 0.05"
    verdict = {"action": action, "sentence": sentence[:120], "reasons": () if action == "pass" else (reason,)}
    gate = {"gate": f"gate-{slug[:3]}", "phase": slug, "sentence": sentence[:120], "verdict": verdict}
    run.journal.add("gate", {**gate, "evidence": evidence, "evidence_hash": digest}, phase=slug)
    return {**gate, "evidence": evidence, "evidence_hash": digest}


def train(run: Run, slug: str, *, steps: int = 40) -> None:
    """Training events of both arms."""
    for arm in ("grown", "control"):
        for step in range(1, steps + 1):
            run.journal.add("step", step_event(step, steps=steps, arm=arm), phase=slug, durable=False)
            if step % 10 == 0:
                nll = 3.1 - 0.004 * step
                evaluated = {"kind": "evaluated", "step": step, "nll": nll, "perplexity": 2.718**nll}
                run.journal.add("evaluated", {**evaluated, "accuracy": None, "arm": arm}, phase=slug)


def step_event(step: int, *, steps: int = 40, arm: str = "grown", loss: float | None = None) -> dict[str, Any]:
    """One optimiser step."""
    return {
        "kind": "step",
        "step": step,
        "steps": steps,
        "loss": 3.3 - 0.01 * step + 0.05 * (step % 3) if loss is None else loss,
        "learning_rate": 1e-3,
        "gradient_norm": 0.7,
        "tokens": 512 * step,
        "tokens_per_second": 5000.0,
        "arm": arm,
    }


def measurement(*, rise: float = 0.0) -> Measurement:
    """What a phase might have measured."""
    return Measurement(
        corpus="King James Bible",
        native_length=128,
        target_length=512,
        short_nll=3.06 + rise,
        short_nll_by_window=(3.0 + rise, 3.12 + rise),
        buckets=tuple(
            Bucket(start=at, end=at + 64, nll=3.05 + rise + at / 4000, truncated_nll=None, tokens=4096)
            for at in range(0, 512, 64)
        ),
        context_gain=Interval(value=-0.02, low=-0.05, high=0.01),
        needles=tuple(
            NeedleCell(length=length, depth=depth, found=8 - length // 256, asked=8, nll=0.1)
            for length in (128, 256, 512)
            for depth in (0.05, 0.35, 0.65, 0.95)
        ),
        seconds=4.0,
    )
