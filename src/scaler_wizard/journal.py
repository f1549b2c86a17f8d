"""The journal of a run: every event, decision and checkpoint in one SQLite file that survives a kill at any moment.

Each row carries a hash of itself and of the row before it, so that a changed, lost or swapped row is found. The chain
shows accidents and clumsy edits; who can rewrite the whole file can rewrite the chain, unless its last hash was noted
somewhere else (`scaler log --verify` prints it).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from scaler_wizard.errors import ScalerError
from scaler_wizard.failpoints import reach
from scaler_wizard.record import from_json, to_json

SCHEMA_VERSION = 2
DURABLE, BATCHED = "FULL", "NORMAL"
"""Flushed to the disk before an addition returns; or with the next one that is."""
LAST = 2**62
_COLUMNS = "seq, time, phase, kind, data, chain"
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, phase TEXT, kind TEXT NOT NULL, data TEXT NOT NULL,
  chain TEXT NOT NULL DEFAULT '');
CREATE UNIQUE INDEX IF NOT EXISTS one_answer ON events (json_extract(data, '$.gate')) WHERE kind = 'decision';
CREATE INDEX IF NOT EXISTS by_kind ON events (kind, seq);
"""


class Damaged(ScalerError):
    """The journal is not what was written."""


class Fenced(ScalerError):
    """Another process has taken the run over."""


@dataclass(frozen=True)
class Row:
    """One event as the journal holds it."""

    seq: int
    time: float
    """Seconds since 1970, UTC."""
    phase: str | None
    kind: str
    data: dict[str, Any]
    chain: str = ""
    """Hash of this row and all before it."""


def link(before: str, seq: int, time: float, phase: str | None, kind: str, data: str) -> str:
    """The hash that a row with this JSON text carries."""
    return blake3(json.dumps([before, seq, time, phase, kind, data]).encode()).hexdigest()


class Journal:
    """An open journal. Readers and one writer can work at the same time (write-ahead log)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token: str | None = None
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            with self._readable():
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute(f"PRAGMA synchronous={DURABLE}")
                self._database.executescript(_TABLES)
                self._migrate()
        except BaseException:
            self._database.close()
            raise

    def _damaged(self, why: str) -> Damaged:
        return Damaged(
            f"{self._path.parent.name}: its journal is damaged ({why})", "run `scaler resume`: it repairs it"
        )

    def _migrate(self) -> None:
        known = self.get("schema")
        if known is None:
            self.set("schema", str(SCHEMA_VERSION))
        elif int(known) > SCHEMA_VERSION:
            raise ScalerError(
                f"{self._path.parent.name}: written by a newer release (journal format {known})", "install that release"
            )
        elif int(known) == 1:
            self._add_chain()

    def _add_chain(self) -> None:
        """From format 1, which had no hashes; all or nothing."""
        with self.transaction():
            if self.get("schema") != "1":  # another process was quicker
                return
            self._database.execute("ALTER TABLE events ADD COLUMN chain TEXT NOT NULL DEFAULT ''")
            before = ""
            for seq, *rest in self._database.execute("SELECT seq, time, phase, kind, data FROM events ORDER BY seq"):
                before = link(before, seq, *rest)
                self._database.execute("UPDATE events SET chain = ? WHERE seq = ?", (before, seq))
            self.set("schema", "2")

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file, so that the file alone is whole."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            reach("journal.before-commit")
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        reach("journal.committed")

    def get(self, key: str) -> str | None:
        """A value of the run, or None."""
        with self._readable():
            found = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def set(self, key: str, value: str) -> None:
        """Set a value of the run."""
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- one writer ----------------------------------------------------------------------------------------------------

    def lease(self) -> None:
        """Take the run over for writing: from now on, what an earlier holder adds is refused."""
        with self.transaction():
            token = str(int(self.get("lease") or 0) + 1)
            self.set("lease", token)
        self._token = token

    @property
    def leased(self) -> bool:
        """Whether this journal is open for the one writer."""
        return self._token is not None

    def release(self) -> None:
        """Write as anybody may: decisions and requests."""
        self._token = None

    # -- adding --------------------------------------------------------------------------------------------------------

    def add(self, kind: str, data: Mapping[str, Any], *, phase: str | None = None, durable: bool = True) -> int:
        """Append an event; `durable=False` (metrics) may lose the last moment in a power cut, never in a kill."""
        if self._database.in_transaction:  # SQLite changes how it flushes only outside one
            return self._append(kind, to_json(data), phase)
        self._database.execute(f"PRAGMA synchronous={DURABLE if durable else BATCHED}")
        with self.transaction():
            return self._append(kind, to_json(data), phase)

    def _append(self, kind: str, text: str, phase: str | None) -> int:
        if self._token is not None and self.get("lease") != self._token:
            raise Fenced(f"{self._path.parent.name}: another process has taken the run over", "leave it to that one")
        seq, before = self._database.execute("SELECT seq, chain FROM events ORDER BY seq DESC LIMIT 1").fetchone() or (
            0,
            "",
        )
        row = (seq + 1, time.time(), phase, kind, text)
        self._database.execute(f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", (*row, link(before, *row)))
        return int(seq) + 1

    def add_once(self, kind: str, data: Mapping[str, Any], *, phase: str | None = None) -> bool:
        """Append an event of which the journal holds at most one (a decision per gate); False where it has it."""
        try:
            self.add(kind, data, phase=phase)
        except sqlite3.IntegrityError:
            return False
        return True

    # -- reading -------------------------------------------------------------------------------------------------------

    def events(
        self, after: int = 0, *, until: int | None = None, kinds: Sequence[str] = (), phase: str | None = None
    ) -> list[Row]:
        """Events after a sequence number, and up to another where that is given, in order."""
        where, values = "seq > ? AND seq <= ?", [after, LAST if until is None else until, *kinds]
        if kinds:
            where += f" AND kind IN ({', '.join('?' * len(kinds))})"
        if phase is not None:
            where += " AND phase = ?"
            values.append(phase)
        query = f"SELECT {_COLUMNS} FROM events WHERE {where} ORDER BY seq"
        with self._readable():
            return [_row(found) for found in self._database.execute(query, values)]

    def last(self, kind: str, *, phase: str | None = None) -> Row | None:
        """The newest event of a kind."""
        where, values = ("kind = ?", [kind]) if phase is None else ("kind = ? AND phase = ?", [kind, phase])
        query = f"SELECT {_COLUMNS} FROM events WHERE {where} ORDER BY seq DESC LIMIT 1"
        with self._readable():
            found = self._database.execute(query, values).fetchone()
            return None if found is None else _row(found)

    def newest(self) -> Row:
        """The newest event; a run's journal begins with its creation, so there is one."""
        with self._readable():
            query = f"SELECT {_COLUMNS} FROM events ORDER BY seq DESC LIMIT 1"
            return _row(self._database.execute(query).fetchone())

    def verify(self) -> tuple[int, str]:
        """How many rows there are, and the last hash. Raises Damaged at the first row that does not fit its chain."""
        before, count = "", 0
        with self._readable():
            wrong = self._database.execute("PRAGMA integrity_check(1)").fetchone()[0]
            for seq, *rest, chain in self._database.execute(f"SELECT {_COLUMNS} FROM events ORDER BY seq"):
                before, count = link(before, seq, *rest), count + 1
                if seq != count or before != chain:
                    raise self._damaged(f"row {seq} is not the one that was written")
        if wrong != "ok":
            raise self._damaged(wrong)
        return count, before

    def sound(self) -> Iterator[Row]:
        """The rows from the first on, as long as they can be read and the chain holds."""
        before, count = "", 0
        try:
            for found in self._database.execute(f"SELECT {_COLUMNS} FROM events NOT INDEXED ORDER BY seq"):
                before, count = link(before, *found[:5]), count + 1
                if found[0] != count or before != found[5]:
                    return
                yield _row(found)
        except (sqlite3.DatabaseError, ValueError, TypeError):
            return

    def restore(self, rows: Iterable[Row]) -> None:
        """Fill an empty journal with rows as they were."""
        with self.transaction():
            for row in rows:
                values = (row.seq, row.time, row.phase, row.kind, to_json(row.data), row.chain)
                self._database.execute(f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What cannot be read is damaged; a full disk or a lock is neither."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "malformed" not in str(error) and "decode" not in str(error):
                raise
            raise self._damaged(str(error)) from None
        except (sqlite3.DatabaseError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from None


def _row(found: tuple[Any, ...]) -> Row:
    return Row(found[0], found[1], found[2], found[3], from_json(found[4]), found[5])
