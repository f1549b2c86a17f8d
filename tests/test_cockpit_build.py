"""The built cockpit in the package: fresh, small, and fit for a strict content security policy."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

from scaler_wizard.server.pages import BUILT, load_pages

COCKPIT = Path(__file__).parents[1] / "cockpit"
SOURCES = ("src", "scripts", "index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts")
SHARED = ("../src/scaler_wizard/words",)
LARGEST = 150 * 1024


def test_the_built_cockpit_is_made_from_these_sources() -> None:
    digest = hashlib.sha256()
    for name in sorted(name for part in (*SOURCES, *SHARED) for name in names(part)):
        digest.update(f"{name}\n".encode() + (COCKPIT / name).read_bytes())
    assert (BUILT / "sources.sha256").read_text() == digest.hexdigest(), "stale: make cockpit"


def names(part: str) -> list[str]:
    """Every file of a part, by its path from the cockpit's folder."""
    path = COCKPIT / part
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return [part + str(file)[len(str(path)) :] for file in found]


def test_the_first_load_is_small() -> None:
    sizes = {path: len(page.packed) for path, page in load_pages().items() if path.startswith(("/index", "/assets"))}
    first = [path for path in sizes if "/index" in path]
    assert len(first) == 3
    largest_language = max(size for path, size in sizes.items() if path not in first)
    assert sum(sizes[path] for path in first) + largest_language <= LARGEST


def test_the_page_holds_no_inline_script_or_style_and_no_foreign_address() -> None:
    shell = (BUILT / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", shell)
    assert not re.search(r"https?://", shell)
    for path, page in load_pages().items():
        if path.endswith(".js"):
            assert not re.search(rb"\beval\(|new Function\(", page.body), path


def test_the_packed_pages_are_the_pages() -> None:
    assert all(gzip.decompress(page.packed) == page.body for page in load_pages().values())
