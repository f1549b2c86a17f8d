"""Merge models in one step, without a run (`scaler merge recipe.yaml -o OUT`).

Everything that would spoil the merge is refused before a byte is written; the merged model is written beside OUT, in
one streaming pass, and renamed into place with `merge.json`. Not covered: whether the merge is any good; measure it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaler_wizard import __version__
from scaler_wizard.architecture import Architecture, Blueprint, read_architecture
from scaler_wizard.beside import beside, put, refuse_place, sweep
from scaler_wizard.errors import ScalerError
from scaler_wizard.files import file_hash
from scaler_wizard.fingerprint import fingerprint_of
from scaler_wizard.merge import METHODS, Method, Parent, merge_program
from scaler_wizard.merge.preflight import check, check_tokenizers
from scaler_wizard.merge.program import leader
from scaler_wizard.merge.recipe import load_merge
from scaler_wizard.merge.spectral import memory_bytes
from scaler_wizard.parents import named_parent, names_of, refuse_unlisted
from scaler_wizard.record import Record, to_json
from scaler_wizard.weights import (
    PROCESSES,
    Blend,
    NotFinite,
    Program,
    broken_numbers,
    check_disk,
    copy_companions,
    write,
)
from scaler_wizard.weights.stream import SHARD_BYTES

MERGE = "merge.json"
Tell = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, from 0 to 1."""


class Ancestor(Record):
    """One of the models that were merged."""

    name: str
    """As the recipe named it."""
    fingerprint: str
    """blake3 of its configuration and weights; where an adapter was added, a plus and blake3 of its weights."""


class Lineage(Record):
    """How a model was merged: written beside it as merge.json."""

    format: Literal[1] = 1
    """Version of this file format."""
    made_by: str
    """Program and version."""
    recipe: dict[str, Any]
    """The merge block, with every default filled in."""
    models: tuple[Ancestor, ...]
    """The base and the models."""
    reconciled: tuple[str, ...]
    """What differed between the models, and what was done about it."""
    parameters: int
    """Size of the merged model."""
    files: dict[str, str | None]
    """blake3 of the weights and the configuration, by file name."""


@dataclass(frozen=True)
class Prepared:
    """A merge that may go on: nothing is written yet."""

    method: Method
    parents: Mapping[str, Parent]
    program: Program
    reconciled: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """What would happen, for a table."""
        kind = type(self.method)
        return [
            ("method", f"{getattr(self.method, 'method', '')}: {kind.title} ({kind.paper})"),
            *(("base", self.method.base) for _ in range(self.method.base is not None)),
            *(("model", model.model) for model in self.method.models),
            ("parameters", f"{Blueprint(self.program.config).parameters:,} in {self.program.bytes / 1e6:,.1f} MB"),
            *(("memory", f"{size / 2**20:,.0f} MiB for the largest matrix") for size in self._whole_bytes()),
            *(("reconciled", note) for note in self.reconciled),
        ]

    def _whole_bytes(self) -> list[int]:
        """Peak memory of the largest matrix, where the method needs whole ones."""
        if not type(self.method).whole:
            return []
        shapes = [
            tensor.shape
            for tensor in self.program.tensors.values()
            if isinstance(tensor, Blend) and tensor.kernel.whole
        ]
        return [max(memory_bytes(shape, len(self.method.models)) for shape in shapes)]


@dataclass(frozen=True)
class Merged:
    """A merged model in its place."""

    folder: Path
    lineage: Lineage


def prepare(recipe: Path | Method, known: Mapping[str, Parent] | None = None) -> Prepared:
    """Read a recipe and its models' configurations, headers and samples; refuse what would spoil the merge.

    `known` are the models, where the recipe's names are not those of folders.
    """
    method = recipe if isinstance(recipe, Method) else load_merge(recipe, METHODS)
    refuse_unlisted(method)
    parents = {name: named_parent(name) for name in names_of(method)} if known is None else known
    grown: tuple[str, ...] = ()
    if method.grow:
        from scaler_wizard.matching import matched  # seldom needed, and heavy

        parents, grown, seed = matched(parents)
        method = method.model_copy(update={"seed": method.seed or seed or 0})
    reconciled = check(method, parents)
    check_tokenizers(parents)
    return Prepared(method, parents, merge_program(method, parents), (*grown, *reconciled))


def merge_models(
    recipe: Path | Method,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    processes: int = PROCESSES,
    force: bool = False,
    tell: Tell = lambda doing, share: None,
    known: Mapping[str, Parent] | None = None,
    inside: Mapping[str, Path] | None = None,
) -> Merged:
    """Merge by a recipe, and put the result at `out` once it is whole.

    `force` replaces an `out` that was made by this function before, and nothing else. `known` are the models, where the
    recipe's names are not those of folders; `inside` are folders that are copied into the result, by their names there.
    """
    refuse_place(out, MERGE, force=force)
    ready = prepare(recipe, known)
    check_disk(out, ready.program.bytes)
    tell("reading the models", 0.0)
    ancestors = tuple(Ancestor(name=name, fingerprint=_fingerprint(one)) for name, one in ready.parents.items())
    with beside(out, "merging") as staging:
        try:
            written = write(
                ready.program,
                staging,
                shard_bytes=shard_bytes,
                processes=processes,
                finite=True,
                progress=lambda done, total: tell("merging", done / total),
            )
        except NotFinite as error:
            raise _broken(str(error), ready) from None
        companions = copy_companions(_tokenizer_folder(ready), staging)
        sweep(staging, keep={*written.files, *companions})
        for name, folder in (inside or {}).items():
            shutil.copytree(folder, staging / name)
        lineage = Lineage(
            made_by=f"scaler-wizard {__version__}",
            recipe=ready.method.model_dump(mode="json"),
            models=ancestors,
            reconciled=ready.reconciled,
            parameters=Blueprint(ready.program.config).parameters,
            files={name: digest for name, (_, digest) in sorted(written.files.items())},
        )
        (staging / MERGE).write_text(to_json(lineage) + "\n", encoding="utf-8")
        put(staging, out)
    return Merged(out, lineage)


def _fingerprint(one: Parent) -> str:
    """Of the model's files; an adapter's hash follows behind a plus."""
    model = fingerprint_of(read_architecture(one.folder))
    return model if one.adapter is None else f"{model}+{file_hash(one.adapter)}"


def _tokenizer_folder(ready: Prepared) -> Path:
    wanted = ready.method.tokenizer
    if wanted in (None, "base", "union"):
        return ready.parents[leader(ready.method)].folder
    return ready.parents[str(wanted)].folder


def _broken(tensor: str, ready: Prepared) -> ScalerError:
    """Whose fault it is that a merged number is not finite."""
    for name, one in ready.parents.items():
        found: Architecture = read_architecture(one.folder)
        if tensor in found.tensors and broken_numbers({tensor: found.tensors[tensor]}):
            return ScalerError(f"{name}: {tensor}: holds NaN or infinity", "fetch the model again, or leave it out")
    return ScalerError(f"{tensor}: the merged numbers do not fit their type", "lower the weights, or write float32")
