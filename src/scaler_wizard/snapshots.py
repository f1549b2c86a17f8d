"""Snapshots that a training goes on from: the hash of every byte stands in the name, so a damaged one is never used.

Two are kept of each arm: the newest, and the one where the calibration text was read best, which the breaker offers.
No torch here: what is in a snapshot is the training's business.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scaler_wizard.failpoints import reach
from scaler_wizard.files import file_hash, sync

ENDING = ".snapshot"
NAME = re.compile(r"(?P<arm>[a-z]+)-(?P<step>\d{8})-(?P<hash>[0-9a-f]{64})\.snapshot")


@dataclass(frozen=True)
class Snapshot:
    """One file of a training's state."""

    file: Path
    step: int
    """After how many steps it was taken."""

    def sound(self) -> bool:
        """Whether its bytes are those that were written; reads all of them."""
        found = NAME.fullmatch(self.file.name)
        return found is not None and self.file.is_file() and file_hash(self.file) == found["hash"]


def snapshots(folder: Path, arm: str) -> list[Snapshot]:
    """Every snapshot of an arm, sound or not, newest first."""
    found = [(match, file) for file in folder.glob(f"*{ENDING}") if (match := NAME.fullmatch(file.name))]
    mine = [Snapshot(file, int(match["step"])) for match, file in found if match["arm"] == arm]
    return sorted(mine, key=lambda one: -one.step)


def newest_sound(folder: Path, arm: str, *, until: int | None = None) -> tuple[Snapshot | None, list[str]]:
    """The newest sound snapshot, at most at step `until`, and a sentence for each newer one that is damaged.

    A damaged one is deleted: the same steps are made again, bit for bit.
    """
    said: list[str] = []
    for one in snapshots(folder, arm):
        if until is not None and one.step > until:
            continue
        if one.sound():
            return one, said
        said.append(f"The snapshot of step {one.step} is damaged and is not used.")
        one.file.unlink(missing_ok=True)
    return None, said


def take(folder: Path, arm: str, step: int, write: Callable[[IO[bytes]], None], *, best: int) -> Snapshot:
    """Write a snapshot beside, flush, rename; then let go of all but this one and the newest up to the step `best`.

    Raises OSError where it does not fit; then nothing has changed.
    """
    beside = folder / f".{arm}.new"
    pieces = _Pieces(beside, "wb")
    try:
        with io.BufferedWriter(pieces) as stream:
            reach("snapshot.opened")
            write(stream)
            stream.flush()
            reach("snapshot.written")
            os.fsync(stream.fileno())
    except (OSError, RuntimeError):
        beside.unlink(missing_ok=True)
        if pieces.failed is not None:
            raise pieces.failed from None
        raise
    reach("snapshot.flushed")
    made = Snapshot(folder / f"{arm}-{step:08d}-{file_hash(beside)}{ENDING}", step)
    beside.replace(made.file)
    reach("snapshot.renamed")
    sync(folder)
    _let_go(made, snapshots(folder, arm), best=best)
    return made


class _Pieces(io.FileIO):
    """A file that remembers why a piece of it could not be written: torch's writer loses that on its way."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """One piece: a tensor, or some kilobytes of small parts."""
        try:
            reach("snapshot.piece")
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def _let_go(made: Snapshot, known: list[Snapshot], *, best: int) -> None:
    others = [one for one in known if one.file != made.file]
    kept = next((one for one in others if one.step <= best), others[0] if others else None)
    for one in others:
        if one is not kept:
            one.file.unlink(missing_ok=True)
            reach("snapshot.let-go")
