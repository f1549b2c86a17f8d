"""Copy what belongs to a model beside its weights: tokenizer, generation settings, chat template, licence."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import Path

NAMES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens*",
    "added_tokens*",
    "generation_config.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
CODE = (".py", ".pyc", ".so", ".pkl", ".bin", ".pt")


def copy_companions(source: Path, out: Path) -> tuple[str, ...]:
    """Copy the files on the list of names, never code; returns what was copied."""
    files = [file for file in sorted(source.iterdir()) if file.is_file() and _wanted(file.name)]
    for file in files:
        (out / file.name).unlink(missing_ok=True)  # a hard link to an earlier checkpoint must not be written through
        shutil.copyfile(file, out / file.name)
    return tuple(file.name for file in files)


def _wanted(name: str) -> bool:
    return not name.endswith(CODE) and any(fnmatchcase(name, pattern) for pattern in NAMES)
