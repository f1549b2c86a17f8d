"""Copy what belongs to a model beside its weights: tokenizer, generation settings, chat template, licence."""

from __future__ import annotations

from pathlib import Path

from scaler_wizard.untrusted.folder import companions, place


def copy_companions(source: Path, out: Path) -> tuple[str, ...]:
    """Copy the files on the list of names, never code nor references to code; returns what was copied."""
    files = companions(source)
    for file in files:
        place(file, out / file.name, link=False)
    return tuple(file.name for file in files)
