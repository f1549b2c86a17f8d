"""Write a folder beside its place, and rename it there only when it is whole; what was there stays until then."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.failpoints import reach
from scaler_wizard.files import sync


def refuse_place(out: Path, record: str, *, force: bool) -> None:
    """Refuse a place that holds something, unless it holds `record` (so we made it) and `force` is given."""
    if _aside(out).exists() and not out.exists():
        _aside(out).rename(out)  # killed between two renames
    if not out.exists():
        return
    if not out.is_dir():
        raise ScalerError(f"{out}: a file is there", "name a folder that does not exist yet")
    if any(out.iterdir()) and not (force and (out / record).is_file()):
        raise ScalerError(f"{out}: the folder is not empty", f"name another; --force replaces one that has {record}")


@contextmanager
def beside(out: Path, doing: str) -> Iterator[Path]:
    """A hidden folder beside `out`, gone again if anything fails; a killed write goes on in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.{doing}"
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScalerError(f"{out}: another process is {doing} it", "wait for it, or name another folder") from None
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def sweep(staging: Path, *, keep: set[str]) -> None:
    """Remove what another write, killed earlier on its way to the same place, has left."""
    for file in staging.iterdir():
        if file.name in keep:
            continue
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()


def put(staging: Path, out: Path) -> None:
    """Rename into place; a folder that is replaced stays until the new one is there."""
    if out.exists():
        shutil.rmtree(_aside(out), ignore_errors=True)  # an earlier write was killed when it was done but for this
        out.rename(_aside(out))
        reach("put.aside")
    staging.rename(out)
    reach("put.renamed")
    sync(out.absolute().parent)
    shutil.rmtree(_aside(out), ignore_errors=True)


def _aside(out: Path) -> Path:
    return out.parent / f".{out.name}.replaced"
