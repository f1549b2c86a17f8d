"""Files of many kinds as plain texts, one function a kind; a file that cannot be read says why and stops nothing else.

Reads txt, md, html, pdf, docx, epub, csv, tsv, json, jsonl, parquet and zip. Not covered: scanned pages (no text in
them), password-protected files, archives inside archives.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, Any

from scaler_wizard.errors import ScalerError

PART_CHARACTERS = 4_000_000
"""A longer text file is read in parts of about this size, so that memory stays bounded."""
MEMBER_BYTES = 256 * 2**20
"""Largest file that is read out of an archive, and largest line of a table."""
ARCHIVE_BYTES = 8 * 2**30
CONTAINER = "META-INF/container.xml"
"""Where an EPUB says which of its files is the book."""
MOST_WEIGHT = 100
"""Largest weight of a text: it is read that many times."""
TEXT_COLUMNS = ("text", "content", "body", "document")
ASKED = ("instruction", "input", "prompt", "question")
ANSWERED = ("output", "completion", "response", "answer")
SPEAKERS = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Passage:
    """One text of a file."""

    name: str
    """Where in the file; "" for the whole of it."""
    text: str
    source: str | None = None
    """What the file says that it comes from."""
    weight: float = 1.0
    """How often to read it, beside others."""


Texts = Iterator[Passage]


class Unreadable(Exception):
    """Why a file, or one text in it, cannot be read; the message is for people."""


def texts(path: Path) -> Texts:
    """Every text of a file, lazily. Raises Unreadable, also after some texts were given."""
    with path.open("rb") as stream:
        yield from _read(stream, path.name)


def _read(stream: IO[bytes], name: str) -> Texts:
    kind = PurePosixPath(name.lower()).suffix
    if kind not in READERS:
        raise Unreadable(f"not a kind of text that can be read ({kind or 'no suffix'})")
    try:
        yield from READERS[kind](stream)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 text ({error.reason})") from None


def _plain(stream: IO[bytes]) -> Texts:
    """Text, cut between paragraphs (or lines, or anywhere) where it is very long."""
    reader, rest, number = io.TextIOWrapper(stream, encoding="utf-8-sig"), "", 0
    while block := reader.read(PART_CHARACTERS):
        if "\0" in block:
            raise Unreadable("binary, not text (a zero byte)")
        rest += block
        if len(rest) > PART_CHARACTERS:
            cut = next((at for gap in ("\n\n", "\n", " ") if (at := rest.rfind(gap)) > 0), len(rest))
            number += 1
            yield Passage(f"part {number}", rest[:cut])
            rest = rest[cut:]
    yield Passage(f"part {number + 1}" if number else "", rest)


def _html(stream: IO[bytes]) -> Texts:
    yield Passage("", html_text(stream.read()))


def html_text(page: bytes) -> str:
    """What a reader of the page sees; one line for each block."""
    soup = _library("bs4").BeautifulSoup(page, "html.parser")
    for tag in soup(["script", "style", "noscript", "template", "nav"]):
        tag.decompose()
    lines = (re.sub(r"\s+", " ", line).strip() for line in soup.get_text("\n").splitlines())
    return "\n".join(line for line in lines if line)


def _pdf(stream: IO[bytes]) -> Texts:
    pypdf = _library("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells what we tell, without the file's name
    try:
        reader = pypdf.PdfReader(stream)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("protected by a password")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except (pypdf.errors.PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise Unreadable(f"damaged PDF ({type(error).__name__})") from None
    if not text.strip():
        raise Unreadable("no text in this PDF: scanned pages need a text recognition first")
    yield Passage("", text)


def _docx(stream: IO[bytes]) -> Texts:
    docx = _library("docx")
    _refuse_bomb(stream)
    try:
        document = docx.Document(stream)
    except (zipfile.BadZipFile, KeyError, ValueError, SyntaxError, docx.opc.exceptions.OpcError) as error:
        raise Unreadable(f"damaged Word file ({type(error).__name__})") from None
    cells = (cell.text for table in document.tables for row in table.rows for cell in row.cells)
    yield Passage("", "\n".join([*(paragraph.text for paragraph in document.paragraphs), *cells]))


def _refuse_bomb(stream: IO[bytes]) -> None:
    """python-docx unpacks everything at once; what is no archive it says itself."""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(stream) as archive:
        if sum(member.file_size for member in archive.infolist()) > MEMBER_BYTES:
            raise Unreadable(f"would unpack to more than {MEMBER_BYTES // 2**20} MiB")
    stream.seek(0)


def _epub(stream: IO[bytes]) -> Texts:
    """The pages of a book, in its own order of reading."""
    with _archive(stream) as archive:
        for name in _spine(archive):
            yield Passage(name, html_text(_member(archive, name)))


def _spine(archive: zipfile.ZipFile) -> list[str]:
    if CONTAINER not in archive.namelist():
        raise Unreadable(f"damaged EPUB (no {CONTAINER})")
    try:
        container = _library("bs4").BeautifulSoup(_member(archive, CONTAINER), "html.parser")
        place = PurePosixPath(container.find("rootfile")["full-path"])
        package = _library("bs4").BeautifulSoup(_member(archive, str(place)), "html.parser")
        pages = {item["id"]: str(place.parent / item["href"]) for item in package.find_all("item")}
        return [pages[item["idref"]] for item in package.find_all("itemref")]
    except (KeyError, TypeError) as error:
        raise Unreadable(f"damaged EPUB (no {error})") from None


def _csv(stream: IO[bytes]) -> Texts:
    yield from _table(stream, ",")


def _tsv(stream: IO[bytes]) -> Texts:
    yield from _table(stream, "\t")


def _table(stream: IO[bytes], delimiter: str) -> Texts:
    csv.field_size_limit(MEMBER_BYTES)
    rows = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    try:
        for number, row in enumerate(rows, start=2):
            yield _entry(f"row {number}", row)
    except csv.Error as error:
        raise Unreadable(f"line {rows.line_num}: not a valid table ({error})") from None


def _jsonl(stream: IO[bytes]) -> Texts:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _entry(f"line {number}", _json_of(line, f"line {number}"))


def _json(stream: IO[bytes]) -> Texts:
    found = _json_of(stream.read(), "the file")
    for number, row in enumerate(found if isinstance(found, list) else [found], start=1):
        yield _entry(f"entry {number}", row)


def _json_of(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise Unreadable(f"{where}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise Unreadable(f"{where}: JSON that is nested too deep") from None


def _parquet(stream: IO[bytes]) -> Texts:
    arrow, parquet = _library("pyarrow"), _library("pyarrow.parquet")
    try:
        number = 0
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield _entry(f"row {number}", row)
    except (arrow.ArrowException, OSError) as error:
        raise Unreadable(f"damaged Parquet file ({type(error).__name__})") from None


def _zip(stream: IO[bytes]) -> Texts:
    """Files inside an archive; nothing is written to disk, so a name in it can point nowhere."""
    with _archive(stream) as archive:
        if sum(member.file_size for member in archive.infolist()) > ARCHIVE_BYTES:
            raise Unreadable(f"would unpack to more than {ARCHIVE_BYTES // 2**30} GiB")
        for member in archive.infolist():
            kind = PurePosixPath(member.filename.lower()).suffix
            if not member.is_dir() and kind in READERS and kind != ".zip":
                for inside in _read(io.BytesIO(_member(archive, member.filename)), member.filename):
                    yield replace(inside, name=f"{member.filename} {inside.name}".strip())


def _archive(stream: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except zipfile.BadZipFile:
        raise Unreadable("damaged archive") from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as stream:
            found = stream.read(MEMBER_BYTES + 1)
    except (zipfile.BadZipFile, RuntimeError, KeyError, NotImplementedError, EOFError, OSError) as error:
        raise Unreadable(f"{name}: damaged or protected ({type(error).__name__})") from None
    except ValueError as error:  # zlib.error is one
        raise Unreadable(f"{name}: damaged ({error})") from None
    if len(found) > MEMBER_BYTES:
        raise Unreadable(f"{name}: more than {MEMBER_BYTES // 2**20} MiB unpacked")
    return found


def _entry(name: str, row: Any) -> Passage:
    """An entry of a table or of JSON; `source` and `sampling_weight` beside its text count."""
    text = row_text(row)
    said = row if isinstance(row, Mapping) else {}
    source, weight = said.get("source"), said.get("sampling_weight")
    return Passage(name, text, source if isinstance(source, str) and source else None, _weight(name, weight))


def _weight(name: str, said: Any) -> float:
    if said is None or said == "":
        return 1.0
    try:
        weight = float(said)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight <= MOST_WEIGHT:
        raise Unreadable(f"{name}: sampling_weight {str(said)[:40]}: not a number from 0 to {MOST_WEIGHT}")
    return weight


def row_text(row: Any) -> str:
    """The text of one entry: a text column, a chat, or an instruction with its answer."""
    if isinstance(row, str):
        return row
    if not isinstance(row, Mapping):
        raise Unreadable(f"an entry is a {type(row).__name__}, not a text or a record")
    column = next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    if column is not None:
        return str(row[column])
    turns = row.get("messages") or row.get("conversations")
    if isinstance(turns, list):
        return chat_text(turns)
    parts = (row.get(name) for name in (*ASKED, *ANSWERED))
    said = [part for part in parts if isinstance(part, str) and part.strip()]
    if len(said) < 2:
        columns = ", ".join(map(str, row))[:80]
        raise Unreadable(f"no text column ({', '.join(TEXT_COLUMNS)}), chat or instruction in {columns}")
    return "\n".join(said)


def chat_text(turns: list[Any]) -> str:
    """A conversation as text: "user: ...", a line for each turn. Reads role/content and from/value records."""
    lines = []
    for turn in turns:
        said = turn if isinstance(turn, Mapping) else {}
        who, what = said.get("role", said.get("from")), said.get("content", said.get("value"))
        if not isinstance(who, str) or not isinstance(what, str):
            raise Unreadable("a turn of a chat lacks its role or its content")
        lines.append(f"{SPEAKERS.get(who, who)}: {what}")
    return "\n".join(lines)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ScalerError(f"{name} is needed to read this kind of file", 'pip install "scaler-wizard[data]"') from None


READERS: Mapping[str, Callable[[IO[bytes]], Texts]] = {
    ".txt": _plain,
    ".md": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
    ".epub": _epub,
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".zip": _zip,
}
"""A function for each kind of file, by its suffix."""
