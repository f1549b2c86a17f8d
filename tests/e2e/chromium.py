"""Where the browser and axe are, how large pages are, how to go from screen to screen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parents[2] / "cockpit" / "node_modules" / "axe-core" / "axe.min.js"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 320, "height": 720}


def show(page: Any, where: str) -> None:
    """Go to another screen, as a link does."""
    page.evaluate("where => { location.hash = where }", where)
    page.get_by_role("heading", level=1).wait_for()
