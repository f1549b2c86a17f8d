"""Grow a model in one step, without a run (`scaler grow MODEL --to 200M -o OUT`), or look at one (`scaler inspect`).

The grown model is written beside OUT, proved in a child process (`python -m scaler_wizard.oneshot`), and renamed into
place only if the proof holds. Not covered: training. A model that has just grown has room, and has learnt nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from blake3 import blake3

from scaler_wizard import __version__
from scaler_wizard.architecture import Architecture, Blueprint, read_architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.grow import (
    OPERATORS,
    AddKvGroups,
    AddQueryHeads,
    DuplicateExperts,
    DuplicateLayers,
    GrowthOperator,
    GrowVocabulary,
    HyperClone,
    IdentityBlocks,
    Operator,
    Preserves,
    SharedExpert,
    SplitIntoExperts,
    SplitKvHeads,
    StackLayers,
    Upcycle,
    WidenFfn,
    WidenHidden,
    grow_program,
    grown,
    promise,
)
from scaler_wizard.prove import Proof
from scaler_wizard.record import Record, from_json, to_json
from scaler_wizard.run import file_hash
from scaler_wizard.target import cache_bytes, solve, target_size
from scaler_wizard.weights import broken_numbers, copy_companions, write
from scaler_wizard.weights.stream import SHARD_BYTES, Progress

GROWTH = "growth.json"
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
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
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    threads: int = 1,
    prove: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Grown:
    """Grow `source` to a size ("1.5x", "200M") or by operators, and put it at `out` once it is proved.

    `force` replaces an `out` that was made by this function before, and nothing else.
    """
    _refuse_place(out, force=force)
    architecture = read_architecture(source)
    operators, reasons = _chosen(architecture, target)
    grown(architecture, operators)  # refuses before any byte is read or written
    _refuse_broken(architecture)
    fingerprint = fingerprint_of(architecture)
    with _beside(out) as staging:
        program = grow_program(architecture, operators, seed=seed)
        written = write(program, staging, shard_bytes=shard_bytes, seed=seed, threads=threads, progress=progress)
        copy_companions(source, staging)
        proof = _proved(source, staging, promise(operators)) if prove else None
        growth = Growth(
            made_by=f"scaler-wizard {__version__}",
            parent=source.resolve().name,
            parent_fingerprint=fingerprint,
            operators=tuple(operators),
            seed=seed,
            parameters_before=architecture.parameters,
            parameters=Blueprint(program.config).parameters,
            preserves=promise(operators),
            proof=proof,
            files={name: digest for name, (_, digest) in sorted(written.files.items())},
        )
        (staging / GROWTH).write_text(to_json(growth) + "\n", encoding="utf-8")
        _put(staging, out)
    return Grown(out, growth, reasons)


def _chosen(
    architecture: Architecture, target: str | Sequence[GrowthOperator]
) -> tuple[tuple[GrowthOperator, ...], tuple[str, ...]]:
    if not isinstance(target, str):
        if not target:
            raise ScalerError("no operators were given", 'name one, or a size such as "1.5x"')
        return tuple(target), ()
    size = target_size(target, architecture, item_bytes=ITEM[architecture.dtype])
    solution = solve(architecture, size)
    return solution.operators, solution.reasons


def _refuse_place(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ScalerError(f"{out}: a file is there", "name a folder that does not exist yet")
    if any(out.iterdir()) and not (force and (out / GROWTH).is_file()):
        raise ScalerError(f"{out}: the folder is not empty", "name another; --force replaces only a grown model")


def _refuse_broken(architecture: Architecture) -> None:
    broken = broken_numbers(architecture.tensors)
    if broken:
        raise ScalerError(f"{broken}: holds NaN or infinity", "fetch the model again; broken weights are not grown")


def fingerprint_of(architecture: Architecture) -> str:
    """blake3 over the names and hashes of configuration and weights."""
    files = {architecture.folder / "config.json", *(tensor.file for tensor in architecture.tensors.values())}
    text = "\n".join(f"{file.name} {file_hash(file)}" for file in sorted(files))
    return blake3(text.encode()).hexdigest()


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, gone again if anything fails; a killed growth goes on in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.growing"
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScalerError(f"{out}: another process is growing it", "wait for it, or name another folder") from None
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _put(staging: Path, out: Path) -> None:
    """Rename into place; a model that is replaced stays until the new one is there."""
    aside = out.parent / f".{out.name}.replaced"
    if out.exists():
        out.rename(aside)
    staging.rename(out)
    shutil.rmtree(aside, ignore_errors=True)


def _proved(before: Path, after: Path, promised: Preserves) -> Proof:
    """Run the proof in a child process, so that this one loads no torch; a failed proof is an error."""
    command = [sys.executable, "-m", "scaler_wizard.oneshot", str(before), str(after), promised]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ScalerError(f"the proof could not run: {last:.200}", "nothing was kept; free memory and try again")
    proof = Proof.read(from_json(answer.stdout.splitlines()[-1]), "proof")
    if not proof.passed:
        raise ScalerError(f"the grown model was refused: {proof.reason}", "nothing was kept; choose other operators")
    return proof


def _prove_here(before: Path, after: Path, promised: Preserves) -> None:
    """The child: prove, and print the proof as the last line."""
    import torch
    import transformers

    from scaler_wizard.prove import prove

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    transformers.utils.logging.disable_progress_bar()
    proof = prove(before, after, prompts(before), promised=promised)
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


# -- looking --------------------------------------------------------------------------------------------------------

PARTS = {
    "embedding": "embeddings",
    "head": "head",
    "router": "router",
    "shared_gate": "router",
    "ffn_in": "feed-forward",
    "ffn_out": "feed-forward",
    "norm": "norms",
    "final_norm": "norms",
    "post_norm": "norms",
    "query_norm": "norms",
    "key_norm": "norms",
}
"""Part of a model by a tensor's role; the rest is attention."""
KEEPS = {"bitwise": "keeps every bit", "exact": "keeps the function", "no": "changes the function, to be healed"}


class Part(Record):
    """One part of a model."""

    name: str
    """Which."""
    parameters: int
    """Its parameters."""
    share: float
    """Of all parameters."""


class Applies(Record):
    """Whether an operator can grow this model."""

    op: str
    """The operator's name."""
    title: str
    """What it does."""
    preserves: Preserves | None
    """What it keeps; null where it cannot be used."""
    reason: str | None
    """Why it cannot be used; null where it can."""


class Inspection(Record):
    """What a model is, from its configuration and the headers of its weights."""

    name: str
    """Name of its folder."""
    family: str
    """`model_type` of transformers."""
    parameters: int
    """Exact number of parameters; a tied head counts once."""
    parts: tuple[Part, ...]
    """The same by part."""
    layers: int
    """Transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads."""
    head_dim: int
    """Width of a head."""
    ffn: int
    """Feed-forward neurons of a block, or of one expert."""
    experts: int | None
    """Experts in a block; null for dense models."""
    vocabulary: int
    """Rows of the embedding."""
    native_context: int
    """Window in tokens."""
    rope_type: str
    """How rotary frequencies are scaled."""
    rope_theta: float | None
    """Base of the rotary frequencies; null where several are used."""
    dtype: str
    """Type of its weights."""
    tied: bool
    """Whether the head is the embedding."""
    bytes: int
    """Bytes of its weights."""
    cache_bytes_per_token: int
    """Key/value cache for one more token in the weights' type, without sliding windows."""
    operators: tuple[Applies, ...]
    """Which growth operators apply."""

    def rows(self) -> list[tuple[str, str]]:
        """The same for a table."""
        experts = f", {self.experts} experts" if self.experts else ""
        theta = "" if self.rope_theta is None else f", theta {self.rope_theta:g}"
        return [
            ("model", f"{self.name} ({self.family})"),
            ("parameters", f"{self.parameters:,} in {self.bytes / 1e6:,.1f} MB of {self.dtype}"),
            *((f"  {part.name}", f"{part.parameters:,} ({part.share:.0%})") for part in self.parts),
            ("layers", f"{self.layers}, hidden size {self.hidden}, {self.ffn} neurons{experts}"),
            ("heads", f"{self.heads} query, {self.kv_heads} key/value, {self.head_dim} wide"),
            ("vocabulary", f"{self.vocabulary:,}, head {'tied' if self.tied else 'of its own'}"),
            ("context", f"{self.native_context:,} tokens, RoPE {self.rope_type}{theta}"),
            ("cache", f"{self.cache_bytes_per_token:,} bytes per token"),
            *((f"  {one.op}", KEEPS[one.preserves] if one.preserves else f"-: {one.reason}") for one in self.operators),
        ]


def inspect_model(source: Path) -> Inspection:
    """Read configuration and headers; no weight."""
    found = read_architecture(source)
    theta = found.rope.get("rope_theta")
    return Inspection(
        name=source.resolve().name,
        family=found.family,
        parameters=found.parameters,
        parts=_parts(found),
        layers=found.layers,
        hidden=found.hidden,
        heads=found.heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        ffn=found.ffn,
        experts=found.experts,
        vocabulary=found.vocabulary,
        native_context=found.native_context,
        rope_type=str(found.rope.get("rope_type", "default")),
        rope_theta=float(theta) if isinstance(theta, (int, float)) else None,
        dtype=found.dtype,
        tied=found.tied,
        bytes=found.bytes,
        cache_bytes_per_token=cache_bytes(found, 1, item_bytes=ITEM[found.dtype]),
        operators=tuple(applies(name, found) for name in OPERATORS),
    )


def _parts(found: Architecture) -> tuple[Part, ...]:
    sizes: dict[str, int] = {}
    for place in found.places():
        part = PARTS.get(place.row.role, "attention")
        sizes[part] = sizes.get(part, 0) + found.tensors[place.name].elements
    return tuple(Part(name=name, parameters=size, share=size / found.parameters) for name, size in sizes.items())


def applies(name: str, view: Blueprint) -> Applies:
    """Try an operator's smallest settings on a configuration; its own refusal is the reason."""
    kind = OPERATORS[name]
    refusal: str | None = None
    for trial in trials(name, view):
        try:
            grown(view, [trial])
        except ScalerError as error:
            refusal = refusal or error.wrong.removeprefix(f"{name}: ")
        else:
            return Applies(op=name, title=kind.title, preserves=trial.preserves, reason=None)
    return Applies(op=name, title=kind.title, preserves=None, reason=refusal or "this model has nothing to split")


def trials(name: str, view: Blueprint) -> Iterator[GrowthOperator]:
    """Small settings of an operator for a model, the likeliest first."""
    match name:
        case "identity_blocks":
            yield IdentityBlocks(blocks=1)
        case "widen_ffn":
            yield WidenFfn(size=view.ffn + 2 * max(1, view.ffn // 8))
        case "add_kv_groups":
            yield from (AddKvGroups(groups=groups) for groups in range(1, view.kv_heads + 1))
        case "add_query_heads":
            most = view.heads // view.kv_heads
            yield from (AddQueryHeads(per_group=heads) for heads in range(1, most + 1))
        case "split_kv_heads":
            more = range(view.kv_heads * 2, view.heads + 1, view.kv_heads)
            yield from (SplitKvHeads(heads=heads) for heads in more)
        case "widen_hidden":
            yield from (WidenHidden(size=view.hidden * parts // 4) for parts in (5, 6, 8))
        case "hyper_clone":
            yield HyperClone(times=2)
        case "stack_layers":
            yield StackLayers(layers=view.layers + max(1, view.layers // 4))
        case "duplicate_layers":
            yield DuplicateLayers(layers=(view.layers // 2,))
        case "upcycle":
            yield Upcycle(experts=4)
        case "split_into_experts":
            yield from (SplitIntoExperts(experts=experts) for experts in (4, 2, 3))
        case "shared_expert":
            yield SharedExpert(experts=4, size=max(1, view.ffn // 4))
        case "duplicate_experts":
            yield DuplicateExperts(times=2)
        case "grow_vocabulary":
            yield GrowVocabulary(size=view.vocabulary + 1)


if __name__ == "__main__":
    _prove_here(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])  # type: ignore[arg-type]
