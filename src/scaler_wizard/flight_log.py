"""The flight log: the journal as a text file, one event a line, each with the hash that chains it to the line before.

It is written again and again from the journal; should the journal be damaged, the journal is built from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from scaler_wizard.failpoints import reach
from scaler_wizard.journal import Journal, Row, link
from scaler_wizard.record import from_json, to_json

NAME = "flight_log.jsonl"


def export(journal: Journal, folder: Path) -> None:
    """Append what the journal has and the log has not; a torn last line is cut off, a foreign log is begun anew."""
    path, trace = folder / NAME, journal.get("uuid")
    last = _last_line(path)
    if last is not None and not _known(journal, last):
        path.rename(path.with_name(f"{NAME}.damaged"))
        last = None
    with path.open("a", encoding="utf-8") as log:
        for row in journal.events(0 if last is None else last.seq):
            log.write(_line(row, trace))
            reach("log.line")
        log.flush()
        os.fsync(log.fileno())
    reach("log.flushed")


def _known(journal: Journal, last: Row) -> bool:
    return any(row.chain == last.chain for row in journal.events(last.seq - 1, until=last.seq))


def _line(row: Row, trace: str | None) -> str:
    moment = datetime.fromtimestamp(row.time, UTC).isoformat()
    entry = {"seq": row.seq, "time": moment, "seconds": row.time, "traceId": trace, "phase": row.phase}
    return to_json({**entry, "kind": row.kind, "data": row.data, "chain": row.chain}) + "\n"


def _last_line(path: Path) -> Row | None:
    """The last whole line; what follows it is cut off."""
    if not path.exists():
        return None
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) != len(raw):
        os.truncate(path, len(whole))
    return _row(whole.splitlines()[-1]) if whole else None


def _row(line: bytes) -> Row | None:
    """A line as a row of the journal; None where it is not one."""
    try:
        entry = json.loads(line)
        data = from_json(json.dumps(entry["data"]))
        return Row(entry["seq"], entry["seconds"], entry["phase"], entry["kind"], data, entry["chain"])
    except (ValueError, KeyError, TypeError):
        return None


def claimed(path: Path) -> int:
    """Number of the last event that the log claims to hold; 0 where there is none."""
    last = _last_line(path)
    return 0 if last is None else last.seq


def sound(path: Path) -> Iterator[Row]:
    """The rows from the first on, as long as the chain holds."""
    before, count = "", 0
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        row, count = _row(line), count + 1
        if row is None or row.seq != count:
            return
        if link(before, row.seq, row.time, row.phase, row.kind, to_json(row.data)) != row.chain:
            return
        before = row.chain
        yield row


def first_fault(path: Path) -> int | None:
    """Number of the first line that is not what was written; None where all are."""
    if not path.is_file():
        return None
    lines, good = len(path.read_bytes().splitlines()), sum(1 for _ in sound(path))
    return None if lines == good else good + 1
