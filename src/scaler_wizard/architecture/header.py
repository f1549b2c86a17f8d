"""Read a safetensors header without trusting it: size, keys, types, offsets are checked before anything is used."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError

LARGEST_HEADER = 16 * 2**20
MOST_TENSORS = 200_000
MOST_COMMAS = 100_000  # beyond 16 for each brace: room for metadata, none for a list of millions of numbers
MOST_AXES = 8
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
FETCH_AGAIN = "fetch the file again; it is damaged or was not written by safetensors"


@dataclass(frozen=True)
class Tensor:
    """One tensor in a file."""

    name: str
    dtype: str
    """F32, F16 or BF16."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte, counted from the beginning of the file."""
    end: int
    """One past the last byte."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by name, in the order of their bytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ScalerError(f"{file.name}: {size} bytes are no safetensors file", FETCH_AGAIN)
        (length,) = struct.unpack("<Q", prefix)
        if length > LARGEST_HEADER:
            raise ScalerError(f"{file.name}: header of {length} bytes; at most {LARGEST_HEADER} are read", FETCH_AGAIN)
        if 8 + length > size:
            raise ScalerError(f"{file.name}: truncated inside its header ({size} bytes)", FETCH_AGAIN)
        entries = _entries(file, stream.read(length))
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in entries.items()]
    return _contiguous(file, tensors, 8 + length, size)


def _entries(file: Path, raw: bytes) -> dict[str, Any]:
    braces = raw.count(b"{")  # counted before parsing: a bomb must cost milliseconds
    if braces > MOST_TENSORS + 2:
        raise ScalerError(f"{file.name}: about {braces} tensors; at most {MOST_TENSORS} are read", FETCH_AGAIN)
    if raw.count(b",") > 16 * braces + MOST_COMMAS:
        raise ScalerError(f"{file.name}: header lists far more values than its tensors have", FETCH_AGAIN)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ScalerError(f"{file.name}: header is not valid JSON ({error})", FETCH_AGAIN) from None
    if not isinstance(entries, dict):
        raise ScalerError(f"{file.name}: header is not a mapping", FETCH_AGAIN)
    entries.pop("__metadata__", None)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r:.120} appears twice")
    return found


def _tensor(file: Path, name: str, entry: Any, base: int) -> Tensor:
    what = f"{file.name}: {name:.120}"
    if not name.isprintable():
        raise ScalerError(f"{file.name}: {name!r:.120}: a name with unprintable characters", FETCH_AGAIN)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ScalerError(f"{what}: entry is not dtype, shape, data_offsets", FETCH_AGAIN)
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ScalerError(f"{what}: shape or offsets are no counts", FETCH_AGAIN)
    if len(shape) > MOST_AXES:
        raise ScalerError(f"{what}: {len(shape)} axes; at most {MOST_AXES} are read", FETCH_AGAIN)
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ScalerError(
            f"{what}: weights of type {dtype!r:.20}; read are {', '.join(ITEM_BYTES)}",
            "take the unquantised release of the model, or dequantise it: "
            "model.dequantize().to(torch.bfloat16).save_pretrained(FOLDER) in transformers",
        )
    if math.prod(shape) * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise ScalerError(f"{what}: {shape} of {dtype} does not fill its bytes", FETCH_AGAIN)
    return Tensor(name, dtype, tuple(shape), file, base + offsets[0], base + offsets[1])


def _whole(values: Any) -> bool:
    """Counts as a file may hold them; bool is an int in Python and none in a header."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _contiguous(file: Path, tensors: list[Tensor], base: int, size: int) -> dict[str, Tensor]:
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    place = base
    for tensor in tensors:
        if tensor.start != place:
            raise ScalerError(f"{file.name}: {tensor.name}: bytes overlap or leave a gap", FETCH_AGAIN)
        place = tensor.end
    if place != size:
        what = "truncated" if size < place else "longer than its header says"
        raise ScalerError(f"{file.name}: {what}: {size} bytes, {place} expected", FETCH_AGAIN)
    return {tensor.name: tensor for tensor in tensors}
