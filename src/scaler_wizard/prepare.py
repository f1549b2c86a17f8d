"""Make a training text of any folder of files: read, mask, drop what is unfit or doubled, and say what was dropped why.

Streams: one text is in memory at a time, and about 1.6 kB of fingerprints for each text that was kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3
from pydantic import Field

from scaler_wizard.clean import flaw, language_of, masked
from scaler_wizard.errors import ScalerError
from scaler_wizard.hub import hub_data, is_hub_data
from scaler_wizard.readers import READERS, Passage, Texts, Unreadable, texts
from scaler_wizard.record import Record
from scaler_wizard.sketch import NearDuplicates, Reserved, normal

EXAMPLES = 3


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


class Stock(Record):
    """What one source gave."""

    texts: int
    """Texts that were kept."""
    characters: int
    """Characters that were kept."""
    lengths: dict[str, int]
    """Texts by length in characters, in powers of two."""


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
    sources: dict[str, Stock] = Field(default={})
    """The same for each source: a folder at the top, a file, or what the entries themselves name."""


@dataclass
class _Tally:
    """What the card will say."""

    files: int = 0
    texts: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    """By source."""
    sizes: Counter[str] = field(default_factory=Counter)
    """Characters, by source."""

    def keep(self, source: str, text: str) -> None:
        self.sizes[source] += len(text)
        self.lengths.setdefault(source, Counter())[max(1, len(text)).bit_length() - 1] += 1

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
            kept=sum(found.total() for found in self.lengths.values()),
            characters=self.sizes.total(),
            unreadable=self.unreadable,
            dropped=dropped,
            masked=dict(self.masked),
            languages=dict(self.languages) if how.languages else None,
            lengths=_histogram(sum(self.lengths.values(), Counter())),
            sources={
                source: Stock(texts=found.total(), characters=self.sizes[source], lengths=_histogram(found))
                for source, found in sorted(self.lengths.items())
            },
        )


def _histogram(powers: Counter[int]) -> dict[str, int]:
    return {f"{2**power} to {2 ** (power + 1)}": count for power, count in sorted(powers.items())}


def prepare(
    source: Path, out: Path, how: Preparation, *, progress: Callable[[int, str], None] = lambda done, name: None
) -> DataCard:
    """Write the fit texts of a file or folder to `out` (JSON lines) and a card beside it (`.card.json`).

    A file that cannot be read is named in the card with its reason, and the rest is kept. `progress` is told the
    files done and the next one's name. Raises ScalerError where nothing is left, and writes nothing then.
    """
    source = hub_data(str(source)) if is_hub_data(str(source)) else source
    files, tally = text_files(source), _Tally()
    beside = out.with_name(f"{out.name}.new")
    with beside.open("w", encoding="utf-8") as stream:
        for found in _fit(_found(files, source, tally, progress), how, tally):
            stream.write(json.dumps(row_of(found), ensure_ascii=False) + "\n")
    card = tally.card(source, how)
    if not card.kept:
        beside.unlink()
        raise ScalerError(f"{source}: no text is left of {card.texts} in {card.files} files: {_why(card)}", _CURE)
    out.with_name(f"{out.name}.card.json").write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    beside.rename(out)
    return card


def row_of(found: Passage) -> dict[str, object]:
    """A text as a line of a prepared file says it."""
    row: dict[str, object] = {"text": found.text, "name": found.name, "source": found.source}
    return row if found.weight == 1 else row | {"sampling_weight": found.weight}


_CURE = "give other files, or drop less: --no-quality keeps texts of any kind"


def _why(card: DataCard) -> str:
    reasons = [*(f"{found.count} {why}" for why, found in card.dropped.items()), *set(card.unreadable.values())]
    return "; ".join(reasons)[:200]


def text_files(source: Path) -> list[Path]:
    """The file itself, or every file of a folder that can be read as text, by name."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ScalerError(f"{source}: no such file or folder", "check the path")
    found = sorted(file for file in source.rglob("*") if file.is_file() and file.suffix.lower() in READERS)
    if not found:
        raise ScalerError(f"{source}: nothing here can be read as text", f"files that can be: {' '.join(READERS)}")
    return found


def _found(files: list[Path], source: Path, tally: _Tally, progress: Callable[[int, str], None]) -> Texts:
    for number, file in enumerate(files):
        name = file.name if file == source else str(file.relative_to(source))
        progress(number, name)
        tally.files += 1
        try:
            for one in texts(file):
                yield replace(one, name=f"{name} {one.name}".strip(), source=one.source or Path(name).parts[0])
        except Unreadable as reason:
            tally.unreadable[name] = str(reason)
        except OSError as error:
            tally.unreadable[name] = f"cannot be opened ({error.strerror})"


def _fit(found: Texts, how: Preparation, tally: _Tally) -> Texts:
    exact: set[bytes] = set()
    near = NearDuplicates()
    reserved = Reserved([one.text for path in how.against for file in text_files(path) for one in texts(file)])
    for one in found:
        name, text = one.name, one.text
        tally.texts += 1
        plain = normal(text)
        digest = blake3(text.strip().encode()).digest(16)
        if not plain:
            tally.drop("empty", name)
        elif digest in exact:
            tally.drop("the same as an earlier text", name)
        elif how.quality and (wrong := flaw(text)):
            tally.drop(wrong, name)
        elif how.languages and (language := language_of(text)) not in how.languages:
            tally.drop("another language", f"{name}: {language}")
        elif reserved.overlaps(plain):
            tally.drop("overlaps a text that is kept for measuring", name)
        elif how.near_duplicates and (other := near.seen(name, plain)):
            tally.drop("nearly the same as an earlier text", f"{name}: like {other}")
        else:
            exact.add(digest)
            yield _kept(one, how, tally)


def _kept(one: Passage, how: Preparation, tally: _Tally) -> Passage:
    text = one.text
    if how.mask_personal:
        text, found = masked(text)
        tally.masked.update(found)
    if how.languages:
        tally.languages[language_of(text)] += 1
    tally.keep(one.source or "", text)
    return replace(one, text=text)
