"""Room on the disk: asked for before anything is written, and a little kept back so that a full disk can be told."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaler_wizard.errors import Waiting

BALLAST_BYTES = 256 * 1024
"""Enough for the journal to write down a pause."""
MARGIN_BYTES = 2**20
REFUSED = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""How SQLite says that the disk takes no more: full, or a quota or a limit of file sizes is reached."""


class NoRoom(Waiting):
    """The disk is full, or would be; nothing is lost, and the run goes on when there is room."""


def require(folder: Path, need: int, what: str) -> None:
    """Refuse a write of `need` bytes before it starts, where it cannot fit."""
    free = shutil.disk_usage(folder).free
    if free < need + MARGIN_BYTES:
        raise NoRoom(
            f"{what} needs {need + MARGIN_BYTES:,} bytes and {free:,} are free",
            f"free {need + MARGIN_BYTES - free:,} bytes (`scaler tidy` shows what can go), then: scaler resume",
        )


def keep_ballast(folder: Path) -> None:
    """Hold some room back, where there is any; `drop_ballast` gives it to the journal."""
    file = folder / "ballast"
    try:
        with file.open("ab") as held:
            os.posix_fallocate(held.fileno(), 0, BALLAST_BYTES)
    except OSError as error:
        if not is_full(error):
            raise
        file.unlink(missing_ok=True)


def drop_ballast(folder: Path) -> None:
    """Give the room back."""
    (folder / "ballast").unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Whether this is how a full disk looks."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", None) in REFUSED


def full(folder: Path, need: int | None) -> NoRoom:
    """What is said when a write did not fit."""
    free = shutil.disk_usage(folder).free
    wanted = "an unknown number of" if need is None else f"{need + MARGIN_BYTES:,}"
    return NoRoom(
        f"the disk is full: {wanted} bytes are needed and {free:,} are free",
        "make room (`scaler tidy` shows what can go) or lift the quota, then: scaler resume",
    )


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Inside: a disk that fills up is said in two lines."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if not is_full(error):
            raise
        raise full(folder, None) from None
