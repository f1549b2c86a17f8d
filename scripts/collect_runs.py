"""Make the small real runs that advice learns from: every recipe of DESIGN, carried out to its end with one thread.

    python scripts/collect_runs.py FOLDER [FIRST LAST]     # carry out, all or some by number; finished ones are kept
    python scripts/collect_runs.py FOLDER --write          # write src/scaler_wizard/experience.jsonl from them

About 15 minutes of one core. Every gate is approved, so that runs that turn out badly are learnt from as well; the
last phase, the export, is left out. Bases: the embedded model, and two random ones for memory and time alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scaler_wizard.architecture import read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.errors import ScalerError
from scaler_wizard.hardware import detect
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.phases import Plan
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe
from scaler_wizard.record import to_json
from scaler_wizard.run import Run, create, list_runs
from scaler_wizard.supervisor import Gate, Paused, Supervisor

OUT = Path(__file__).parents[1] / "src" / "scaler_wizard" / "experience.jsonl"
SHAPES: dict[str, dict[str, int]] = {
    "random-5m": {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 704, "num_attention_heads": 8},
    "random-14m": {"hidden_size": 384, "num_hidden_layers": 8, "intermediate_size": 1024, "num_attention_heads": 6},
}
FEW = {"windows": 4, "needles": 4}
SOME = {"windows": 16, "needles": 8}


def _design() -> list[dict[str, Any]]:
    """What differs from run to run; numbers in the file names are places in this list."""
    grow: list[tuple[str, dict[str, Any]]] = [
        ("1.3x", {"train": "all", "tokens": "32K", "control": True}),
        ("2x", {"train": "new", "tokens": "32K"}),
        ("1.1x", {"train": "all", "tokens": "32K"}),
        ("2x", {"train": "lora", "tokens": "32K"}),
        ("1.3x", {"train": "all", "tokens": "32K", "learning_rate": 5e-4}),
        ("2x", {"train": "all", "tokens": "32K"}),
        ("1.5x", {"train": "all", "tokens": "32K", "window": 256}),
        ("1.3x", {"train": "all", "tokens": "32K", "learning_rate": 2e-4}),
    ]
    extend: list[tuple[str, dict[str, Any]]] = [
        ("2x", {"train": "all", "tokens": "32K"}),
        ("4x", {"train": "lora", "tokens": "32K"}),
        ("2x", {"train": "all", "tokens": "32K", "learning_rate": 2e-4}),
        ("4x", {"train": "all", "tokens": "32K"}),
        ("8x", {"train": "all", "tokens": "32K", "window": 256}),
        ("2x", {"train": "lora", "tokens": "32K"}),
    ]
    both: list[tuple[str, str, dict[str, Any]]] = [
        ("1.3x", "2x", {"train": "all", "tokens": "64K", "control": True}),
        ("1.3x", "2x", {"train": "new", "tokens": "32K"}),
        ("1.3x", "4x", {"train": "all", "tokens": "32K", "learning_rate": 5e-4}),
        ("1.3x", "2x", {"train": "lora", "tokens": "32K"}),
        ("1.3x", "2x", {"train": "all", "tokens": "32K", "learning_rate": 5e-4}),
    ]
    random: list[tuple[str, dict[str, Any]]] = [
        ("random-5m", {"parameters": "1.3x", "heal": {"train": "all", "tokens": "16K"}}),
        ("random-14m", {"parameters": "1.2x", "heal": {"train": "new", "tokens": "16K"}}),
        ("random-5m", {"context": "2x", "heal": {"train": "lora", "tokens": "16K"}}),
        ("random-14m", {"context": "2x", "heal": {"train": "all", "tokens": "16K", "window": 256}}),
        ("random-14m", {"parameters": "1.5x", "heal": {"train": "lora", "tokens": "16K", "lora_rank": 8}}),
        ("random-5m", {"parameters": "2x", "context": "2x", "heal": {"train": "all", "tokens": "32K"}}),
    ]
    ways: list[tuple[str, list[str], dict[str, Any]]] = [
        ("1.5x", ["identity_blocks"], {"train": "new", "tokens": "32K"}),
        ("1.5x", ["widen_ffn"], {"train": "new", "tokens": "32K"}),
        ("3x", ["upcycle"], {"train": "all", "tokens": "32K"}),
    ]
    fixed = {"method": "yarn"}  # a search would cost more than all the rest, and say nothing of sizes and rates
    plain: dict[str, Any] = {"model": "embedded", "measure": SOME, "extend": fixed}
    return [
        *({**plain, "parameters": size, "heal": {"control": False, **heal}} for size, heal in grow),
        *({**plain, "context": window, "heal": {"control": False, **heal}} for window, heal in extend),
        *(
            {**plain, "parameters": size, "context": window, "heal": {"control": False, **heal}}
            for size, window, heal in both
        ),
        *(
            {"model": base, "measure": FEW, "extend": fixed, **fields, "heal": {"control": False, **fields["heal"]}}
            for base, fields in random
        ),
        *({**plain, "parameters": size, "allow": by, "heal": {"control": False, **heal}} for size, by, heal in ways),
        {**plain, "parameters": "2x", "heal": False},
        {**plain, "context": "4x", "heal": False},
    ]


DESIGN = _design()


def main(arguments: list[str]) -> int:
    """Carry out, or write down."""
    folder = Path(arguments[0])
    if "--write" in arguments:
        return write(folder)
    first, last = (int(arguments[1]), int(arguments[2])) if len(arguments) > 2 else (0, len(DESIGN) - 1)
    for number in range(first, min(last + 1, len(DESIGN))):
        if not any(path.name.startswith(f"run-{number:02d}-") for path in list_runs(folder / "runs")):
            carry_out(folder, number)
    return 0


def carry_out(folder: Path, number: int) -> None:
    """One run, to its end or to where it was stopped."""
    made = _planned(folder, number)
    plan = Plan(**{**dict(made), "phases": made.phases[:-1]})
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    signed = sign(Contract(), "collect_runs", now=datetime.now(UTC))
    run = create(
        folder / "runs", to_yaml(plan), signed, name=plan.name, identity=plan.identity(), now=datetime.now(UTC)
    )
    print(f"{run.id}: {plan.parameters:,} parameters, {plan.context} tokens", flush=True)
    try:
        Supervisor(run, plan, approver=approve, tell=lambda kind, event: None).conduct()
    except Paused:
        raise  # somebody wants this to stop
    except ScalerError as error:
        print(f"  {error.wrong}", flush=True)  # it is an outcome like any other
    for checkpoint in run.checkpoints.glob("*/*.safetensors"):
        checkpoint.unlink()  # headers and figures are enough; the weights of thirty runs are not


def _planned(folder: Path, number: int) -> Plan:
    wish = DESIGN[number]
    source = base(folder, wish["model"])
    recipe = Recipe.read({**wish, "name": f"run-{number:02d}", "limits": {"threads": 1}}, f"design {number}")
    return make_plan(recipe, source, read_architecture(source.folder), detect(folder))


def approve(gate: Gate) -> tuple[Any, str, str]:
    """Every gate, whatever it says."""
    return "approve", "collect_runs", "approved to be learnt from"


def base(folder: Path, name: str) -> Source:
    """The embedded model, or a random one of a given shape with its tokenizer."""
    if name == "embedded":
        return Source(EMBEDDED, "embedded", "apache-2.0", "shipped")
    place = folder / name
    if not place.is_dir():
        _random(place, SHAPES[name])
    return Source(place, name, "apache-2.0", "random weights")


def _random(place: Path, shape: dict[str, int]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    kept = {
        key: config[key] for key in ("vocab_size", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps")
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**kept, **shape, num_key_value_heads=2))
    model.save_pretrained(place)
    for file in EMBEDDED.glob("tokenizer*"):
        shutil.copyfile(file, place / file.name)


def write(folder: Path) -> int:
    """One line a run, with what today's estimate would have expected."""
    from scaler_wizard.experience import experience

    found = []
    for path in list_runs(folder / "runs"):
        one = experience(Run(path))
        if one is not None:
            found.append(one.model_copy(update={"phases": _expected(folder, int(path.name[4:6]), one.phases)}))
    found.sort(key=lambda one: one.run)
    OUT.write_text("".join(to_json(one) + "\n" for one in found), encoding="utf-8")
    print(f"{len(found)} runs in {OUT}")
    return 0


def _expected(folder: Path, number: int, phases: tuple[Any, ...]) -> tuple[Any, ...]:
    made = _planned(folder, number)
    return tuple(
        needs.model_copy(
            update={"estimated_bytes": phase.estimate.memory_bytes, "estimated_seconds": phase.estimate.seconds}
        )
        for needs, phase in zip(phases, made.phases, strict=False)
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
