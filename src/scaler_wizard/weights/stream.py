"""Write a checkpoint program to disk in one streaming pass: little memory at any model size, the same bytes always.

The header of each file is computed first, the file is allocated, bytes that only move are copied in 1 MB pieces
(larger ones leave the second-level cache and are slower), zeros stay unwritten, everything else goes through fp32 in
small chunks. A shard becomes visible under its name only when it is whole; an interrupted write goes on after the
last whole shard.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from scaler_wizard.architecture import ITEM_BYTES, Tensor
from scaler_wizard.errors import Full
from scaler_wizard.failpoints import reach
from scaler_wizard.files import sync
from scaler_wizard.weights.evaluate import RAW, Source, chunks, clip, read_exactly
from scaler_wizard.weights.expressions import (
    Blend,
    Concatenate,
    Expression,
    Fill,
    Input,
    Run,
    Take,
    children,
)
from scaler_wizard.weights.program import Program
from scaler_wizard.weights.sharing import share_out

COPY_BYTES = 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
TRIMMED_BYTES, MAPPED_BYTES = 2 * 2**20, 2**20  # more of either was no quicker, and costs as much memory
SHARED_BYTES = 16 * 2**20
"""Bytes to compute from which forking pays (it takes some milliseconds)."""
SHARD_BYTES = 5 * 10**9
ALIGNED = 64  # bytes: matrix kernels round differently on badly aligned memory, and files are memory-mapped
RECORD = ".written.json"
SPARE_BYTES = 16 * 2**20  # configuration, tokenizer, headers
_ZEROS = bytes(COPY_BYTES)


class NotFinite(ArithmeticError):
    """A tensor that would have been written holds a NaN or an infinity; its name is the argument."""


Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Written:
    """What a write left on disk."""

    folder: Path
    files: Mapping[str, tuple[int, str | None]]
    """Size in bytes and blake3 (None where hashing was off) of each file."""
    parameters: int
    """Numbers in all tensors."""
    kept: tuple[str, ...] = ()
    """Shards that an interrupted write had finished before."""


@dataclass(frozen=True)
class Shard:
    """One file to write: its header and its tensors in the order of their bytes."""

    name: str
    header: bytes
    tensors: tuple[tuple[str, Expression], ...]
    bytes: int

    def places(self) -> Iterator[tuple[int, str, Expression]]:
        """Where in the file each tensor begins."""
        place = len(self.header)
        for name, tensor in self.tensors:
            yield place, name, tensor
            place += tensor_bytes(tensor)


def write(
    program: Program,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int | None = None,
    processes: int = 1,
    durable: bool = True,
    hash: bool = True,
    finite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write `program` into the folder `out`; `seed` replaces the program's own.

    So many `processes` share out the tensors of a shard whose numbers have to be computed, where a kernel does not need
    whole matrices in memory. `durable` flushes files and folder to the disk before returning.
    `finite` stops at the first NaN or infinity with NotFinite.
    """
    seed = program.seed if seed is None else seed
    out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    shards = lay_out(program, shard_bytes)
    journal = _Journal(out, _fingerprint(program, shards, seed, hash=hash))
    todo = [shard for shard in shards if not journal.holds(shard)]
    check_disk(out, sum(shard.bytes for shard in todo))
    source = Source(seed)
    report = _Meter(sum(shard.bytes for shard in shards), sum(s.bytes for s in shards if s not in todo), progress)
    try:
        for shard in todo:
            shared = processes if _may_be_shared(shard) else 1
            pen = _Pen(source, report, processes=shared, durable=durable, hash=hash, finite=finite)
            journal.add(shard, pen.write(shard, out))
    except OSError as error:
        raise _disk_full(error, out) from error
    finally:
        source.close()
    small = _write_small(program, out, shards, durable=durable, hash=hash)
    kept = tuple(shard.name for shard in shards if shard not in todo)
    files = {shard.name: (shard.bytes, journal.files[shard.name]) for shard in shards} | small
    journal.close(durable=durable)
    return Written(out, files, program.parameters, kept)


def keep_freed_memory() -> None:
    """Ask glibc not to give freed arrays back to the system after each chunk: fetching them again took a third of the
    time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, TRIMMED_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


# -- layout ---------------------------------------------------------------------------------------------------------


def lay_out(program: Program, shard_bytes: int) -> list[Shard]:
    """Which tensor goes into which file; wide types first, so that every tensor is aligned."""
    order = sorted(program.tensors.items(), key=lambda item: (-ITEM_BYTES[item[1].dtype], _natural(item[0])))
    groups: list[list[tuple[str, Expression]]] = [[]]
    filled = 0
    for name, tensor in order:
        size = tensor_bytes(tensor)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, tensor))
        filled += size
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else ["model.safetensors"]
    return [_shard(name, group, program) for name, group in zip(names, groups, strict=True)]


def tensor_bytes(tensor: Expression) -> int:
    """Size of a tensor in its file."""
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def _shard(name: str, tensors: list[tuple[str, Expression]], program: Program) -> Shard:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor_name, tensor in tensors:
        end = place + tensor_bytes(tensor)
        shape = list(program.stored_shape(tensor_name))
        entries[tensor_name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    header = struct.pack("<Q", len(text)) + text
    return Shard(name, header, tuple(tensors), len(header) + place)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Layer 2 before layer 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))


def check_disk(out: Path, needed: int) -> None:
    """Refuse what the disk under `out` (which need not exist yet) cannot hold."""
    free = shutil.disk_usage(next(folder for folder in (out, *out.absolute().parents) if folder.exists())).free
    if needed + SPARE_BYTES > free:
        raise Full(
            f"{out}: {needed / 1e9:.2f} GB are to be written, {free / 1e9:.2f} GB are free",
            "make room or write to another disk",
        )


def _disk_full(error: OSError, out: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Full(f"{out}: the disk is full ({error.strerror})", "make room, then run the same command again")
    return error


# -- one shard ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pen:
    """How a shard is written."""

    source: Source
    report: _Meter
    processes: int
    durable: bool
    hash: bool
    finite: bool

    def write(self, shard: Shard, out: Path) -> str | None:
        """Write the file and put it under its name; its blake3."""
        partial_file = out / f"{shard.name}.partial"
        partial_file.unlink(missing_ok=True)  # a process that outlived a kill may still write into that one
        descriptor = os.open(partial_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            reach("weights.opened")
            _allocate(descriptor, shard.bytes)
            digest = self._together(shard, descriptor) if self.processes > 1 else self._alone(shard, descriptor)
            reach("weights.written")
            if self.durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial_file.replace(out / shard.name)
        reach("weights.renamed")
        return digest

    def _alone(self, shard: Shard, descriptor: int) -> str | None:
        """From front to back, hashed on the way."""
        sink = Sink(descriptor, blake3() if self.hash else None, self.report)
        sink.put(shard.header)
        for name, tensor in shard.tensors:
            self._tensor(name, tensor, sink)
        assert sink.place == shard.bytes, "the header and the data disagree"
        return sink.hash.hexdigest() if sink.hash else None

    def _together(self, shard: Shard, descriptor: int) -> str | None:
        """Tensors in any order, hashed when all are there."""
        Sink(descriptor, None, self.report).put(shard.header)

        def place(item: tuple[int, str, Expression]) -> None:
            start, name, tensor = item
            self._tensor(name, tensor, Sink(descriptor, None, _Meter(0, 0, None), place=start))

        share_out(
            place,
            list(shard.places()),
            size=lambda item: tensor_bytes(item[2]),
            processes=self.processes,
            done=self.report.add,
        )
        return _hash(descriptor, shard.bytes) if self.hash else None

    def _tensor(self, name: str, tensor: Expression, sink: Sink) -> None:
        sink.watched = (name, tensor.dtype) if self.finite else None
        write_tensor(tensor, sink, self.source)


def _may_be_shared(shard: Shard) -> bool:
    """Whether more than bytes move, and no process needs whole matrices in memory."""
    computed = [tensor for _, tensor in shard.tensors if byte_runs(tensor) is None]
    return sum(map(tensor_bytes, computed)) >= SHARED_BYTES and not any(map(_whole, computed))


def _whole(tensor: Expression) -> bool:
    return (isinstance(tensor, Blend) and tensor.kernel.whole) or any(map(_whole, children(tensor)))


def _hash(descriptor: int, size: int) -> str:
    digest, piece = blake3(), memoryview(bytearray(COPY_BYTES))
    for place in range(0, size, COPY_BYTES):
        part = piece[: min(COPY_BYTES, size - place)]
        read_exactly(descriptor, place, part)
        digest.update(part)
    return digest.hexdigest()


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the bytes, so that a full disk shows now and zeros need no writing."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)


class Sink:
    """An allocated file that is filled from a place on; zeros are skipped, and hashed all the same."""

    def __init__(self, descriptor: int, hash: Any, report: _Meter, *, place: int = 0) -> None:
        self.place = place
        self.hash = hash
        self.watched: tuple[str, str] | None = None
        """Name and type of the tensor whose numbers have to be finite."""
        self.buffer = memoryview(bytearray(COPY_BYTES))
        self._descriptor = descriptor
        self._report = report

    def put(self, data: bytes | memoryview) -> None:
        """Write bytes at the current place."""
        view = memoryview(data)
        if self.watched and not _finite(np.frombuffer(view, RAW[self.watched[1]]), self.watched[1]):
            raise NotFinite(self.watched[0])
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], self.place + done)
        self._passed(view)

    def skip(self, length: int) -> None:
        """Leave `length` zero bytes unwritten."""
        while length:
            piece = min(length, COPY_BYTES)
            self._passed(memoryview(_ZEROS)[:piece])
            length -= piece

    def _passed(self, view: memoryview) -> None:
        if self.hash is not None:
            self.hash.update(view)
        self.place += len(view)
        self._report.add(len(view))


def write_tensor(tensor: Expression, sink: Sink, source: Source) -> None:
    """Write one tensor: as bytes where whole rows move, else chunk by chunk."""
    pieces = byte_runs(tensor)
    if pieces is not None:
        for origin, start, stop in pieces:
            _copy(origin, start, stop, sink, source)
    elif isinstance(tensor, Concatenate) and tensor.axis == 0 and len({part.dtype for part in tensor.parts}) == 1:
        for part in tensor.parts:
            write_tensor(part, sink, source)
    else:
        for chunk in chunks(tensor, source):
            sink.put(chunk.data.cast("B"))


def _copy(origin: Tensor | None, start: int, stop: int, sink: Sink, source: Source) -> None:
    if origin is None:
        sink.skip(stop - start)
        return
    descriptor = source.descriptor(origin.file)
    for place in range(start, stop, COPY_BYTES):
        piece = sink.buffer[: min(COPY_BYTES, stop - place)]
        read_exactly(descriptor, place, piece)
        sink.put(piece)


Piece = tuple[Tensor | None, int, int]
"""Bytes [start, stop) of a tensor's file, or that many zeros."""


def byte_runs(tensor: Expression) -> list[Piece] | None:
    """The tensor as runs of input bytes and zeros; None where numbers change or rows are taken apart."""
    return _row_bytes(tensor, [(0, tensor.shape[0])], tensor.dtype)


def _row_bytes(tensor: Expression, runs: list[Run], dtype: str) -> list[Piece] | None:
    row = math.prod(tensor.shape[1:]) * ITEM_BYTES[dtype]
    match tensor:
        case Input(origin) if origin.dtype == dtype:
            return [(origin, origin.start + low * row, origin.start + high * row) for low, high in runs]
        case Fill(_, _, 0.0):
            return [(None, 0, (high - low) * row) for low, high in runs]
        case Take(of, 0, inner):
            return _row_bytes(of, [run for low, high in runs for run in clip(inner, low, high)], dtype)
        case Concatenate(parts, 0):
            found = [_row_bytes(part, own, dtype) for part, own in _parts(parts, runs)]
            return None if None in found else [piece for pieces in found for piece in pieces or []]
        case _:
            return None


def _parts(parts: tuple[Expression, ...], runs: list[Run]) -> Iterator[tuple[Expression, list[Run]]]:
    for low, high in runs:
        place = 0
        for part in parts:
            first, last = max(low - place, 0), min(high - place, part.shape[0])
            if first < last:
                yield part, [(first, last)]
            place += part.shape[0]


class _Meter:
    """Bytes done, told about a hundred times."""

    def __init__(self, total: int, done: int, tell: Progress | None) -> None:
        self._total, self._done, self._told, self._tell = total, done, done, tell
        self._step = total // 100

    def add(self, count: int) -> None:
        self._done += count
        if self._tell and (self._done - self._told >= self._step or self._done == self._total):
            self._told = self._done
            self._tell(self._done, self._total)


# -- what is done, for a write that goes on after a kill --------------------------------------------------------------


class _Journal:
    """Names and hashes of whole shards, beside them until the write is complete."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self._file = out / RECORD
        self._fingerprint = fingerprint
        self._out = out
        self.files: dict[str, str | None] = self._read()

    def _read(self) -> dict[str, str | None]:
        try:
            data = json.loads(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # none, or torn by a power cut: begin again
            return {}
        return dict(data["files"]) if data.get("fingerprint") == self._fingerprint else {}

    def holds(self, shard: Shard) -> bool:
        file = self._out / shard.name
        return shard.name in self.files and file.is_file() and file.stat().st_size == shard.bytes

    def add(self, shard: Shard, digest: str | None) -> None:
        self.files[shard.name] = digest
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps({"fingerprint": self._fingerprint, "files": self.files}), encoding="utf-8")
        beside.replace(self._file)

    def close(self, *, durable: bool) -> None:
        self._file.unlink(missing_ok=True)
        if durable:
            sync(self._out)


def _fingerprint(program: Program, shards: list[Shard], seed: int, *, hash: bool) -> str:
    """What would be written: expressions, seed, and the state of the input files."""
    state = blake3(f"{seed} {hash}".encode())
    files: set[Path] = set()
    for shard in shards:
        state.update(shard.header)
        for _, tensor in shard.tensors:
            state.update(repr(tensor).encode())
            files |= inputs(tensor)
    for file in sorted(files):
        status = file.stat()
        state.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode())
    return state.hexdigest()


def inputs(tensor: Expression) -> set[Path]:
    """The files that an expression reads."""
    if isinstance(tensor, Input):
        return {tensor.tensor.file}
    return set().union(*(inputs(child) for child in children(tensor)))


# -- small files ----------------------------------------------------------------------------------------------------


def _write_small(
    program: Program, out: Path, shards: list[Shard], *, durable: bool, hash: bool
) -> dict[str, tuple[int, str | None]]:
    texts = {"config.json": json.dumps(dict(program.config), indent=2, sort_keys=True, ensure_ascii=False) + "\n"}
    if len(shards) > 1:
        texts["model.safetensors.index.json"] = _index(shards)
    found = {}
    for name, text in texts.items():
        data = text.encode()
        _write_whole(out / name, data, durable=durable)
        found[name] = (len(data), blake3(data).hexdigest() if hash else None)
    return found


def _index(shards: list[Shard]) -> str:
    names = {name: shard.name for shard in shards for name, _ in shard.tensors}
    total = sum(tensor_bytes(tensor) for shard in shards for _, tensor in shard.tensors)
    data = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    return json.dumps(data, indent=2) + "\n"


def _write_whole(file: Path, data: bytes, *, durable: bool) -> None:
    beside = file.with_name(file.name + ".partial")
    with beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    beside.replace(file)


def broken_numbers(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity; None where all numbers are finite. Reads everything."""
    source = Source(0)
    try:
        for name, tensor in tensors.items():
            if any(not _finite(chunk, tensor.dtype) for chunk in chunks(Input(tensor), source)):
                return name
    finally:
        source.close()
    return None


_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


def _finite(chunk: Any, dtype: str) -> bool:
    mask = chunk.dtype.type(_EXPONENT[dtype])
    return not bool(np.any((chunk & mask) == mask))
