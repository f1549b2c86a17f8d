"""How far models were measured to read, kept in the user's cache, so that a plan knows it without loading torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from scaler_wizard.architecture import Architecture
from scaler_wizard.errors import ScalerError
from scaler_wizard.fetch import cache_folder
from scaler_wizard.files import text_hash, write_whole
from scaler_wizard.record import Record, from_json, to_json


class NativeWindow(Record):
    """What a configuration claims, and what losses show."""

    claimed: Annotated[int, Field(gt=0)]
    """Window by the configuration, in tokens."""
    measured: Annotated[int, Field(gt=0)]
    """Up to here all the text before a token is no worse than a window of half the claimed one that slides; at most
    the claimed window."""


def remember(base: Architecture, found: NativeWindow) -> None:
    """Keep what was measured of a model."""
    file = _file(base)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, to_json(found) + "\n")


def recall(base: Architecture) -> NativeWindow | None:
    """What was measured of this very model; None where nobody did, or where what was kept cannot be read."""
    try:
        return NativeWindow.read(from_json(_file(base).read_text(encoding="utf-8")), "native window")
    except (OSError, ValueError, ScalerError):
        return None


def _file(base: Architecture) -> Path:
    """By the configuration, and by the names, sizes and times of the weights: hashing them would take a plan's time."""
    weights = sorted({tensor.file for tensor in base.tensors.values()})
    known = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in weights]
    config = (base.folder / "config.json").read_text(encoding="utf-8")
    return cache_folder() / "native-windows" / f"{text_hash(chr(10).join([config, *known]))}.json"
