"""The cockpit's own voice and its tones, heard: a real Chromium, a real synthesiser, an ear at a null sink.

Runs where PulseAudio, speech-dispatcher and eSpeak NG are installed, as they are in continuous integration.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import CHROMIUM, WIDE, show
from loudspeaker import Loudspeaker, loudspeaker, missing

from cockpit_server import Served, served
from recorded_run import make_run, open_gate
from scaler_wizard.run import Run

SKIP = pytest.mark.skipif(bool(missing()), reason=f"nothing can be heard here, not installed: {missing()}")
pytestmark = [pytest.mark.e2e, pytest.mark.alone, SKIP]
ENDED = """
    const speak = speechSynthesis.speak;
    speechSynthesis.speak = function (said) {
      said.addEventListener("end", () => (window.ended = (window.ended ?? 0) + 1));
      speak.call(this, said);
    };
"""
GATE = "window 256 -> 512 done: short loss +0.087, needles 32/32 at 512; approve?"


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loudspeaker]:
    with loudspeaker(tmp_path_factory.mktemp("sound")) as found:
        yield found


@pytest.fixture(scope="module")
def speaking(chromium: Any, speaker: Loudspeaker) -> Iterator[Any]:
    """A browser that is heard."""
    options = ["--no-sandbox", "--enable-speech-dispatcher", "--autoplay-policy=no-user-gesture-required"]
    environment, loud = speaker.environment, ["--mute-audio"]
    opened = chromium.launch(executable_path=CHROMIUM, args=options, env=environment, ignore_default_args=loud)
    yield opened
    opened.close()


def becomes(page: Any, true: str) -> None:
    """Wait until an expression is true in the page, whose own rules let nothing be evaluated from inside."""
    end = time.monotonic() + 20
    while not page.evaluate(true):
        assert time.monotonic() < end, f"never: {true}"
        page.wait_for_timeout(50)


def at_run(browser: Any, server: Served, run: Run, **settings: Any) -> Any:
    """A page on the run's screen that has caught up, in a browser whose voices are there and, where wished, awake."""
    context = browser.new_context(viewport=WIDE)
    context.set_default_timeout(15_000)
    context.add_init_script(f"localStorage.setItem('scaler-wizard', '{json.dumps(settings)}');")
    context.add_init_script(ENDED)
    page = context.new_page()
    page.goto(f"{server.origin}/#token={server.keys.link()}")
    page.get_by_role("heading", level=1).wait_for()
    show(page, f"#/run/{run.id}")
    page.locator(".cockpit[aria-busy=false]").wait_for()
    becomes(page, "speechSynthesis.getVoices().length")  # they are loaded late
    if settings["voice"]:
        becomes(page, "window.ended")
    return page


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, speaking: Any) -> Iterator[tuple[Run, Any]]:
    """A run at a gate, and a page that speaks."""
    run = make_run(tmp_path_factory.mktemp("watched") / "runs")
    with served(run.folder.parent) as server:
        page = at_run(speaking, server, run, language="en", voice=True)
        yield run, page
        page.context.close()


def test_a_page_that_opens_wakes_the_voice_in_silence(watched: tuple[Run, Any], speaker: Loudspeaker) -> None:
    """First of all: where a sentence was cut short before, the next sound begins with the click of its rest."""
    time.sleep(0.7)
    assert speaker.heard == []


@pytest.mark.parametrize("language", ["en", "pt", "es", "fr", "de", "zh"])
def test_a_gate_is_heard_within_a_second_in_every_language(
    watched: tuple[Run, Any], speaker: Loudspeaker, language: str, record_property: Any
) -> None:
    run, page = watched
    page.locator("header select").select_option(language)
    page.locator(f"html[lang={language}]").wait_for()
    page.locator(".subtitle-none").wait_for(state="attached")
    speaker.hush()
    asked, before = time.time(), len(speaker.heard)
    open_gate(run, run.last("phase_started").data["slug"], GATE)  # type: ignore[union-attr]
    delay = speaker.after(asked)
    page.locator(".subtitle-critical").wait_for()
    record_property("gate_to_sound_ms", 1000 * delay)
    assert delay <= 1.0
    end = time.monotonic() + 10
    while len(speaker.heard) - before <= 50:  # a sentence, not a click: more than a second of sound
        assert time.monotonic() < end, f"only {len(speaker.heard) - before} pieces of sound"
        time.sleep(0.05)
    page.locator(".subtitle button").click()  # what is dismissed falls silent
    speaker.hush(patience=3)


def test_without_a_voice_wished_for_nothing_is_heard(
    server: Served, run: Run, speaking: Any, speaker: Loudspeaker
) -> None:
    page = at_run(speaking, server, run, language="en", voice=False)
    speaker.hush()
    before = len(speaker.heard)
    open_gate(run, run.last("phase_started").data["slug"], GATE)  # type: ignore[union-attr]
    page.locator(".subtitle-critical").wait_for()
    page.wait_for_timeout(1500)
    assert len(speaker.heard) == before
    page.context.close()


def test_the_loss_curve_is_heard_for_three_seconds(
    server: Served, run: Run, speaking: Any, speaker: Loudspeaker
) -> None:
    trained = make_run(run.folder.parent, name="trained", committed=5, gate=False)
    page = at_run(speaking, server, trained, language="en", voice=False)
    speaker.hush()
    before = len(speaker.heard)
    page.get_by_role("button", name="Listen").click()
    speaker.after(time.time() - 0.5)
    speaker.hush()
    assert 2.0 < (len(speaker.heard) - before) * 0.02 < 4.0
    page.context.close()
