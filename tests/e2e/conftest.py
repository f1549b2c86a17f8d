"""A real Chromium for the cockpit's tests; without one they fail and say what to do: they run only when asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import AXE, CHROMIUM, WIDE, show

from cockpit_server import Served, served
from recorded_run import make_run
from scaler_wizard.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, BrowserType, Page


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: beside them the short ones find their place."""
    items.sort(key=lambda item: "test_whole_job" not in item.nodeid)


@pytest.fixture(scope="session")
def chromium() -> Iterator[BrowserType]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "no Chromium here: apt-get install chromium"
    assert AXE.exists(), "axe-core is not here: npm ci in cockpit/"
    with sync_playwright() as started:
        yield started.chromium


@pytest.fixture(scope="session")
def browser(chromium: BrowserType) -> Iterator[Browser]:
    rebinding = "--host-resolver-rules=MAP rebind.example 127.0.0.1, MAP evil.example 127.0.0.1"
    opened = chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rebinding])
    yield opened
    opened.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A recorded run whose gate is open."""
    return make_run(tmp_path / "runs")


@pytest.fixture
def server(run: Run) -> Iterator[Served]:
    with served(run.folder.parent) as found:
        yield found


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport=WIDE, locale="en")
    opened.set_default_timeout(15_000)
    yield opened
    opened.close()


@pytest.fixture
def open_page(context: BrowserContext) -> Callable[..., Page]:
    """Opens the cockpit with a fresh link; problems of the page end the test."""
    problems: list[str] = []

    def opened(server: Served, where: str = "#/") -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{server.origin}/#token={server.keys.link()}")
        page.get_by_role("heading", level=1).wait_for()
        show(page, where)
        if where.startswith("#/run/"):
            page.locator(".cockpit[aria-busy=false]").wait_for()
        assert problems == []
        return page

    return opened
