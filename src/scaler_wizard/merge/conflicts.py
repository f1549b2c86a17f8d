"""How the models' changes get on with each other, before they are merged: cosines, signs, and what would cancel.

Everything is read once, streamed; nothing is written but the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scaler_wizard.architecture import Place
from scaler_wizard.errors import ScalerError
from scaler_wizard.merge.method import Method
from scaler_wizard.merge.program import Parent, run_of
from scaler_wizard.merge.spheres import products
from scaler_wizard.merge.vectors import Vectors
from scaler_wizard.record import Record
from scaler_wizard.weights.evaluate import Array, Source, Survey

Floats = npt.NDArray[np.float64]
ATTENTION = ("query", "key", "value", "query_key_value", "attention_out", "query_norm", "key_norm")
PARTS = ("attention", "feed-forward", "norms", "embeddings")


class Conflict(Record):
    """One part of one layer."""

    layer: int | None
    """Which layer; null outside the layers."""
    part: str
    """attention, feed-forward, norms or embeddings."""
    change: float
    """Length of the models' changes, on average, as a share of the length of the base's weights here."""
    cosine: float | None
    """Mean cosine between the models' changes: 1 they repeat each other, 0 they have nothing in common, -1 opposite;
    null where only one model changed the base."""
    agreement: float | None
    """Share of the numbers changed by several models that all of them moved the same way; by chance 0.5 for two."""
    kept: float | None
    """Size of the sum of all changes, as a share of the sum of their sizes: what does not cancel."""

    def says(self) -> str:
        """The same in a few words."""
        moved = f"moved {self.change:.2%}"
        if self.cosine is None or self.agreement is None or self.kept is None:
            return moved
        return f"cosine {self.cosine:+.3f}, same sign {self.agreement:.0%}, kept {self.kept:.0%}, {moved}"


class Conflicts(Record):
    """How the changes of all models get on with each other."""

    models: tuple[str, ...]
    """The models, without the base."""
    cosines: tuple[tuple[float, ...], ...]
    """Between the changes of all pairs of models, over the whole model."""
    sizes: tuple[float, ...]
    """Length of each model's change, as a share of the length of the base's weights."""
    parts: tuple[Conflict, ...]
    """By layer and part."""

    def rows(self) -> list[tuple[str, str]]:
        """The same for a table: a line for each layer."""
        sizes = zip(self.models, self.sizes, strict=True)
        found = [(f"change of {name}", f"{size:.2%} of the base") for name, size in sizes]
        pairs = [(i, j) for i in range(len(self.models)) for j in range(i + 1, len(self.models))]
        found += [("cosine", f"{self.cosines[i][j]:+.3f} {self.models[i]} and {self.models[j]}") for i, j in pairs]
        for one in self.parts:
            where = "ends" if one.layer is None else f"layer {one.layer}"
            found.append((f"{where} {one.part}", one.says()))
        return found


def find_conflicts(method: Method, parents: Mapping[str, Parent]) -> Conflicts:
    """Compare the models' task vectors, tensor by tensor."""
    if method.base is None or method.stacks or len(method.models) < 2:
        raise ScalerError("conflicts are between the changes of several models of one base", "name `base` and models")
    models = [parents[model.model] for model in method.models]
    return compare_changes(parents[method.base], models, first=run_of(method.models[0], parents)[0])


def compare_changes(base: Parent, models: Sequence[Parent], *, first: int = 0) -> Conflicts:
    """What each model added to the base, by layer and part; their layer 0 came from the base's layer `first`."""
    sums: dict[tuple[int | None, str], Floats] = {}
    wholes: dict[tuple[int | None, str], float] = {}
    source = Source(0)
    try:
        for place in models[0].view.places():
            parts = tuple(one.tensor(place, first) for one in (base, *models))
            key = (place.layer, part_of(place))
            sums[key] = sums.get(key, 0.0) + np.sum(list(Vectors(Survey(parts, source)).each(_facts)), axis=0)
            wholes[key] = wholes.get(key, 0.0) + sum(Survey(parts[:1], source).each(_square))
    finally:
        source.close()
    grams = np.sum([found[4:] for found in sums.values()], axis=0).reshape(len(models), len(models))
    whole = sum(wholes.values())
    ordered = sorted(sums, key=lambda key: (key[0] is not None, key[0] or 0, PARTS.index(key[1])))
    return Conflicts(
        models=tuple(one.name for one in models),
        cosines=tuple(tuple(float(value) for value in row) for row in _cosines(grams)),
        sizes=tuple(float(np.sqrt(square / whole)) for square in np.diag(grams)),
        parts=tuple(_conflict(key, sums[key], wholes[key], len(models)) for key in ordered),
    )


def _square(values: list[Array]) -> float:
    return float(np.square(values[0], dtype=np.float64).sum())


def _facts(changes: list[Array]) -> Floats:
    """Numbers changed by several, those of one sign among them, size of the sum, sum of sizes, inner products."""
    signs = [np.sign(change).astype(np.int8) for change in changes]
    changed = np.sum([sign != 0 for sign in signs], axis=0)
    several = changed > 1
    same = several & (np.abs(np.sum(signs, axis=0)) == changed)
    size = sum(float(np.abs(change).sum(dtype=np.float64)) for change in changes)
    kept = float(np.abs(np.sum(changes, axis=0)).sum(dtype=np.float64))
    return np.array([np.count_nonzero(several), np.count_nonzero(same), kept, size, *products(changes).reshape(-1)])


def _conflict(key: tuple[int | None, str], found: Floats, whole: float, count: int) -> Conflict:
    grams = found[4:].reshape(count, count)
    pairs = [_cosines(grams)[i, j] for i in range(count) for j in range(i + 1, count)]
    return Conflict(
        layer=key[0],
        part=key[1],
        change=float(np.mean(np.sqrt(np.diag(grams) / whole))) if whole else 0.0,
        cosine=float(np.mean(pairs)) if pairs else None,
        agreement=None if not pairs else float(found[1] / found[0]) if found[0] else 1.0,
        kept=None if not pairs else float(found[2] / found[3]) if found[3] else 1.0,
    )


def _cosines(grams: Floats) -> Floats:
    lengths = np.sqrt(np.diag(grams))
    found: Floats = grams / np.maximum(np.outer(lengths, lengths), 1e-30)
    return found


def part_of(place: Place) -> str:
    """Which part of the model a tensor belongs to."""
    role = place.row.role
    if role in ("embedding", "head"):
        return "embeddings"
    if role in ATTENTION:
        return "attention"
    return "norms" if role.endswith("norm") else "feed-forward"


def draw(conflicts: Conflicts, file: Path) -> None:
    """A heatmap: layers from the bottom to the top, parts side by side, the mean cosine as colour and number."""
    from matplotlib.figure import Figure

    parts = PARTS[:3]
    layers = sorted({one.layer for one in conflicts.parts if one.layer is not None})
    cells = {(one.layer, one.part): one.cosine for one in conflicts.parts if one.cosine is not None}
    values = np.array([[cells.get((layer, part), np.nan) for part in parts] for layer in layers])
    figure = Figure(figsize=(4.5, 1.2 + 0.24 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="PuOr", vmin=-1, vmax=1, aspect="auto", origin="lower")
    axes.set_xticks(range(len(parts)), parts)
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_ylabel("layer")
    axes.set_title("cosine between the models' changes", fontsize=10)
    for row, column in np.ndindex(values.shape):
        if np.isfinite(values[row, column]):
            axes.text(column, row, f"{values[row, column]:+.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=axes)
    figure.savefig(file, dpi=150)
