"""The cockpit of one run in a real browser: gate, rollback, alerts, several browsers, a server that goes away."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import pytest

from cockpit_server import Served, served
from recorded_run import make_run, step_event
from scaler_wizard.run import Run

pytestmark = pytest.mark.e2e
Open = Callable[..., Any]


def test_rollback_is_the_largest_reddest_button_and_asks_with_the_safe_choice_in_focus(
    server: Served, run: Run, open_page: Open
) -> None:
    page = open_page(server, f"#/run/{run.id}")
    button = page.get_by_role("button", name="Rollback")
    boxes = [one.bounding_box() for one in page.locator("main button").all()]
    box = button.bounding_box()
    assert box["height"] >= 48 and box["width"] * box["height"] == max(b["width"] * b["height"] for b in boxes if b)
    middle = box["x"] + box["width"] / 2
    assert abs(middle - 640) < 40
    colour = button.evaluate("one => getComputedStyle(one).backgroundColor")
    assert colour == "rgb(211, 47, 47)"
    before = run.current
    button.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Stands aside, not deleted").wait_for()
    assert dialog.evaluate("one => document.activeElement.textContent") == "Stay here"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert run.current == before


def test_a_rollback_shows_what_returns_moves_the_pointer_and_can_be_undone(
    server: Served, run: Run, open_page: Open
) -> None:
    page, before = open_page(server, f"#/run/{run.id}"), run.current
    page.get_by_role("button", name="Rollback").click()
    page.get_by_role("combobox", name="Go back to").select_option("000-baseline")
    page.get_by_text("Returns: baseline").wait_for()
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("Rollback complete; you are now at phase 0 (baseline).").first.wait_for()
    assert run.current == "000-baseline"
    page.get_by_role("button", name="Undo rollback").click()
    page.get_by_text("Rollback undone").first.wait_for()
    assert run.current == before


def test_a_second_browser_sees_what_the_first_one_does(server: Served, run: Run, open_page: Open) -> None:
    first, second = (open_page(server, f"#/run/{run.id}") for _ in range(2))
    first.get_by_role("button", name="Rollback").click()
    first.get_by_role("button", name="Roll back").click()
    second.get_by_role("button", name="Undo rollback").wait_for()
    first.close()
    second.get_by_role("button", name="Undo rollback").click()
    second.get_by_role("button", name="Undo rollback").wait_for(state="detached")


def test_a_tripped_breaker_is_told_at_once_and_critically(server: Served, run: Run, open_page: Open) -> None:
    page = open_page(server, f"#/run/{run.id}")
    sentence = "The loss is nan at step 7; training was stopped."
    telegram = {"kind": "telegram", "cause": "nonfinite", "step": 7, "value": float("nan"), "limit": None}
    run.journal.add("step", step_event(7, loss=float("nan")))
    run.journal.add("telegram", {**telegram, "sentence": sentence, "hard": True})
    page.get_by_role("alert").get_by_text(sentence).wait_for(timeout=2000)
    assert page.get_by_role("heading", level=1).text_content() == sentence


# The browser's speech is replaced by a recorder: this machine's Chromium may have no voices.
RECORDER = """
    window.spoken = [];
    class Said extends EventTarget { constructor(text) { super(); this.text = text; } }
    window.SpeechSynthesisUtterance = Said;
    const voices = ["en-US", "pt-BR", "es-ES", "fr-FR", "de-DE", "zh-CN"].map(lang => ({ lang, localService: true }));
    const speech = { getVoices: () => voices, addEventListener() {}, cancel() {}, speak(said) {
      window.spoken.push({ text: said.text, rate: said.rate, lang: said.voice.lang, at: Date.now() });
      setTimeout(() => said.onend?.(), 300); } };
    Object.defineProperty(window, "speechSynthesis", { value: speech });
"""


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", "Accuracy fell to 20%"),
        ("pt", "A exatidão caiu"),
        ("es", "La exactitud cayó"),
        ("fr", "L’exactitude est tombée"),
        ("de", "Die Genauigkeit fiel"),
        ("zh", "准确率"),
    ],
)
def test_an_alert_is_spoken_within_a_second_in_every_language(
    server: Served, run: Run, context: Any, open_page: Open, language: str, words: str
) -> None:
    context.add_init_script(RECORDER + f"localStorage.setItem('scaler-wizard', '{_settings(language)}');")
    page = open_page(server, f"#/run/{run.id}")
    page.locator(f"html[lang={language}]").wait_for()
    telegram = {"kind": "telegram", "cause": "accuracy", "step": 7, "value": 0.2, "limit": 0.5, "hard": True}
    sent = time.time()
    run.journal.add("telegram", {**telegram, "sentence": "Accuracy fell to 20%; the floor is 50%."})
    page.locator(".subtitle-critical").wait_for()
    (spoken,) = page.evaluate("window.spoken")
    assert spoken["lang"].startswith(language) and spoken["at"] / 1000 - sent < 1.0
    assert spoken["text"] == page.locator(".subtitle-critical p").evaluate("one => one.lastChild.textContent")
    assert words in spoken["text"]


def _settings(language: str) -> str:
    return json.dumps({"language": language, "voice": True})


def test_a_gate_is_spoken_within_a_second_and_only_where_a_voice_was_asked_for(
    server: Served, run: Run, context: Any, open_page: Open
) -> None:
    context.add_init_script(RECORDER)
    page = open_page(server, f"#/run/{run.id}")
    telegram = {"kind": "telegram", "cause": "slope", "step": 7, "value": 0.3, "limit": 0.15, "hard": True}
    words = "Perplexity rises 30% per evaluation; the limit is 15%."
    run.journal.add("telegram", {**telegram, "sentence": words})
    page.get_by_role("alert").get_by_text(words).wait_for()
    assert page.evaluate("window.spoken") == []
    page.get_by_role("button", name="Dismiss").click()
    page.locator("summary", has_text="Settings").click()
    page.get_by_role("switch", name="Voice Speaks").check()
    sent = time.time()
    run.journal.add("telegram", {**telegram, "sentence": "Accuracy fell to 20%; the floor is 50%."})
    page.get_by_role("alert").get_by_text("Accuracy fell").wait_for()
    (spoken,) = page.evaluate("window.spoken")
    assert spoken["text"].startswith("Accuracy fell") and spoken["at"] / 1000 - sent < 1.0
    page.get_by_role("switch", name="Screen reader").check()
    run.journal.add("telegram", {**telegram, "sentence": "Accuracy fell to 10%; the floor is 50%."})
    page.get_by_text("Accuracy fell to 10%").first.wait_for()
    assert len(page.evaluate("window.spoken")) == 1


# Speech recognition, replaced by one that is told what it hears.
EARS = """
    window.SpeechRecognition = class { start() { window.ear = this; } abort() {} };
    window.hear = text => window.ear.onresult({ resultIndex: 0,
      results: [Object.assign([{ transcript: text, confidence: 0.9 }], { isFinal: true })] });
"""


def test_by_voice_a_rollback_needs_its_second_word(server: Served, run: Run, context: Any, open_page: Open) -> None:
    context.add_init_script(RECORDER + EARS)
    page, before = open_page(server, f"#/run/{run.id}"), run.current
    assert page.get_by_text("Say “pause”").count() == 0
    page.locator("summary", has_text="Settings").click()
    page.get_by_role("switch", name="Voice commands").check()
    page.get_by_role("switch", name="Voice Speaks").check()
    page.get_by_text("Say “pause”").wait_for()
    page.evaluate("hear('Repeat.')")
    page.locator(".subtitle-warn").wait_for()
    page.evaluate("hear('roll back')")  # while it speaks, it hears nothing
    assert page.get_by_role("dialog").count() == 0
    page.locator(".subtitle-none").wait_for(state="attached")
    page.evaluate("hear('confirm rollback')")
    page.evaluate("hear('roll back')")
    page.get_by_role("dialog").wait_for()
    page.get_by_text("Say “confirm rollback” within 10 seconds").wait_for(state="attached")
    page.evaluate("hear('roll back')")
    page.evaluate("hear('never confirm rollback')")
    page.wait_for_timeout(300)
    assert run.current == before
    page.evaluate("hear('confirm rollback')")
    page.get_by_text("Rollback complete").first.wait_for()
    assert run.current is not None and before is not None and run.current < before


def test_a_browser_that_cannot_hear_says_so(server: Served, run: Run, context: Any, open_page: Open) -> None:
    context.add_init_script("delete window.webkitSpeechRecognition; delete window.SpeechRecognition;")
    page = open_page(server, f"#/run/{run.id}")
    page.locator("summary", has_text="Settings").click()
    page.get_by_role("switch", name="Voice commands").check()
    page.locator(".ear", has_text="This browser cannot hear commands").wait_for()


def test_a_page_in_the_background_puts_up_a_notice(server: Served, run: Run, context: Any, open_page: Open) -> None:
    context.add_init_script("""
        window.notices = [];
        window.Notification = class { constructor(title, { body }) { window.notices.push(body); }
          static requestPermission() { return Promise.resolve("granted"); } };
        Object.defineProperty(document, "hidden", { get: () => window.away === true });
    """)
    page = open_page(server, f"#/run/{run.id}")
    telegram = {"kind": "telegram", "cause": "slope", "step": 7, "value": 0.3, "limit": 0.15, "hard": True}
    page.locator("summary", has_text="Settings").click()
    page.get_by_role("switch", name="Notifications").check()
    for sentence, away in (("The first.", "false"), ("The second.", "true")):
        page.evaluate(f"window.away = {away}")
        run.journal.add("telegram", {**telegram, "sentence": sentence})
        page.get_by_role("alert").get_by_text(sentence).wait_for()
        page.get_by_role("button", name="Dismiss").click()
    assert page.evaluate("window.notices") == ["The second."]


def test_everything_that_was_measured_is_on_the_screen(run: Run, open_page: Open) -> None:
    complete = make_run(run.folder.parent, name="complete", committed=6, gate=False)
    (complete.report / "report.html").parent.mkdir(exist_ok=True)
    (complete.report / "report.html").write_text("<!doctype html><title>Report</title>", encoding="utf-8")
    with served(run.folder.parent) as server:
        page = open_page(server, f"#/run/{complete.id}")
        parts = ("Loss", "Loss by position", "Needles found", "Growth", "Rank map", "What changed", "Log", "Your note")
        for part in parts:
            page.get_by_role("heading", name=part, exact=True, level=2).wait_for()
        gauges = page.locator(".gauge-name").all_text_contents()
        assert gauges == [
            "Nearest red line",
            "Skill kept",
            "Short text, loss vs base",
            "Perplexity",
            "Perplexity, rise per evaluation",
            "Accuracy",
            "Context retention",
            "Memory",
            "Time left",
            "Next gate",
        ]
        ranks = page.get_by_role("group", name="Rank map")
        assert ranks.locator("thead th").all_text_contents() == ["Layer", "0", "1", "2", "3", "4", "5"]
        assert ranks.locator("tbody tr").count() == 5 and ranks.locator(".heat").count() == 30
        assert page.get_by_role("group", name="Needles found").locator(".heat").count() == 12
        page.get_by_role("combobox", name="From").select_option("001-grow")
        page.get_by_role("combobox", name="To", exact=True).select_option("003-extend-512")
        page.get_by_role("columnheader", name="001-grow").wait_for()
        with page.expect_download() as loading:
            page.get_by_role("link", name="Report (one page)").click()
        assert loading.value.suggested_filename == f"{complete.id}.html"


def test_a_server_that_goes_away_is_said_and_its_return_is_noticed(run: Run, context: Any, open_page: Open) -> None:
    with served(run.folder.parent) as server:
        page = open_page(server, f"#/run/{run.id}")
        page.get_by_role("button", name="Rollback").wait_for()
    page.get_by_text("Connection lost").wait_for()
    assert page.get_by_role("button", name="Rollback").is_visible()


@pytest.mark.parametrize("kind", ["note", "step"])
def test_an_event_is_on_the_screen_within_a_fifth_of_a_second(
    server: Served, run: Run, open_page: Open, record_property: Callable[[str, object], None], kind: str
) -> None:
    page = open_page(server, f"#/run/{run.id}")
    page.locator("[data-seq]").wait_for()
    page.evaluate("""() => {
        window.seen = {};
        const note = () => { window.seen[document.querySelector("[data-seq]").dataset.seq] ??= Date.now(); };
        const watch = new MutationObserver(() => requestAnimationFrame(note));
        watch.observe(document.body, { subtree: true, attributes: true });
    }""")
    rows = []
    for number in range(60):
        event = {"kind": "note", "text": f"Note {number}."} if kind == "note" else step_event(number + 1)
        rows.append((run.journal.add(kind, event), time.time()))
        time.sleep(0.07)
    page.locator(f"[data-seq='{rows[-1][0]}']").wait_for()
    page.wait_for_timeout(300)
    seen = {int(seq): moment for seq, moment in page.evaluate("window.seen").items()}
    # Events that come in one picture are seen when the newest of them is.
    shown = [(seen[min(later)], moment) for seq, moment in rows if (later := [at for at in seen if at >= seq])]
    delays = [at - 1000 * moment for at, moment in shown]
    assert len(delays) == len(rows)
    p95 = quantiles(delays, n=20)[-1]
    record_property("journal_to_pixel_p95_ms", p95)
    assert p95 <= 200, f"median {quantiles(delays, n=2)[0]:.0f} ms, p95 {p95:.0f} ms, of {len(delays)} events"
