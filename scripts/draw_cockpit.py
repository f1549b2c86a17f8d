"""Draw every screen of the cockpit into docs/cockpit/, from a folder of runs: python scripts/draw_cockpit.py RUNS

Needs Chromium and Playwright. Shown are the first run that has trained, compared with the second; the rank map and the
fusion preview of the first that has them; and the first gate that waits. The pictures in the repository show a whole
job (1.6x the parameters, 4x the window in two rungs, adapters, a merge) and a run that waits at a gate.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "e2e")]
OUT = ROOT / "docs" / "cockpit"
SIZES = {"wide": (1440, 900), "tablet": (768, 1024), "phone": (320, 720)}


def screens(runs: list[str]) -> Iterator[tuple[str, str, str]]:
    """Name, address and what to wait for."""
    yield "runs", "#/", ".run-link"
    yield "new-run", "#/new", ".foreseen .quiet[lang=en]"
    yield "run", f"#/run/{runs[0]}", ".u-legend"
    if len(runs) > 1:
        yield "compare", f"#/compare/{runs[0]}/{runs[1]}", ".differs"


def draw(browser: Any, server: Any, runs: list[str]) -> None:
    """Every screen in every size and both themes."""
    for theme in ("light", "dark"):
        for size, (width, height) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme, locale="en")
            page.set_default_timeout(120_000)
            page.goto(f"{server.origin}/#token={server.keys.link()}")
            for name, where, awaited in screens(runs):
                page.evaluate("where => { location.hash = where }", where)
                page.locator(awaited).first.wait_for()
                page.get_by_text("Loading…", exact=True).first.wait_for(state="detached")
                page.wait_for_timeout(800)
                _shoot(page, f"{name}-{size}-{theme}", full=True)
            page.locator(".brand").click()
            page.close()
    _dialog(browser, server, runs[0])
    parts = {"gate": ".gate", "ranks": ".figure:has(.heat):has-text('Rank map')"}
    parts["fusion"] = ".figure:has(.heat):has-text('Fusion preview')"
    for name, selector in parts.items():
        _part(browser, server, name, selector)


def _shoot(page: Any, name: str, *, full: bool) -> None:
    _keep(page.screenshot(full_page=full), name)


def _keep(shot: bytes, name: str) -> None:
    """A quarter of the bytes: the page has few colours."""
    from PIL import Image

    with Image.open(io.BytesIO(shot)) as picture:
        few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(OUT / f"{name}.png", optimize=True)


def _dialog(browser: Any, server: Any, run: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, locale="en")
    page.goto(f"{server.origin}/#token={server.keys.link()}")
    page.evaluate("where => { location.hash = where }", f"#/run/{run}")
    page.locator(".rollback:enabled").click()
    page.locator(".preview li").first.wait_for()
    _shoot(page, "rollback-wide-light", full=False)
    page.close()


def _part(browser: Any, server: Any, name: str, selector: str) -> None:
    """One part of the first run that shows it."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, locale="en")
    page.goto(f"{server.origin}/#token={server.keys.link()}")
    for row in server.ask("GET", "/api/runs").json:
        page.evaluate("where => { location.hash = where }", f"#/run/{row['id']}")
        page.locator(".cockpit[aria-busy=false]").wait_for()
        page.get_by_text("Loading…", exact=True).first.wait_for(state="detached")
        if page.locator(selector).count():
            page.wait_for_timeout(300)
            _keep(page.locator(selector).first.screenshot(), f"{name}-wide-light")
            break
    page.close()


def main(arguments: list[str]) -> int:
    """Draw them all."""
    from chromium import CHROMIUM  # type: ignore[import-not-found]
    from playwright.sync_api import sync_playwright

    from cockpit_server import served  # type: ignore[import-not-found]

    OUT.mkdir(parents=True, exist_ok=True)
    folder = Path(arguments[0])
    with served(folder) as server, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        rows = server.ask("GET", "/api/runs").json
        trained = sorted(rows, key=lambda row: not (row["at"] or "").endswith(("heal", "export")))
        draw(browser, server, [row["id"] for row in trained])
        browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
