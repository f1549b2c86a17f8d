"""The event stream of a run: one reader of its journal for all browsers, each of which resumes where it stopped.

Frames carry the journal's own sequence numbers, so there are no gaps and no duplicates after a reconnect. Beside them
go snapshots of the cockpit's payload, thinned, which carry no number: only the newest one matters. What comes between
two looks is one batch, encoded once and sent to everybody in one piece: beside a training, every send counts.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from scaler_wizard.record import to_json

LOOK_SECONDS = 0.125
"""Of the fifth of a second that an event may take to the screen; the rest is the browser's."""
SNAPSHOT_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0
KEPT = 4096
FREQUENT = {"step", "usage", "evaluated"}
"""Kinds that come many times a second: the snapshot waits for its turn. Any other kind has one made at once."""
AT_ONCE = 500

Item = tuple[int | None, str]
"""Sequence number and JSON; None is a snapshot."""


@dataclass(frozen=True)
class Batch:
    """What is passed on in one piece; none of both is a heartbeat."""

    frames: tuple[tuple[int, str], ...] = ()
    snapshot: str = ""

    @property
    def items(self) -> tuple[Item, ...]:
        """Events in order, then the snapshot."""
        return (*self.frames, (None, self.snapshot)) if self.snapshot or not self.frames else self.frames

    @cached_property
    def server_sent(self) -> bytes:
        """As server-sent events; the same bytes for all who get this batch."""
        return "".join(map(server_sent, self.items)).encode()


class Feed:
    """Reads one journal while anybody listens."""

    def __init__(self, folder: Path, snapshot: Callable[[], str]) -> None:
        self._file, self._snapshot = folder / "run.db", snapshot
        self._frames: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._newest = 0
        self._changed = asyncio.Event()
        self._shown = ""
        self._batch, self._before, self._turn = Batch(), 0, 0
        self._task: asyncio.Task[None] | None = None
        self._listeners = 0
        self._ended = False

    def end(self) -> None:
        """Let every listener go: the server stops."""
        self._ended = True
        self._changed.set()

    async def follow(self, after: int) -> AsyncIterator[Batch]:
        """Everything after a sequence number, then what comes."""
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        try:
            turn: int | None = None
            shown = ""
            while not self._ended:
                changed = self._changed
                if turn == self._turn:
                    await changed.wait()
                    continue
                stood, batch, turn = turn is not None, self._batch, self._turn
                if stood and after == self._before:
                    after = batch.frames[-1][0] if batch.frames else after
                    shown = batch.snapshot or shown
                    yield batch
                    continue
                while found := await self._since(after):
                    after = found[-1][0]
                    yield Batch(tuple(found))
                if shown != self._shown:
                    shown = self._shown
                    yield Batch(snapshot=shown)
        finally:
            self._listeners -= 1
            if self._listeners == 0 and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _since(self, after: int) -> list[tuple[int, str]]:
        """From memory, which is where all but newcomers stand; from the journal what is older."""
        frames = self._frames
        if frames and frames[0][0] <= after + 1:
            return list(reversed(list(takewhile(lambda frame: frame[0] > after, reversed(frames)))))
        return await asyncio.to_thread(self._stored, after)

    def _stored(self, after: int) -> list[tuple[int, str]]:
        database = _open(self._file)
        try:
            return [(row[0], _frame(row)) for row in database.execute(_QUERY, (after, KEPT))]
        finally:
            database.close()

    async def _read(self) -> None:
        """Look at the journal's version often; read only when it has changed."""
        database, file = _open(self._file), _number(self._file)
        version, urgent, looked, told = -1, True, 0.0, 0.0
        self._newest = int(database.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])
        self._frames.clear()
        try:
            while True:
                now, before, shown = time.monotonic(), self._newest, ""
                frames: list[tuple[int, str]] = []
                if now - looked >= SNAPSHOT_SECONDS and _number(self._file) not in (file, None):
                    database.close()  # a repair has put a new journal in the place of a damaged one
                    database, file, version = _open(self._file), _number(self._file), -1
                if (found := database.execute("PRAGMA data_version").fetchone()[0]) != version:
                    version = found
                    frames, kinds = self._take(database)
                    urgent = urgent or not kinds <= FREQUENT
                if urgent or now - looked >= SNAPSHOT_SECONDS:
                    urgent, looked = False, now
                    shown = await self._look()
                if frames or shown or now - told >= HEARTBEAT_SECONDS:
                    told = now
                    self._pass_on(Batch(tuple(frames), shown), before)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            database.close()

    def _take(self, database: sqlite3.Connection) -> tuple[list[tuple[int, str]], set[str]]:
        taken: list[tuple[int, str]] = []
        kinds: set[str] = set()
        while rows := database.execute(_QUERY, (self._newest, AT_ONCE)).fetchall():
            taken += [(row[0], _frame(row)) for row in rows]
            self._newest = rows[-1][0]
            kinds |= {row[3] for row in rows}
        self._frames.extend(taken)
        return taken, kinds

    async def _look(self) -> str:
        """A snapshot where it says something new; empty where it does not."""
        shown = await asyncio.to_thread(self._snapshot)
        if _lasting(shown) == _lasting(self._shown):
            return ""
        self._shown = shown
        return shown

    def _pass_on(self, batch: Batch, before: int) -> None:
        """To all who stand at `before`; the others see that they missed something."""
        self._batch, self._before = batch, before
        self._turn += 1
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

    def end(self) -> None:
        """Let every listener of every run go."""
        for feed in self._feeds.values():
            feed.end()


_MOMENT = re.compile(r'"timestamp":"[^"]*"')
_QUERY = "SELECT seq, time, phase, kind, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?"


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5, check_same_thread=False)


def _number(file: Path) -> int | None:
    """Which file it is; None in the moment in which it is being replaced."""
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return None


def _lasting(snapshot: str) -> str:
    """A snapshot without the moment that it was taken in."""
    return _MOMENT.sub("", snapshot, count=1)


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
