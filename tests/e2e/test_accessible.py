"""No axe violation (WCAG 2.2 AA) on any screen, in any state, theme or language; nothing is clipped on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from chromium import AXE, PHONE, WIDE, show

from cockpit_server import Served, served
from recorded_run import make_run, stop_training
from scaler_wizard.run import Run

pytestmark = pytest.mark.e2e
LANGUAGES = ("en", "pt", "es", "fr", "de", "zh")
THEMES = ("light", "dark")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@dataclass(frozen=True)
class House:
    """A server with a run in every state."""

    server: Served
    gate: Run
    complete: Run
    stopped: Run
    """Its breaker tripped, and it asks whether to go on anyway."""
    merging: Run
    """It shows how the models of its merge get on."""
    moved: Run
    """It was rolled back, and that can be undone."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    runs = tmp_path_factory.mktemp("house") / "runs"
    stopped = make_run(runs, name="stopped", committed=4)
    stop_training(stopped)
    models = [{"model": "grown", "weight": 0.7}, {"model": "base", "weight": 0.3}]
    merge = {"parameters": None, "heal": False, "merge": {"method": "linear", "models": models}}
    merging = make_run(runs, name="merging", committed=1, gate=False, **merge)
    moved = make_run(runs, name="moved", gate=False)
    moved.rollback("000-baseline", who="Ada")
    gate = make_run(runs, name="at-a-gate")
    complete = make_run(runs, name="complete", committed=6, gate=False)
    complete.set_status("completed")
    with served(runs) as found:
        yield House(found, gate, complete, stopped, merging, moved)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("empty") / "runs") as found:
        yield found


def opened(browser: Any, server: Served, language: str, theme: str, size: dict[str, int]) -> Any:
    """A page with a session, in a language and a theme."""
    context = browser.new_context(viewport=size, locale=language, color_scheme=theme, reduced_motion="reduce")
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.goto(f"{server.origin}/#token={server.keys.link()}")
    page.locator(f"html[lang={language}]").wait_for()
    page.get_by_role("heading", level=1).wait_for()
    return page


DROP = """text => { const data = new DataTransfer();
    data.items.add(new File([text], "notes.txt", { type: "text/plain" }));
    document.querySelector(".drop").dispatchEvent(new DragEvent("drop", { bubbles: true, dataTransfer: data })); }"""


def states(page: Any, house: House) -> Iterator[str]:
    """Every screen in every state, one after the other."""
    gate, complete = house.gate, house.complete
    page.locator(".run-link").first.wait_for()
    yield "runs"
    page.locator(".menu summary").click()
    yield "settings"
    page.locator(".menu .switch input").nth(1).check()  # voice commands; nobody may hear here, and that is said
    page.locator(".menu summary").click()
    show(page, "#/new")
    page.locator(".numbers").wait_for()
    page.locator(".step details summary").first.click()
    page.locator(".foreseen .quiet[lang=en]").wait_for()
    yield "wizard"
    page.evaluate(DROP, "In the beginning was the word, and it was measured. " * 60)
    page.locator(".kept").wait_for()
    yield "wizard with a dropped text"
    page.locator(".cards button").nth(1).click()
    page.locator("input[type=range]").nth(1).fill("0")
    page.locator(".trouble").first.wait_for()
    yield "wizard with an impossible wish"
    show(page, f"#/run/{gate.id}")
    page.locator(".gate").wait_for()
    page.locator(".ear").wait_for()
    page.locator("details summary").last.click()
    yield "gate"
    page.locator(".rollback").click()
    page.locator(".preview li").first.wait_for()
    yield "rollback dialog"
    page.keyboard.press("Escape")
    page.locator(".controls-end button").last.click()
    yield "abort dialog"
    page.keyboard.press("Escape")
    alert = {"kind": "telegram", "cause": "slope", "step": 1, "value": 0.3, "limit": 0.15, "hard": True}
    gate.journal.add("telegram", {**alert, "sentence": f"Alert {gate.journal.newest().seq}."})
    page.locator(".subtitle-critical").wait_for()
    yield "alert"
    show(page, f"#/run/{complete.id}")
    page.locator(".u-legend").first.wait_for()
    yield "complete"
    show(page, f"#/run/{house.stopped.id}")
    page.locator(".gate .row button").nth(1).wait_for()
    yield "stopped by the breaker, go on anyway"
    show(page, f"#/run/{house.moved.id}")
    page.locator(".controls-end button").nth(1).wait_for()
    yield "rolled back, to be undone"
    show(page, f"#/run/{house.merging.id}")
    page.locator(".heat-0").first.wait_for()
    yield "before a merge"
    show(page, f"#/compare/{gate.id}/{complete.id}")
    page.locator(".differs").first.wait_for()
    yield "compare"
    show(page, "#/run/none")
    page.locator(".trouble").wait_for()
    yield "unknown run"
    page.route("**/events*", lambda route: route.abort())
    show(page, f"#/run/{gate.id}")
    page.locator(".offline").wait_for()
    yield "stream lost"
    page.route("**/api/runs", lambda route: route.abort())
    show(page, "#/")
    page.locator(".trouble").wait_for()
    yield "server away"
    page.route("**/api/runs", lambda route: None)  # no answer comes
    show(page, "#/new")
    show(page, "#/")
    page.locator(".skeleton").wait_for()
    yield "loading"


def violations(page: Any) -> list[str]:
    """What axe finds, each with the first place."""
    found = page.evaluate("rules => axe.run(document, { runOnly: rules, resultTypes: ['violations'] })", RULES)
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found["violations"]]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_screen_in_no_state_has_a_violation(browser: Any, house: House, language: str, theme: str) -> None:
    page = opened(browser, house.server, language, theme, WIDE)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = {state: wrong for state in states(page, house) if (wrong := violations(page))}
    page.context.close()
    assert found == {}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_empty_list_and_the_way_in_have_no_violation(
    browser: Any, empty: Served, language: str, theme: str
) -> None:
    page = opened(browser, empty, language, theme, WIDE)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.locator(".empty").wait_for()
    assert violations(page) == []
    page.context.clear_cookies()
    page.reload()
    page.locator(".narrow pre").wait_for()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert violations(page) == []
    page.context.close()


@pytest.mark.parametrize("size", [PHONE, {"width": 768, "height": 1024}, {"width": 640, "height": 450}], ids=str)
def test_nothing_is_clipped_in_any_language(browser: Any, house: House, size: dict[str, int]) -> None:
    for language in LANGUAGES:
        page = opened(browser, house.server, language, "light", size)
        for state in states(page, house):
            assert page.evaluate(_OVERFLOW) == [], (language, state)
        page.context.close()


_OVERFLOW = """() => document.documentElement.scrollWidth > innerWidth ? ['the page is wider than the screen'] :
    [...document.querySelectorAll('body *')].filter(one => {
    const box = one.getBoundingClientRect();
    if (!box.width || one.closest('.unseen, .scroll, pre, .skip, canvas, .u-wrap')) return false;
    return box.right > innerWidth + 1 || box.left < -1;
}).map(one => one.outerHTML.slice(0, 100))"""


def test_every_screen_has_one_first_heading_and_the_keyboard_stands_in_it(
    house: House, open_page: Callable[..., Any]
) -> None:
    page = open_page(house.server)
    for where in ("#/", "#/new", f"#/run/{house.gate.id}", f"#/compare/{house.gate.id}/{house.complete.id}"):
        show(page, where)
        page.locator("h1").wait_for()
        assert page.locator("h1").count() == 1
        if where != "#/":
            assert page.evaluate("document.activeElement.id") == "main"
