"""Put a run right at every start: forward where something was decided, back where something is damaged; never ask.

In this order: the journal (rebuilt from the flight log where it is damaged), the plan and the contract (restored from
the journal), a commit or a move that was cut short (finished), the pointer (as the journal says), the current
checkpoint (every byte read; where it has rotted, the newest earlier one that has not becomes the current one).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from scaler_wizard import flight_log
from scaler_wizard.errors import ScalerError
from scaler_wizard.failpoints import reach
from scaler_wizard.files import sync, text_hash, verify, write_whole
from scaler_wizard.journal import Damaged, Journal, Row
from scaler_wizard.room import told_when_full
from scaler_wizard.run import Run


def recover(run: Run) -> list[str]:
    """Put the run right; what had to be done, in words. The caller holds the lock."""
    said = [*mend(run)]
    reach("recover.mended")
    _finish_commit(run)
    said += _repoint(run)
    reach("recover.pointed")
    said += _fall_back(run)
    _sweep(run.folder)
    for words in said:
        run.journal.add("recovered", {"text": words})
    run.write_metadata()
    reach("recover.done")
    return said


def open_sound(folder: Path) -> Run:
    """Open a run whose journal may be damaged, on a disk that may be full."""
    with told_when_full(folder):
        try:
            return Run(folder)
        except Damaged:
            rebuild(folder)
            return Run(folder)


def mend(run: Run) -> Iterator[str]:
    """The journal, the plan and the contract."""
    rows = _rows(run)
    if rows is not None:
        run.reopen(lambda: rebuild(run.folder))
        yield f"the journal was damaged and was built again from the flight log: {rows} events"
    created = run.last("created")
    if created is None:
        return
    for name, (digest, text) in created.data.get("files", {}).items():
        file = run.folder / name
        if not file.is_file() or text_hash(file.read_text(encoding="utf-8", errors="replace")) != digest:
            _set_aside(file)
            write_whole(file, text)
            yield f"{name} was changed or damaged and is again as it was signed"
    for key in ("uuid", "identity"):
        if key in created.data and run.journal.get(key) != created.data[key]:
            run.journal.set(key, created.data[key])
            yield f"the journal's {key} is again as it was"


def _rows(run: Run) -> int | None:
    """How many events can be saved of a journal that is damaged or behind its flight log; None where it is whole."""
    log = run.folder / flight_log.NAME
    try:
        count, _ = run.journal.verify()
    except Damaged:
        return max(sum(1 for _ in flight_log.sound(log)), sum(1 for _ in run.journal.sound()))
    if flight_log.claimed(log) <= count:
        return None
    saved = sum(1 for _ in flight_log.sound(log))
    return saved if saved > count else None


def rebuild(folder: Path) -> None:
    """A new journal from the longer of two sound beginnings: the damaged one's own, and the flight log's."""
    rows = max(_readable(folder), list(flight_log.sound(folder / flight_log.NAME)), key=len)
    if not rows:
        raise ScalerError(
            f"{folder.name}: neither its journal nor its flight log can be read",
            f"its models are whole: they lie in {folder / 'checkpoints'}",
        )
    beside = folder / "run.db.new"
    beside.unlink(missing_ok=True)
    journal = Journal(beside)
    journal.restore(rows)
    for key, value in _values(rows):
        journal.set(key, value)
    journal.checkpoint()
    journal.close()
    reach("rebuild.written")
    for name in ("run.db-wal", "run.db-shm"):  # an old log would be played over the new file
        (folder / name).unlink(missing_ok=True)
    _keep(folder / "run.db")
    beside.replace(folder / "run.db")
    sync(folder)


def _readable(folder: Path) -> list[Row]:
    try:
        journal = Journal(folder / "run.db")
    except (Damaged, ScalerError):
        return []
    try:
        return list(journal.sound())
    finally:
        journal.close()


def _values(rows: list[Row]) -> Iterator[tuple[str, str]]:
    """The run's values, as its events say."""
    for row in rows:
        if row.kind == "status":
            yield "status", str(row.data["status"])
        if row.kind == "created":
            yield from ((key, str(row.data[key])) for key in ("uuid", "identity") if key in row.data)


def _finish_commit(run: Run) -> None:
    """The approval was given, so a commit that was cut short only goes forward; unless what was staged is damaged."""
    rows = run.journal.events(kinds=("committing", "committed", "commit_lost"))
    if not rows or rows[-1].kind != "committing" or "manifest" not in rows[-1].data:
        return
    begun = rows[-1]
    slug, manifest = begun.data["slug"], begun.data["manifest"]
    place = next((at for at in (run.staging, run.checkpoints / slug) if run.holds(at, manifest)), None)
    try:
        if place is None:
            raise ScalerError(f"{slug}: what was approved is no longer there", "the phase is done again")
        verify(place, manifest, hashes=True)
    except ScalerError as error:
        run.journal.add("commit_lost", {"slug": slug, "text": error.wrong})
        shutil.rmtree(run.staging, ignore_errors=True)
        return
    data = {key: value for key, value in begun.data.items() if key not in ("slug", "manifest")}
    run.finish_commit(slug, manifest, data)


def _repoint(run: Run) -> Iterator[str]:
    """The journal is the truth; the pointer follows."""
    rows = run.journal.events(kinds=("committed", "moved"))
    if not rows:
        return
    wanted = rows[-1].data["slug"] if rows[-1].kind == "committed" else rows[-1].data["after"]
    if run.current != wanted:
        found = run.current
        run.point(wanted)
        if found not in {row.data["slug"] for row in run.committed()} | {None}:
            yield f"the pointer was damaged and is at {wanted} again"


def _fall_back(run: Run) -> Iterator[str]:
    """Read every byte of the current checkpoint before anything is built on it."""
    good, wrong = None, ""
    for row in reversed(run.lineage()):
        try:
            verify(run.checkpoints / row.data["slug"], row.data.get("manifest"), hashes=True)
            good = row.data["slug"]
            break
        except ScalerError as error:
            wrong = wrong or error.wrong
    else:
        if run.current is not None and not run.lineage():
            wrong = f"{run.current}: gone"
    if wrong:
        before = run.current
        run.move("fell_back", before, good, who="recovery", status="paused")
        yield f"{wrong}; the run goes on from {good or 'the base'}"


def _sweep(folder: Path) -> None:
    """Throw away what writes that were cut short left behind."""
    for pattern in (".*.new", "checkpoints/*/.*.link", "staging/.*.link", "staging/.*.new", "scratch/.*.new"):
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)
    for name in ("run.db.new", "run.db.new-wal", "run.db.new-shm"):
        (folder / name).unlink(missing_ok=True)


def _set_aside(file: Path) -> None:
    """Keep what was damaged, for whoever wants to look at it."""
    if file.exists():
        _keep(file)
        file.unlink()


def _keep(file: Path) -> None:
    place = file.parent / "damaged"
    place.mkdir(exist_ok=True)
    if file.exists():
        os.link(file, place / f"{file.name}-{len(list(place.iterdir())):03d}")
