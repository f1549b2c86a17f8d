"""Make a training text of any folder of files: read, mask, drop what is unfit or doubled, and say what was dropped why.

Streams: one text is in memory at a time, and about 1.6 kB of fingerprints for each text that was kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from blake3 import blake3
from pydantic import Field

from scaler_wizard.clean import flaw, masked
from scaler_wizard.errors import ScalerError
from scaler_wizard.readers import READERS, Unreadable, texts
from scaler_wizard.record import Record
from scaler_wizard.sketch import NearDuplicates, Reserved, normal

EXAMPLES = 3
LANGUAGE_SAMPLE = 2000


class Preparation(Record):
    """What to do with the texts."""

    languages: tuple[str, ...] = ()
    """Languages to keep, as ISO 639-1 codes ("en"); all where this is empty."""
    quality: bool = True
    """Drop what is not running text: too short, no words, mostly repetitions."""
    near_duplicates: bool = True
    """Drop texts that are nearly the same as an earlier one; exact repetitions always go."""
    mask_personal: bool = False
    """Replace e-mail addresses, phone numbers, IP addresses, card numbers and IBANs by their kind."""
    against: tuple[Path, ...] = ()
    """Texts kept for measuring: what shares 50 characters with one of them is dropped."""


class Dropped(Record):
    """Why some texts were left out."""

    count: int
    """How many."""
    examples: tuple[str, ...]
    """The first of them."""


class DataCard(Record):
    """What a prepared text is made of."""

    source: str
    """Where the files were."""
    preparation: Preparation
    """What was done."""
    files: int
    """Files that were looked at."""
    texts: int
    """Texts that were found in them."""
    kept: int
    """Texts that were kept."""
    characters: int
    """Characters that were kept."""
    unreadable: dict[str, str]
    """Every file that could not be read to its end, with the reason; texts before the damage were kept."""
    dropped: dict[str, Dropped]
    """Texts that were dropped, by reason."""
    masked: dict[str, int]
    """Personal data that was replaced, by kind."""
    languages: dict[str, int] | None
    """Kept texts by language; null where nobody asked for languages."""
    lengths: dict[str, int] = Field(default={})
    """Kept texts by length in characters, in powers of two."""


@dataclass
class _Tally:
    """What the card will say."""

    files: int = 0
    texts: int = 0
    kept: int = 0
    characters: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)

    def drop(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        examples = self.dropped.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(name)

    def card(self, source: Path, how: Preparation) -> DataCard:
        dropped = {why: Dropped(count=count, examples=tuple(self.dropped[why])) for why, count in self.counts.items()}
        return DataCard(
            source=str(source),
            preparation=how,
            files=self.files,
            texts=self.texts,
            kept=self.kept,
            characters=self.characters,
            unreadable=self.unreadable,
            dropped=dropped,
            masked=dict(self.masked),
            languages=dict(self.languages) if how.languages else None,
            lengths={f"{2**power} to {2 ** (power + 1)}": count for power, count in sorted(self.lengths.items())},
        )


def prepare(
    source: Path, out: Path, how: Preparation, *, progress: Callable[[int, str], None] = lambda done, name: None
) -> DataCard:
    """Write the fit texts of a file or folder to `out` (JSON lines) and a card beside it (`.card.json`).

    A file that cannot be read is named in the card with its reason, and the rest is kept. `progress` is told the
    files done and the next one's name. Raises ScalerError where nothing is left, and writes nothing then.
    """
    files, tally = _files(source), _Tally()
    beside = out.with_name(f"{out.name}.new")
    with beside.open("w", encoding="utf-8") as stream:
        for name, text in _fit(_found(files, source, tally, progress), how, tally):
            stream.write(json.dumps({"text": text, "name": name}, ensure_ascii=False) + "\n")
    card = tally.card(source, how)
    if not card.kept:
        beside.unlink()
        raise ScalerError(f"{source}: no text is left of {card.texts} in {card.files} files: {_why(card)}", _CURE)
    out.with_name(f"{out.name}.card.json").write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    beside.rename(out)
    return card


_CURE = "give other files, or drop less: --no-quality keeps texts of any kind"


def _why(card: DataCard) -> str:
    reasons = [*(f"{found.count} {why}" for why, found in card.dropped.items()), *set(card.unreadable.values())]
    return "; ".join(reasons)[:200]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ScalerError(f"{source}: no such file or folder", "check the path")
    found = sorted(file for file in source.rglob("*") if file.is_file() and file.suffix.lower() in READERS)
    if not found:
        raise ScalerError(f"{source}: nothing here can be read as text", f"files that can be: {' '.join(READERS)}")
    return found


def _found(
    files: list[Path], source: Path, tally: _Tally, progress: Callable[[int, str], None]
) -> Iterator[tuple[str, str]]:
    for number, file in enumerate(files):
        name = file.name if file == source else str(file.relative_to(source))
        progress(number, name)
        tally.files += 1
        try:
            for inside, text in texts(file):
                yield f"{name} {inside}".strip(), text
        except Unreadable as reason:
            tally.unreadable[name] = str(reason)
        except OSError as error:
            tally.unreadable[name] = f"cannot be opened ({error.strerror})"


def _fit(found: Iterator[tuple[str, str]], how: Preparation, tally: _Tally) -> Iterator[tuple[str, str]]:
    exact: set[bytes] = set()
    near = NearDuplicates()
    reserved = Reserved([text for path in how.against for file in _files(path) for _, text in texts(file)])
    for name, text in found:
        tally.texts += 1
        plain = normal(text)
        digest = blake3(text.strip().encode()).digest(16)
        if not plain:
            tally.drop("empty", name)
        elif digest in exact:
            tally.drop("the same as an earlier text", name)
        elif how.quality and (wrong := flaw(text)):
            tally.drop(wrong, name)
        elif how.languages and (language := _language(text)) not in how.languages:
            tally.drop("another language", f"{name}: {language}")
        elif reserved.overlaps(plain):
            tally.drop("overlaps a text that is kept for measuring", name)
        elif how.near_duplicates and (other := near.seen(name, plain)):
            tally.drop("nearly the same as an earlier text", f"{name}: like {other}")
        else:
            exact.add(digest)
            yield name, _kept(text, how, tally)


def _kept(text: str, how: Preparation, tally: _Tally) -> str:
    if how.mask_personal:
        text, found = masked(text)
        tally.masked.update(found)
    if how.languages:
        tally.languages[_language(text)] += 1
    tally.kept += 1
    tally.characters += len(text)
    tally.lengths[max(1, len(text)).bit_length() - 1] += 1
    return text


def _language(text: str) -> str:
    try:
        identify = import_module("py3langid").classify
    except ModuleNotFoundError:
        raise ScalerError("py3langid is needed to tell languages", 'pip install "scaler-wizard[data]"') from None
    return str(identify(text[:LANGUAGE_SAMPLE])[0])
