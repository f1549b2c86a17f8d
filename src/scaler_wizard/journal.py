"""The journal of a run: every event, decision and checkpoint in one SQLite file that survives a kill at any moment."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.record import from_json, to_json

SCHEMA_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, phase TEXT, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_answer ON events (json_extract(data, '$.gate')) WHERE kind = 'decision';
CREATE INDEX IF NOT EXISTS by_kind ON events (kind, seq);
"""


@dataclass(frozen=True)
class Row:
    """One event as the journal holds it."""

    seq: int
    time: float
    """Seconds since 1970, UTC."""
    phase: str | None
    kind: str
    data: dict[str, Any]


class Journal:
    """An open journal. Readers and one writer can work at the same time (write-ahead log)."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_TABLES)
        self._check_version(path)

    def _check_version(self, path: Path) -> None:
        known = self.get("schema")
        if known is None:
            self.set("schema", str(SCHEMA_VERSION))
        elif int(known) > SCHEMA_VERSION:
            raise ScalerError(
                f"{path.parent.name}: written by a newer release (journal format {known})", "install that release"
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def get(self, key: str) -> str | None:
        """A value of the run, or None."""
        found = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def set(self, key: str, value: str) -> None:
        """Set a value of the run."""
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def add(self, kind: str, data: Mapping[str, Any], *, phase: str | None = None, durable: bool = True) -> int:
        """Append an event; `durable=False` (metrics) may lose the last moment in a power cut, never in a kill."""
        if not self._database.in_transaction:
            self._database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        cursor = self._database.execute(
            "INSERT INTO events (time, phase, kind, data) VALUES (?, ?, ?, ?)",
            (time.time(), phase, kind, to_json(data)),
        )
        return int(cursor.lastrowid or 0)

    def add_once(self, kind: str, data: Mapping[str, Any], *, phase: str | None = None) -> bool:
        """Append an event of which the journal holds at most one (a decision per gate); False where it has it."""
        try:
            self.add(kind, data, phase=phase)
        except sqlite3.IntegrityError:
            return False
        return True

    def events(self, after: int = 0, *, kinds: Sequence[str] = (), phase: str | None = None) -> list[Row]:
        """Events after a sequence number, in order."""
        where, values = "seq > ?", [after, *kinds]
        if kinds:
            where += f" AND kind IN ({', '.join('?' * len(kinds))})"
        if phase is not None:
            where += " AND phase = ?"
            values.append(phase)
        query = f"SELECT seq, time, phase, kind, data FROM events WHERE {where} ORDER BY seq"
        return [Row(row[0], row[1], row[2], row[3], from_json(row[4])) for row in self._database.execute(query, values)]

    def last(self, kind: str, *, phase: str | None = None) -> Row | None:
        """The newest event of a kind."""
        where, values = ("kind = ?", [kind]) if phase is None else ("kind = ? AND phase = ?", [kind, phase])
        query = f"SELECT seq, time, phase, kind, data FROM events WHERE {where} ORDER BY seq DESC LIMIT 1"
        found = self._database.execute(query, values).fetchone()
        return None if found is None else Row(found[0], found[1], found[2], found[3], from_json(found[4]))

    def newest(self) -> Row:
        """The newest event; a run's journal begins with its creation, so there is one."""
        found = self._database.execute("SELECT seq, time, phase, kind, data FROM events ORDER BY seq DESC LIMIT 1")
        seq, moment, phase, kind, data = found.fetchone()
        return Row(seq, moment, phase, kind, from_json(data))
