"""`scaler prepare` on many files: megabytes a second on one core, peak memory, and what it says of malformed files.

    .venv/bin/python benchmarks/ingestion.py                       # 1,000 MB of mixed kinds
    .venv/bin/python benchmarks/ingestion.py --megabytes 200 --kinds txt

Texts are made of the King James Bible's words in random order, so that nearly all of them are kept; beside them lie a
hundred malformed files. The time is the command's own processor time, its start included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("txt", "md", "jsonl", "csv", "html", "zip", "parquet")
BROKEN: tuple[tuple[str, bytes], ...] = (
    ("txt", b"half a \xff\xfe text"),
    ("txt", b"binary \x00 text"),
    ("jsonl", b'{"text": "a"'),
    ("jsonl", b'{"number": 1}'),
    ("json", b"[1, 2"),
    ("csv", b'text\n"open quote'),
    ("pdf", b"%PDF-1.7 nothing"),
    ("docx", b"PK no archive"),
    ("epub", b"PK no archive"),
    ("parquet", b"PAR1 no table"),
    ("zip", b"PK\x03\x04 cut"),
)


def main() -> int:
    """Make the files, run the command, print; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--work", type=Path, default=Path("ingestion-benchmark"), help="folder; removed at the end")
    options = parser.parse_args()
    folder = options.work / "files"
    folder.mkdir(parents=True)
    size = make_files(folder, options.megabytes, options.kinds)
    for number in range(100):
        suffix, content = BROKEN[number % len(BROKEN)]
        (folder / f"broken-{number:03d}.{suffix}").write_bytes(content)
    out = options.work / "out.jsonl"
    command = [sys.executable, "-m", "scaler_wizard", "prepare", str(folder), "-o", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    card: dict[str, Any] = json.loads(out.with_name("out.jsonl.card.json").read_text(encoding="utf-8"))
    shutil.rmtree(options.work)
    seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10
    named = sum(name.startswith("broken-") for name in card["unreadable"])
    print(f"Python {platform.python_version()}, {', '.join(options.kinds)}")
    print(f"{size / 1e6:.0f} MB in {seconds:.1f} CPU-s: {size / 1e6 / seconds:.1f} MB/s; peak {peak:.0f} MiB")
    print(f"{named} of 100 malformed files named; {card['kept']} of {card['texts']} texts kept")
    return 0 if named == 100 and peak <= 500 and size / 1e6 / seconds >= 20 else 1


def make_files(folder: Path, megabytes: int, kinds: list[str]) -> int:
    """Files of about 5 MB; their bytes."""
    from scaler_wizard.data import load_kjv

    words = np.array(sorted({word for book in load_kjv().train for word in book.text.split()}))
    chance, total, number = np.random.default_rng(0), 0, 0
    while total < megabytes * 1e6:
        kind = kinds[number % len(kinds)]
        path = folder / f"file-{number:05d}.{kind}"
        WRITERS[kind](path, [document(words, chance) for _ in range(500)])
        total, number = total + path.stat().st_size, number + 1
    return total


def document(words: Any, chance: np.random.Generator) -> str:
    """About 10 kB in paragraphs."""
    drawn = chance.choice(words, 1700).tolist()
    return "\n\n".join(" ".join(drawn[at : at + 85]) + "." for at in range(0, 1700, 85))


def as_text(path: Path, documents: list[str]) -> None:
    """One long text."""
    path.write_text("\n\n".join(documents), encoding="utf-8")


def as_jsonl(path: Path, documents: list[str]) -> None:
    """A text in each line."""
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents), encoding="utf-8")


def as_csv(path: Path, documents: list[str]) -> None:
    """A text in each row."""
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "text"])
        rows.writerows(enumerate(documents))


def as_html(path: Path, documents: list[str]) -> None:
    """A page of paragraphs."""
    body = "".join(f"<p>{part}</p>" for one in documents[:50] for part in one.split("\n\n"))
    path.write_text(f"<html><body>{body}</body></html>", encoding="utf-8")


def as_zip(path: Path, documents: list[str]) -> None:
    """Texts in an archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, one in enumerate(documents):
            archive.writestr(f"{number}.txt", one)


def as_parquet(path: Path, documents: list[str]) -> None:
    """A column of texts."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), path)


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "txt": as_text,
    "md": as_text,
    "jsonl": as_jsonl,
    "csv": as_csv,
    "html": as_html,
    "zip": as_zip,
    "parquet": as_parquet,
}

if __name__ == "__main__":
    raise SystemExit(main())
