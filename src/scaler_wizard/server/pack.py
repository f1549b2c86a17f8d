"""A folder as a tar archive, made while it is sent: nothing is written, and memory stays small whatever the size."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

PIECE = 2**20


def tar_stream(folder: Path, name: str) -> Iterator[bytes]:
    """The archive, piece by piece; every member stands under `name`."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        with file.open("rb") as stream:
            member = tarfile.TarInfo(f"{name}/{file.relative_to(folder).as_posix()}")
            member.size, member.mode = file.stat().st_size, 0o644
            yield member.tobuf(tarfile.PAX_FORMAT)
            while piece := stream.read(PIECE):
                yield piece
        yield b"\0" * (-member.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
