"""Text that a person drops into the browser: streamed to names of the server's own, capped, looked at before use."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scaler_wizard.data import load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.server.wire import Upload

SUFFIXES = (".txt", ".md", ".jsonl")
LARGEST = 256 * 2**20
LONGEST_LINE = 2**20
MOST = 50
ID = re.compile(r"upload-[0-9a-f]{16}")


@dataclass(frozen=True)
class Uploads:
    """The folder of everything that was received."""

    folder: Path

    async def receive(self, name: str, body: AsyncIterator[bytes]) -> Upload:
        """Stream a body to disk and say what will be kept of it. Raises ScalerError; nothing stays then."""
        suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
        if suffix not in SUFFIXES:
            raise ScalerError(f"{shown(name)}: not a kind of text that can be read", f"give {', '.join(SUFFIXES)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in self.folder.iterdir()) >= MOST:
            raise ScalerError(f"there are {MOST} uploads already", "delete one first")
        place = self.folder / f"upload-{secrets.token_hex(8)}"
        place.mkdir()
        try:
            return await self._fill(place, name, suffix, body)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    async def _fill(self, place: Path, name: str, suffix: str, body: AsyncIterator[bytes]) -> Upload:
        file = place / f"text{suffix}"
        await _write(file, shown(name), body)
        found = _look(place.name, shown(name), file)
        (place / "upload.json").write_text(found.model_dump_json(by_alias=True), encoding="utf-8")
        return found

    def list(self) -> list[Upload]:
        """Everything that was received, whole."""
        if not self.folder.is_dir():
            return []
        files = sorted(self.folder.glob("upload-*/upload.json"))
        return [Upload.model_validate(json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def file(self, wanted: str) -> Path:
        """The text behind an id. Raises ScalerError for an unknown one."""
        known = {path.name: path for path in self.folder.iterdir()} if self.folder.is_dir() else {}
        if not ID.fullmatch(wanted) or wanted not in known:
            raise ScalerError(f"{wanted!r}: no such upload", "choose `kjv` or drop a file")
        return next(known[wanted].glob("text.*"))

    def remove(self, wanted: str) -> None:
        """Forget an upload."""
        shutil.rmtree(self.file(wanted).parent)


async def _write(file: Path, name: str, body: AsyncIterator[bytes]) -> None:
    size = line = 0
    with file.open("xb") as out:
        async for piece in body:
            size += len(piece)
            if size > LARGEST:
                raise ScalerError(f"{name}: larger than {LARGEST // 2**20} MiB", "split the file")
            lengths = [len(part) for part in piece.split(b"\n")]
            lengths[0] += line
            line = lengths[-1]
            if max(lengths) > LONGEST_LINE:
                raise ScalerError(f"{name}: a line is longer than {LONGEST_LINE // 2**20} MiB", "break it into lines")
            out.write(piece)


def _look(identity: str, name: str, file: Path) -> Upload:
    try:
        corpus = load_corpus(str(file))
    except ScalerError as error:
        raise ScalerError(error.wrong.replace(str(file), name).replace(file.name, name), error.cure) from None
    parts = {"learn": corpus.train, "tune": corpus.calibration, "report": corpus.heldout}
    lengths = {part: sum(len(document.text) for document in documents) for part, documents in parts.items()}
    total = sum(lengths.values())
    documents = {re.sub(r" \((train|calibration|held-out)\)$", "", d.name) for found in parts.values() for d in found}
    first = corpus.train[0].text if corpus.train else ""
    return Upload(
        id=identity,
        name=name,
        bytes=file.stat().st_size,
        documents=len(documents),
        characters=total,
        shares={part: length / total for part, length in lengths.items()},
        beginning=first[:400],
        notes=tuple(_notes(file, total)),
    )


def _notes(file: Path, kept: int) -> list[str]:
    raw = file.read_bytes()
    notes = ["Held-out text is kept apart: the model never learns from it."]
    if file.suffix == ".jsonl":
        notes.append('Of each line only its "text" is read.')
    if b"\r\n" in raw:
        notes.append("Windows line ends become plain ones.")
    if raw.startswith(b"\xef\xbb\xbf"):
        notes.append("The byte order mark is left out.")
    return notes


def shown(name: str) -> str:
    """A client's file name, fit to be shown; it is never used as a path."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(char for char in last if char.isprintable())[:80] or "file"
