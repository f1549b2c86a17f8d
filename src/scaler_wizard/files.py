"""Files that are whole or not there: write beside, flush, rename; flush folders; hash; share equal bytes."""

from __future__ import annotations

import json
import os
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from blake3 import blake3

from scaler_wizard.errors import ScalerError
from scaler_wizard.failpoints import reach

MANIFEST = "manifest.json"
PIECE = 2**20
MAPPED = 2**24
"""Files from this size on are hashed through a memory map with every core; below, starting threads costs more."""
WINDOW = 2**23
"""Bytes that are mapped at once, since mapped pages count as memory in use."""


def write_whole(file: Path, text: str) -> None:
    """Write beside, flush, rename, flush the folder: readers see the old text or the new one, after a power cut too."""
    beside = file.with_name(f".{file.name}.new")
    with beside.open("w", encoding="utf-8") as stream:
        reach("write.opened")
        stream.write(text)
        stream.flush()
        reach("write.written")
        os.fsync(stream.fileno())
    reach("write.flushed")
    beside.rename(file)
    reach("write.renamed")
    sync(file.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(file: Path) -> str:
    """blake3 of a file; large ones with every core."""
    digest = blake3(max_threads=blake3.AUTO)
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size >= MAPPED:
            for start in range(0, size, WINDOW):
                with mmap(stream.fileno(), min(WINDOW, size - start), access=ACCESS_READ, offset=start) as window:
                    digest.update(window)
        else:
            while piece := stream.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """blake3 of a text."""
    return blake3(text.encode()).hexdigest()


def share(twin: Path, file: Path) -> None:
    """Replace `file` by a hard link to a file with the same bytes."""
    beside = file.with_name(f".{file.name}.link")
    beside.unlink(missing_ok=True)
    os.link(twin, beside)
    reach("share.linked")
    beside.rename(file)


# -- manifests ---------------------------------------------------------------------------------------------------------


def seal(folder: Path, known: dict[tuple[int, str], Path]) -> str:
    """Hash and flush every file, share those that are `known` by size and hash, write the manifest; its hash."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        size, digest = file.stat().st_size, file_hash(file)
        files[str(file.relative_to(folder))] = {"bytes": size, "blake3": digest}
        twin = known.get((size, digest))
        if twin is None or not twin.is_file():  # the other manifest may be damaged
            sync(file)
        elif not twin.samefile(file):
            if file_hash(twin) == digest:  # a twin that has rotted must not replace good bytes
                share(twin, file)
            else:
                sync(file)
        reach("seal.file")
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        sync(inner)
    text = json.dumps({"files": files}, indent=1, sort_keys=True)
    write_whole(folder / MANIFEST, text)
    reach("seal.manifest")
    return text_hash(text)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file of a checkpoint; empty where there is no manifest, or none that can be read."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {str(name): {"bytes": int(e["bytes"]), "blake3": str(e["blake3"])} for name, e in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def verify(folder: Path, manifest: str | None = None, *, hashes: bool = False) -> None:
    """Is the checkpoint whole? By sizes (instant), or by hashes (reads everything).

    `manifest` is the hash that the journal holds of its manifest.
    """
    files = read_manifest(folder)
    if not files:
        raise ScalerError(
            f"{folder.name}: no such checkpoint, or it is not whole", "see `scaler status` for the others"
        )
    if manifest is not None and file_hash(folder / MANIFEST) != manifest:
        raise ScalerError(f"{folder.name}/{MANIFEST}: not the one that was committed", "roll back to an earlier phase")
    for name, entry in files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"] or (hashes and file_hash(file) != entry["blake3"]):
            raise ScalerError(f"{folder.name}/{name}: damaged or missing", "roll back to an earlier phase")
