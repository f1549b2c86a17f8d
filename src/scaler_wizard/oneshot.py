"""Grow a model in one step, without a run: `scaler grow MODEL --to 200M -o OUT`.

The grown model is written beside OUT, proved in a child process (`python -m scaler_wizard.oneshot`), and renamed into
place only if the proof holds. Not covered: training. A model that has just grown has room, and has learnt nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from scaler_wizard import __version__
from scaler_wizard.architecture import Architecture, Blueprint, read_architecture
from scaler_wizard.beside import beside, put, refuse_place, sweep
from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.seam import RepeatCosts
from scaler_wizard.files import sync
from scaler_wizard.fingerprint import fingerprint_of
from scaler_wizard.grow import (
    OPERATORS,
    DuplicateLayers,
    GrowthOperator,
    Operator,
    Preserves,
    grow_program,
    promise,
)
from scaler_wizard.prove import Proof
from scaler_wizard.record import Record, from_json, to_json
from scaler_wizard.target import fit_context, solve, target_size
from scaler_wizard.weights import PROCESSES, broken_numbers, check_disk, copy_companions, write
from scaler_wizard.weights.stream import SHARD_BYTES

Tell = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, from 0 to 1."""

GROWTH = "growth.json"
PROMPTS = 4
PROMPT_TOKENS = 64
TEXTS = (
    "The river was high after three days of rain, and the ferry could not cross before noon. People waited on the "
    "bank with their carts, and some of them went back to the village to buy bread.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n",
    "In 1869 the table had 63 elements; by 1900 there were 84, and 118 are known today. Hydrogen is the lightest, "
    "with 1.008, and water boils at 100 degrees Celsius, or 212 degrees Fahrenheit.",
    "Question: Which is larger, seven eighths or eight ninths?\nAnswer: Seven eighths is 0.875 and eight ninths is "
    "about 0.889, so eight ninths is larger. Question: What is the capital of Norway?\nAnswer: Oslo.",
)
"""Calibration prompts where the model has a tokenizer."""


class Growth(Record):
    """How a model was made: written beside it as growth.json."""

    format: Literal[1] = 1
    """Version of this file format."""
    made_by: str
    """Program and version."""
    parent: str
    """Name of the folder that was grown."""
    parent_fingerprint: str
    """blake3 of the parent's configuration and weights."""
    operators: tuple[Operator, ...]
    """What was done, in order."""
    seed: int
    """Seed of everything random."""
    parameters_before: int
    """Size of the parent."""
    parameters: int
    """Size afterwards."""
    preserves: Preserves
    """What the operators promise."""
    proof: Proof | None
    """What was found; null where no proof was asked for."""
    files: dict[str, str | None]
    """blake3 of the weights and the configuration, by file name."""


class Proving(Record):
    """What was done to a model, for the child process that proves it."""

    operators: tuple[Operator, ...]
    """Growth operators, in order."""
    seed: int
    """Seed of everything random."""
    promised: Preserves
    """What the operators promise."""


@dataclass(frozen=True)
class Grown:
    """A grown model in its place."""

    folder: Path
    growth: Growth
    reasons: tuple[str, ...]
    """Why these operators; empty where they were given."""

    def rows(self) -> list[tuple[str, str]]:
        """What happened, for a table."""
        growth = self.growth
        chain = ", ".join(OPERATORS[operator.op].title for operator in growth.operators)
        proof = growth.proof.reason if growth.proof else "not proved, as asked"
        return [
            ("model", str(self.folder)),
            ("parameters", f"{growth.parameters_before:,} -> {growth.parameters:,}"),
            ("operators", chain),
            ("proof", proof),
        ]


# -- growing --------------------------------------------------------------------------------------------------------


def grow_model(
    source: Path,
    out: Path,
    target: str | Sequence[GrowthOperator],
    *,
    allow: Sequence[str] | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    processes: int = PROCESSES,
    prove: bool = True,
    force: bool = False,
    tell: Tell = lambda doing, share: None,
) -> Grown:
    """Grow `source` to a size ("1.5x", "200M") or by operators, and put it at `out` once it is proved.

    `allow` names the operators that a size may use. `force` replaces an `out` that was made by this function before,
    and nothing else. Everything that can be refused is refused before a byte is written.
    """
    refuse_place(out, GROWTH, force=force)
    architecture = read_architecture(source)
    operators, reasons = _chosen(architecture, target, allow, tell)
    program = grow_program(architecture, operators, seed=seed)
    check_disk(out, program.bytes)
    tell("checking every number of the model", 0.0)
    _refuse_broken(architecture)
    fingerprint = fingerprint_of(architecture)
    with beside(out, "growing") as staging:
        written = write(
            program,
            staging,
            shard_bytes=shard_bytes,
            processes=processes,
            progress=lambda done, total: tell("writing", done / total),
        )
        companions = copy_companions(source, staging)
        sweep(staging, keep={*written.files, *companions})
        if prove:
            tell("proving that the function is kept", 0.0)
        growth = Growth(
            made_by=f"scaler-wizard {__version__}",
            parent=source.resolve().name,
            parent_fingerprint=fingerprint,
            operators=tuple(operators),
            seed=seed,
            parameters_before=architecture.parameters,
            parameters=Blueprint(program.config).parameters,
            preserves=promise(operators),
            proof=_proved(source, staging, operators, seed) if prove else None,
            files={name: digest for name, (_, digest) in sorted(written.files.items())},
        )
        (staging / GROWTH).write_text(to_json(growth) + "\n", encoding="utf-8")
        for name in (*companions, GROWTH, "."):
            sync(staging / name)
        put(staging, out)
    return Grown(out, growth, reasons)


def _chosen(
    architecture: Architecture, target: str | Sequence[GrowthOperator], allow: Sequence[str] | None, tell: Tell
) -> tuple[tuple[GrowthOperator, ...], tuple[str, ...]]:
    if not isinstance(target, str):
        if not target:
            raise ScalerError("no operators were given", 'name one, or a size such as "1.5x"')
        return tuple(target), ()
    size = target_size(target, architecture, item_bytes=architecture.item_bytes, allow=allow)
    solution = solve(architecture, size, context=fit_context(target), allow=allow)
    first = solution.operators[0]
    if not isinstance(first, DuplicateLayers):
        return solution.operators, solution.reasons
    tell("measuring which layers cost least to repeat", 0.0)
    costs = repeat_costs_of(architecture.folder)
    operators = costs.chosen(solution.operators)
    return operators, (*solution.reasons, costs.sentence(operators))


def repeat_costs_of(folder: Path) -> RepeatCosts:
    """Measure in a child process, which loads torch, what it costs to repeat each layer."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as tokens:
        tokens.write(to_json(prompts(folder)))
        tokens.flush()
        command = [sys.executable, "-m", "scaler_wizard.evals.seam", str(folder), tokens.name]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ScalerError(f"the layers could not be measured: {last:.200}", "free memory, or name stack_layers instead")
    return RepeatCosts.read(from_json(answer.stdout.splitlines()[-1]), "costs of repeated layers")


def _refuse_broken(architecture: Architecture) -> None:
    broken = broken_numbers(architecture.tensors)
    if broken:
        raise ScalerError(f"{broken}: holds NaN or infinity", "fetch the model again; broken weights are not grown")


def _proved(before: Path, after: Path, operators: Sequence[GrowthOperator], seed: int) -> Proof:
    """Run the proof in a child process, so that this one loads no torch; a failed proof is an error."""
    done = Proving(operators=tuple(operators), seed=seed, promised=promise(operators))
    command = [sys.executable, "-m", "scaler_wizard.oneshot", str(before), str(after), to_json(done)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ScalerError(f"the proof could not run: {last:.200}", "nothing was kept; free memory and try again")
    proof = Proof.read(from_json(answer.stdout.splitlines()[-1]), "proof")
    if not proof.passed:
        raise ScalerError(f"the grown model was refused: {proof.reason}", "nothing was kept; choose other operators")
    return proof


def _prove_here(before: Path, after: Path, done: Proving) -> None:
    """The child: prove, and print the proof as the last line."""
    import torch
    import transformers

    from scaler_wizard.prove import prove

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    transformers.utils.logging.disable_progress_bar()
    program = grow_program(read_architecture(before), done.operators, seed=done.seed)
    proof = prove(before, after, prompts(before), promised=done.promised, program=program)
    sys.stdout.write(to_json(proof) + "\n")


def prompts(folder: Path) -> list[list[int]]:
    """Token numbers to prove on: calibration text, or random tokens where there is no tokenizer."""
    view = read_architecture(folder)
    length = max(6, min(PROMPT_TOKENS, view.native_context // 2))
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        found = [tokenizer.encode(text).ids[:length] for text in TEXTS]
        return [tokens for tokens in found if len(tokens) > 5 and max(tokens) < view.vocabulary]
    random = Random(0)
    return [[random.randrange(view.vocabulary) for _ in range(length)] for _ in range(PROMPTS)]


if __name__ == "__main__":
    _prove_here(Path(sys.argv[1]), Path(sys.argv[2]), Proving.read(from_json(sys.argv[3]), "what is to be proved"))
