"""The built cockpit, read into memory once: a request can only name a known file, so no path is ever resolved."""

from __future__ import annotations

import gzip
import mimetypes
from dataclasses import dataclass
from pathlib import Path

BUILT = Path(__file__).parents[1] / "_cockpit"
FOREVER = "public, max-age=31536000, immutable"
"""Assets carry a hash of their content in their names."""


@dataclass(frozen=True)
class Page:
    """One file of the cockpit."""

    body: bytes
    packed: bytes
    """The same, gzip."""
    kind: str


def load_pages(folder: Path = BUILT) -> dict[str, Page]:
    """Every file, by the path that a browser asks for."""
    files = {f"/{file.relative_to(folder).as_posix()}": file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {path: _page(file) for path, file in files.items()}


def _page(file: Path) -> Page:
    body = file.read_bytes()
    kind = {".js": "text/javascript", ".webmanifest": "application/manifest+json"}.get(file.suffix)
    return Page(body, gzip.compress(body, 9), kind or mimetypes.guess_type(file.name)[0] or "application/octet-stream")
