"""Keep a run folder sound and small: re-read old checkpoints while a worker runs, throw away what nobody needs.

Tidying never touches a checkpoint, nor the last two superseded attempts that verify, nor what is pinned.
"""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.failpoints import reach
from scaler_wizard.files import verify
from scaler_wizard.run import Run

KEPT = 2
LOWEST_PRIORITY = 19


class Scrub:
    """Reads checkpoints again in a thread of the lowest priority; answers when it is asked."""

    def __init__(self, checkpoints: dict[Path, str | None]) -> None:
        self._found: queue.Queue[tuple[str, str | None]] = queue.Queue()
        self._stop = threading.Event()
        threading.Thread(target=self._read, args=(checkpoints,), daemon=True).start()

    def _read(self, checkpoints: dict[Path, str | None]) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        for folder, manifest in checkpoints.items():
            if self._stop.is_set():
                return
            try:
                verify(folder, manifest, hashes=True)
            except ScalerError as error:
                self._found.put((folder.name, error.wrong))
            except FileNotFoundError:  # set aside meanwhile
                continue
            else:
                self._found.put((folder.name, None))

    def found(self) -> list[tuple[str, str | None]]:
        """What was read since the last call: names of checkpoints, and what is wrong with them or None."""
        new = []
        while not self._found.empty():
            new.append(self._found.get())
        return new

    def stop(self) -> None:
        """Read no further checkpoint."""
        self._stop.set()


@dataclass(frozen=True)
class Leftover:
    """Something that can go."""

    path: Path
    bytes: int
    """What deleting it frees: files that a checkpoint shares free nothing."""


def leftovers(run: Run) -> list[Leftover]:
    """What `tidy` would delete, largest first."""
    aside = run.folder / "superseded"
    attempts = sorted(aside.iterdir(), key=lambda path: path.stat().st_mtime) if aside.is_dir() else []
    pinned = {str(row.data["name"]) for row in run.journal.events(kinds=("pinned",))}
    kept = [path for path in attempts if _verifies(path)][-KEPT:]
    going = [path for path in attempts if path not in kept and path.name not in pinned]
    damaged = run.folder / "damaged"
    if damaged.is_dir():
        going += damaged.iterdir()
    return sorted((Leftover(path, _frees(path)) for path in going), key=lambda left: -left.bytes)


def tidy(run: Run) -> int:
    """Delete the leftovers; the bytes that were freed. The caller holds the lock."""
    freed = 0
    for left in leftovers(run):
        run.journal.add("tidied", {"name": left.path.name, "bytes": left.bytes})
        reach("tidy.recorded")
        if left.path.is_dir():
            shutil.rmtree(left.path)
        else:
            left.path.unlink()
        reach("tidy.deleted")
        freed += left.bytes
    run.write_metadata()
    return freed


def pin(run: Run, name: str, *, who: str) -> None:
    """Keep a superseded attempt for ever."""
    if not (run.folder / "superseded" / name).is_dir():
        raise ScalerError(f"{name}: no superseded attempt of {run.id}", f"see {run.folder / 'superseded'}")
    run.journal.add("pinned", {"name": name, "who": who})
    run.write_metadata()


def _verifies(folder: Path) -> bool:
    try:
        verify(folder)
    except ScalerError:
        return False
    return True


def _frees(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)
