"""The event stream of a run: one reader of its journal for all browsers, each of which resumes where it stopped.

Frames carry the journal's own sequence numbers, so there are no gaps and no duplicates after a reconnect. Beside them
go snapshots of the cockpit's payload, thinned, which carry no number: only the newest one matters.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from scaler_wizard.record import to_json

LOOK_SECONDS = 0.04
SNAPSHOT_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0
KEPT = 4096
FREQUENT = {"step", "usage", "evaluated"}
"""Kinds that come many times a second; the snapshot waits for its turn. Any other kind has it made at once."""
AT_ONCE = 500

Item = tuple[int | None, str]
"""Sequence number and JSON; None is a snapshot."""


class Feed:
    """Reads one journal while anybody listens."""

    def __init__(self, folder: Path, snapshot: Callable[[], str]) -> None:
        self._file, self._snapshot = folder / "run.db", snapshot
        self._frames: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._newest = 0
        self._changed = asyncio.Event()
        self._shown = ""
        self._turn = 0
        self._task: asyncio.Task[None] | None = None
        self._listeners = 0

    async def follow(self, after: int) -> AsyncIterator[Item]:
        """Everything after a sequence number, then what comes; a heartbeat is an empty text."""
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        try:
            turn = -1
            while True:
                changed = self._changed
                while found := await asyncio.to_thread(self._since, after):
                    for seq, text in found:
                        after = seq
                        yield seq, text
                if turn != self._turn and self._shown:
                    turn = self._turn
                    yield None, self._shown
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield None, ""
        finally:
            self._listeners -= 1
            if self._listeners == 0 and self._task is not None:
                self._task.cancel()
                self._task = None

    def _since(self, after: int) -> list[tuple[int, str]]:
        kept = list(self._frames)
        if kept and kept[0][0] <= after + 1:
            return [frame for frame in kept if frame[0] > after]
        database = _open(self._file)
        try:
            return [(row[0], _frame(row)) for row in database.execute(_QUERY, (after, KEPT))]
        finally:
            database.close()

    async def _read(self) -> None:
        """Look at the journal's version often; read only when it has changed."""
        database = _open(self._file)
        version, urgent, looked = -1, True, 0.0
        self._newest = int(database.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])
        self._frames.clear()
        try:
            while True:
                now = time.monotonic()
                found = int(database.execute("PRAGMA data_version").fetchone()[0])
                if found != version:
                    version = found
                    kinds = self._take(database)
                    if kinds:
                        self._wake()
                    urgent = urgent or not kinds <= FREQUENT
                if urgent or now - looked >= SNAPSHOT_SECONDS:
                    urgent, looked = False, now
                    shown = await asyncio.to_thread(self._snapshot)
                    if shown != self._shown:
                        self._shown, self._turn = shown, self._turn + 1
                        self._wake()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            database.close()

    def _take(self, database: sqlite3.Connection) -> set[str]:
        rows = database.execute(_QUERY, (self._newest, AT_ONCE)).fetchall()
        for row in rows:
            self._frames.append((row[0], _frame(row)))
            self._newest = row[0]
        return {row[3] for row in rows}

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Feeds:
    """One feed for each run that somebody watches."""

    def __init__(self, snapshot: Callable[[Path], str]) -> None:
        self._snapshot = snapshot
        self._feeds: dict[Path, Feed] = {}

    def of(self, folder: Path) -> Feed:
        """The feed of a run folder."""
        return self._feeds.setdefault(folder, Feed(folder, lambda: self._snapshot(folder)))


_QUERY = "SELECT seq, time, phase, kind, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?"


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5, check_same_thread=False)


def _frame(row: tuple[int, float, str | None, str, str]) -> str:
    """The journal holds JSON already; it is passed on as it is."""
    seq, moment, phase, kind, data = row
    head = to_json({"seq": seq, "time": moment, "phase": phase, "kind": kind})
    return f'{head[:-1]},"data":{data}}}'


def server_sent(item: Item) -> str:
    """One item as a server-sent event."""
    seq, text = item
    if seq is not None:
        return f"id: {seq}\ndata: {text}\n\n"
    return f"event: cockpit\ndata: {text}\n\n" if text else ": still here\n\n"


def socket_text(item: Item) -> str:
    """One item as a text message: an event as it is, a snapshot under `cockpit`."""
    seq, text = item
    return text if seq is not None else json.dumps({"cockpit": json.loads(text) if text else None})
