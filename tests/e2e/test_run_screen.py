"""The cockpit of one run in a real browser: gate, rollback, alerts, several browsers, a server that goes away."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import pytest

from cockpit_server import Served, served
from recorded_run import step_event
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


def test_a_gate_is_spoken_within_a_second_and_only_where_a_voice_was_asked_for(
    server: Served, run: Run, context: Any, open_page: Open
) -> None:
    # The browser's speech is replaced by a recorder: this machine's Chromium may have no voices.
    context.add_init_script("""
        window.spoken = [];
        class Said extends EventTarget { constructor(text) { super(); this.text = text; } }
        window.SpeechSynthesisUtterance = Said;
        const voice = { lang: "en-US", localService: true };
        const speech = { getVoices: () => [voice], addEventListener() {}, cancel() {}, speak(said) {
          window.spoken.push({ text: said.text, rate: said.rate, at: Date.now() });
          setTimeout(() => said.onend?.(), 300); } };
        Object.defineProperty(window, "speechSynthesis", { value: speech });
    """)
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


def test_a_server_that_goes_away_is_said_and_its_return_is_noticed(run: Run, context: Any, open_page: Open) -> None:
    with served(run.folder.parent) as server:
        page = open_page(server, f"#/run/{run.id}")
        page.get_by_role("button", name="Rollback").wait_for()
    page.get_by_text("Connection lost").wait_for()
    assert page.get_by_role("button", name="Rollback").is_visible()


def test_an_event_is_on_the_screen_within_a_fifth_of_a_second(
    server: Served, run: Run, open_page: Open, record_property: Callable[[str, object], None]
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
        rows.append((run.journal.add("note", {"kind": "note", "text": f"Note {number}."}), time.time()))
        time.sleep(0.07)
    page.get_by_text("Note 59.").first.wait_for()
    page.wait_for_timeout(300)
    seen = page.evaluate("window.seen")
    delays = [seen[str(seq)] - 1000 * moment for seq, moment in rows if str(seq) in seen]
    assert len(delays) > 40
    p95 = quantiles(delays, n=20)[-1]
    record_property("journal_to_pixel_p95_ms", p95)
    assert p95 <= 200, f"median {quantiles(delays, n=2)[0]:.0f} ms, p95 {p95:.0f} ms, of {len(delays)} events"
