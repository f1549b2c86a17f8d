"""No axe violation (WCAG 2.2 AA) on any screen, in any state, theme or language; nothing is clipped on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chromium import AXE, PHONE, WIDE, show

from cockpit_server import Served, served
from recorded_run import make_run, stop_training
from scaler_wizard.contract import Contract
from scaler_wizard.run import Run, locked

pytestmark = pytest.mark.e2e
LANGUAGES = ("en", "pt", "es", "fr", "de", "zh")
THEMES = ("light", "dark")
SMALL = (PHONE, {"width": 768, "height": 1024}, {"width": 640, "height": 450})
"""The last is a wide screen at twice the size."""
GATE_SECONDS = Contract().response_window_sec
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@dataclass(frozen=True)
class House:
    """A server with a run in every state."""

    server: Served
    gate: Run
    asking: Run
    """Its gate counts down."""
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
    asking = make_run(runs, name="asking")
    asking.set_status("running")
    complete = make_run(runs, name="complete", committed=6, gate=False)
    complete.set_status("completed")
    with served(runs) as found, locked(asking):
        fitted = found.ask("POST", "/api/expected", {"model": "embedded", "context": "2x"})
        assert fitted.status == 200  # so no screen waits for it
        yield House(found, gate, asking, complete, stopped, merging, moved)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("empty") / "runs") as found:
        yield found


def opened(browser: Any, server: Served, language: str, theme: str, size: dict[str, int]) -> Any:
    """A page with a session, in a language and a theme."""
    context = browser.new_context(viewport=size, locale=language, color_scheme=theme, reduced_motion="reduce")
    context.set_default_timeout(60_000)  # what is slow is seen elsewhere
    page = context.new_page()
    page.goto(f"{server.origin}/#token={server.keys.link()}")
    page.locator(f"html[lang={language}]").wait_for()
    page.get_by_role("heading", level=1).wait_for()
    return page


def languages(page: Any) -> Iterator[str]:
    """The same state in every language, chosen in the header as a person does."""
    for language in LANGUAGES:
        page.locator("header select").select_option(language, force=True)  # behind a dialog it cannot be clicked
        page.locator(f"html[lang={language}]").wait_for()
        yield language


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
    for number in range(4):  # each is shown for some seconds
        gate.journal.add("telegram", {**alert, "sentence": f"Alert {number}."})
    page.locator(".subtitle-critical").wait_for()
    yield "alert"
    assert page.locator(".subtitle-critical").is_visible()
    while page.locator(".subtitle button").count():
        page.locator(".subtitle button").click()
    page.clock.set_fixed_time(datetime.now(UTC) + timedelta(seconds=GATE_SECONDS - 15))
    house.asking.journal.add("resumed", {})  # it waits from now on
    show(page, f"#/run/{house.asking.id}")
    page.locator(".gate .soon").wait_for()
    yield "a gate that soon pauses"
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("theme", THEMES)
def test_no_screen_in_no_state_has_a_violation_in_any_language(browser: Any, house: House, theme: str) -> None:
    page = opened(browser, house.server, LANGUAGES[0], theme, WIDE)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = {
        (state, language): wrong
        for state in states(page, house)
        for language in languages(page)
        if (wrong := violations(page))
    }
    page.context.close()
    assert found == {}


def test_the_empty_list_and_the_way_in_have_no_violation(browser: Any, empty: Served) -> None:
    page = opened(browser, empty, LANGUAGES[0], THEMES[0], WIDE)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.locator(".empty").wait_for()
    in_every_look(page)
    page.context.clear_cookies()
    page.reload()
    page.locator(".narrow pre").wait_for()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    in_every_look(page)
    page.context.close()


def in_every_look(page: Any) -> None:
    """No violation in any theme and language."""
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        assert {language: wrong for language in languages(page) if (wrong := violations(page))} == {}


def test_nothing_is_clipped_in_any_language(browser: Any, house: House) -> None:
    page = opened(browser, house.server, LANGUAGES[0], "light", SMALL[0])
    for state in states(page, house):
        for language in languages(page):
            for size in SMALL:
                page.set_viewport_size(size)
                assert page.evaluate(_OVERFLOW) == [], (language, state, size)
    page.context.close()


_OVERFLOW = """async () => {
    for (let n = 0; n < 2; n++) await new Promise(requestAnimationFrame);  // charts follow the width
    if (document.documentElement.scrollWidth > innerWidth) return ['the page is wider than the screen'];
    const fusion = document.querySelector('.scroll:has(.fusion)');
    if (fusion && fusion.scrollWidth > fusion.clientWidth) return ['the fusion preview is wider than its place'];
    return [...document.querySelectorAll('body *')].filter(one => {
        const box = one.getBoundingClientRect();
        if (!box.width || one.closest('.unseen, .scroll, pre, .skip, canvas, .u-wrap')) return false;
        return box.right > innerWidth + 1 || box.left < -1;
    }).map(one => one.outerHTML.slice(0, 100)); }"""


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
