"""Data sets of the Hugging Face hub as folders of files: fetched once, kept in the cache, then read like any folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.fetch import cache_folder
from scaler_wizard.readers import READERS

PREFIX = "hub:"
LARGEST_BYTES = 20 * 2**30
"""More is a data set to choose parts of, by hand."""


def is_hub_data(source: str) -> bool:
    """Whether a recipe's text is on the hub: `hub:org/name`."""
    return source.startswith(PREFIX)


def hub_data(source: str, *, cache: Path | None = None) -> Path:
    """The folder with a data set's files that can be read as text; the folder appears only when it is whole.

    Raises ScalerError for a name that is none, where the hub does not answer, for too much, and for nothing readable.
    """
    name = source.removeprefix(PREFIX)
    folder = (cache or cache_folder()) / "datasets" / name
    if name.count("/") != 1 or any(part in ("", ".", "..") for part in name.split("/")):
        raise ScalerError(f"{source}: not a data set's name", "write hub:org/name")
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        _fetch(name, partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub's own notes on a download
        partial.rename(folder)
    return folder


def _fetch(name: str, partial: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    how: dict[str, Any] = {"repo_type": "dataset", "local_dir": partial}
    how |= {
        "allow_patterns": [f"*{suffix}" for suffix in READERS],
        "ignore_patterns": ["README.md"],
    }  # its card is no text
    try:
        listed = snapshot_download(name, dry_run=True, **how)
        size = sum(file.file_size for file in listed)
        if not listed:
            raise ScalerError(f"{PREFIX}{name}: no file that can be read as text", f"known: {' '.join(READERS)}")
        if size > LARGEST_BYTES:
            raise ScalerError(
                f"{PREFIX}{name}: {size / 2**30:.0f} GiB; at most {LARGEST_BYTES / 2**30:.0f} are fetched",
                "download a part of it and give its folder",
            )
        snapshot_download(name, **how)
    except (OSError, ValueError, HFValidationError) as error:
        raise ScalerError(
            f"{PREFIX}{name}: the hub does not give this data set ({type(error).__name__})",
            "check the name and the connection, or download the files and give their folder",
        ) from None
