"""The cockpit of one run in a real browser: gate, rollback, alerts, several browsers, a server that goes away."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import pytest
from chromium import show
from safetensors.numpy import load_file, save_file

from cockpit_server import Served, served
from recorded_run import make_run, open_gate, step_event, stop_training
from scaler_wizard.contract import Contract
from scaler_wizard.models import resolve
from scaler_wizard.run import Run, locked
from scaler_wizard.server.guard import Keys

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


@pytest.mark.alone
def test_a_tripped_breaker_is_told_at_once_and_critically(server: Served, run: Run, open_page: Open) -> None:
    page = open_page(server, f"#/run/{run.id}")
    sentence = "The loss is nan at step 7; training was stopped."
    telegram = {"kind": "telegram", "cause": "nonfinite", "step": 7, "value": float("nan"), "limit": None}
    run.journal.add("step", step_event(7, loss=float("nan")))
    run.journal.add("telegram", {**telegram, "sentence": sentence, "hard": True})
    page.get_by_role("alert").get_by_text(sentence).wait_for(timeout=2000)
    assert page.get_by_role("heading", level=1).text_content() == sentence


def test_where_the_breaker_stopped_a_person_goes_on_anyway_and_the_answer_names_what_was_seen(
    run: Run, server: Served, open_page: Open
) -> None:
    gate = stop_training(run)
    with locked(run):  # the process that asks is there and waits
        run.journal.set("status", "running")
        page = open_page(server, f"#/run/{run.id}")
        panel = page.locator(f".gate[data-phase='{gate['phase']}']")
        panel.get_by_text("Perplexity rises 30% per evaluation").wait_for()
        panel.locator(".quiet", has_text="only warns").wait_for()  # what going on means is said before
        panel.get_by_role("button", name="Go on anyway").click()
        page.get_by_text("Training goes on; the breaker only warns.").first.wait_for()
    answer = run.decision("gate-stop")
    assert answer is not None
    told = {key: answer.data[key] for key in ("action", "how", "evidence_hash")}
    assert told == {"action": "continue", "how": "cockpit", "evidence_hash": gate["evidence_hash"]}


def test_only_where_the_breaker_stopped_can_one_go_on_anyway(server: Served, run: Run, open_page: Open) -> None:
    page = open_page(server, f"#/run/{run.id}")
    page.locator(".gate .main").wait_for()
    assert page.get_by_role("button", name="Go on anyway").count() == 0


def test_before_a_merge_each_layer_shows_how_far_the_models_moved(tmp_path: Path, open_page: Open) -> None:
    other = _moved(tmp_path / "other")
    models = [{"model": "grown", "weight": 0.5}, {"model": str(other), "weight": 0.5}]
    wish = {"parameters": None, "heal": False, "merge": {"method": "linear", "models": models}}
    run = make_run(tmp_path / "runs", name="merging", committed=1, gate=False, **wish)
    with served(run.folder.parent) as server:
        page = open_page(server, f"#/run/{run.id}")
        table = page.get_by_role("group", name="Fusion preview")
        table.wait_for()
        layers = table.locator("tbody th").all_text_contents()
        seen = server.ask("GET", f"/api/runs/{run.id}/fusion").json
        assert layers == ["outside", "0", "1", "2", "3"]
        moved = {(cell["layer"], cell["part"]): cell["change"] for cell in seen["cells"]}
        most = max(moved, key=lambda at: moved[at])
        assert most == (2, "attention") and moved[most] > 0.05
        cell = table.locator("tbody tr").nth(3).locator("td").first
        assert f"({100 * moved[most]:.1f}%)" in str(cell.text_content())
        assert "heat-4" in str(cell.get_attribute("class"))
        page.get_by_text("how far grown, other moved").wait_for()


def _moved(folder: Path) -> Path:
    """The embedded model with the attention of one block changed."""
    source = resolve("embedded").folder
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    noise = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if name.startswith("model.layers.2.self_attn."):
            tensors[name] = tensor + (0.3 * tensor.std() * noise.standard_normal(tensor.shape)).astype(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


# Every tone that the page plays: its pitches, from the first to the last.
TONES = """
    window.tones = [];
    const play = AudioParam.prototype.setValueCurveAtTime;
    AudioParam.prototype.setValueCurveAtTime = function (pitches, at, seconds) {
      window.tones.push({ pitches: [...pitches], seconds });
      return play.call(this, pitches, at, seconds); };
"""


def test_the_loss_curve_can_be_listened_to_and_a_high_loss_is_a_high_tone(
    tmp_path: Path, context: Any, open_page: Open
) -> None:
    run = make_run(tmp_path / "runs", committed=5, gate=False)
    context.add_init_script(TONES)
    with served(run.folder.parent) as server:
        page = open_page(server, f"#/run/{run.id}")
        button = page.get_by_role("button", name="Listen")
        button.click()
        assert button.is_disabled()  # one at a time
        (tone,) = page.evaluate("window.tones")
        rows = run.journal.events(kinds=("step",))
        losses = [row.data["loss"] for row in rows if row.data["arm"] == "grown"]
        assert tone["seconds"] == 3 and len(tone["pitches"]) == len(losses)
        order = sorted(range(len(losses)), key=lambda at: losses[at])
        pitches = [tone["pitches"][at] for at in order]
        assert pitches == sorted(pitches) and pitches[0] == 220 and pitches[-1] == 880
        page.wait_for_timeout(3500)
        assert button.is_enabled()


# The browser's speech is replaced by a recorder: this machine's Chromium may have no voices.
RECORDER = """
    window.spoken = [];
    class Said extends EventTarget { constructor(text) { super(); this.text = text; } }
    window.SpeechSynthesisUtterance = Said;
    const voices = ["en-US", "pt-BR", "es-ES", "fr-FR", "de-DE", "zh-CN"].map(lang => ({ lang, localService: true }));
    const speech = { getVoices: () => voices, addEventListener() {}, cancel() {}, speak(said) {
      if (said.volume !== 0) // silence wakes a voice
        window.spoken.push({ text: said.text, rate: said.rate, lang: said.voice.lang, at: Date.now() });
      setTimeout(() => said.onend?.(), 300); } };
    Object.defineProperty(window, "speechSynthesis", { value: speech });
"""


@pytest.mark.alone
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


REFUSING = """
    window.woken = [];
    let touched = false;
    for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => (touched = true), { capture: true });
    const speak = speechSynthesis.speak;
    speechSynthesis.speak = said => {
      window.woken.push(touched);
      if (touched) speak(said);
      else said.onerror({ error: "not-allowed" });
    };
"""


@pytest.mark.parametrize("touch", [lambda page: page.keyboard.press("Shift+a"), lambda page: page.mouse.click(5, 300)])
def test_a_voice_that_may_not_speak_yet_is_woken_by_the_first_touch(
    server: Served, run: Run, context: Any, open_page: Open, touch: Any
) -> None:
    context.add_init_script(RECORDER + REFUSING + f"localStorage.setItem('scaler-wizard', '{_settings('en')}');")
    page = open_page(server, f"#/run/{run.id}")
    assert page.evaluate("window.woken") == [False]
    for _ in range(2):
        touch(page)
    assert page.evaluate("window.woken") == [False, True]


def _settings(language: str) -> str:
    return json.dumps({"language": language, "voice": True})


@pytest.mark.alone
def test_a_gate_is_spoken_within_a_second_and_only_where_a_voice_was_asked_for(
    server: Served, run: Run, context: Any, open_page: Open
) -> None:
    context.add_init_script(RECORDER)
    page = open_page(server, f"#/run/{run.id}")
    slug = run.last("phase_started").data["slug"]  # type: ignore[union-attr]

    def ask(words: str, **verdict: Any) -> float:
        open_gate(run, slug, words, **verdict)
        return time.time()

    ask("Growth done: short loss +0.01; approve?")
    page.get_by_role("alert").get_by_text("short loss +0.01").wait_for()
    assert page.evaluate("window.spoken") == []
    page.get_by_role("button", name="Dismiss").click()
    page.locator("summary", has_text="Settings").click()
    page.get_by_role("switch", name="Voice Speaks").check()
    sent = ask("Growth done: short loss +0.02; approve?")
    page.get_by_role("alert").get_by_text("short loss +0.02").wait_for()
    (spoken,) = page.evaluate("window.spoken")
    assert "short loss" in spoken["text"] and spoken["at"] / 1000 - sent < 1.0
    page.locator(".subtitle-none").wait_for(state="attached")
    sent = ask("Growth done: short loss +0.03; approve?", action="pass")  # within every limit, and yet a person answers
    page.get_by_role("status").get_by_text("short loss +0.03").wait_for()
    spoken = page.evaluate("window.spoken")[1]
    assert spoken["at"] / 1000 - sent < 1.0
    page.locator(".subtitle-none").wait_for(state="attached")
    page.get_by_role("switch", name="Screen reader").check()
    ask("Growth done: short loss +0.04; approve?")
    page.get_by_text("short loss +0.04").first.wait_for()
    assert len(page.evaluate("window.spoken")) == 2


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


def test_by_voice_a_run_is_paused_and_only_by_the_whole_phrase(
    server: Served, run: Run, context: Any, open_page: Open
) -> None:
    context.add_init_script(EARS)
    with locked(run):
        page = open_page(server, f"#/run/{run.id}")
        page.locator("summary", has_text="Settings").click()
        page.get_by_role("switch", name="Voice commands").check()
        page.get_by_text("Say “pause”").wait_for()
        page.evaluate("hear('do not pause')")
        page.wait_for_timeout(300)
        assert not run.journal.get("request")
        page.evaluate("hear('Pause!')")
        page.get_by_text("Asked to pause; what is done is kept.").first.wait_for()
        assert run.journal.get("request") == "pause"


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


def test_a_server_that_goes_away_is_said_and_its_return_is_noticed(run: Run, open_page: Open) -> None:
    with served(run.folder.parent) as server:
        page = open_page(server, f"#/run/{run.id}")
        page.get_by_role("button", name="Rollback").wait_for()
    page.get_by_text("Connection lost").wait_for()
    assert page.get_by_role("button", name="Rollback").is_visible()
    run.journal.add("note", {"kind": "note", "text": "Written while nobody served."})
    with served(run.folder.parent, like=server):
        page.get_by_text("Connection lost").wait_for(state="detached")
        page.get_by_text("Written while nobody served.").first.wait_for()


def test_a_server_that_knows_the_session_no_more_leads_to_its_link(run: Run, open_page: Open) -> None:
    with served(run.folder.parent) as server:
        page = open_page(server, f"#/run/{run.id}")
    page.get_by_text("Connection lost").wait_for()
    with served(run.folder.parent, like=replace(server, keys=Keys())):
        page.get_by_role("heading", level=1, name="Open the cockpit from its link").wait_for()


def test_a_refused_stream_is_opened_again_where_it_stopped(server: Served, run: Run, open_page: Open) -> None:
    page = open_page(server)
    page.route("**/events*", lambda route: route.fulfill(status=502))
    show(page, f"#/run/{run.id}")
    page.get_by_text("Connection lost").wait_for()
    page.unroute("**/events*")
    page.get_by_text("Connection lost").wait_for(state="detached")
    page.locator(".cockpit[aria-busy=false]").wait_for()


def test_a_gate_warns_before_it_pauses_and_gives_more_time(run: Run, server: Served, open_page: Open) -> None:
    window = Contract().response_window_sec
    with locked(run):
        run.set_status("running")
        asked = datetime.now(UTC)
        run.journal.add("resumed", {})
        page = open_page(server, f"#/run/{run.id}")
        page.get_by_role("timer").wait_for()
        assert page.locator(".soon").count() == 0
        page.clock.set_fixed_time(asked + timedelta(seconds=window - 21))
        page.wait_for_timeout(1100)
        assert page.locator(".soon").count() == 0
        page.clock.set_fixed_time(asked + timedelta(seconds=window - 19))
        page.locator(".soon", has_text="Pauses in").wait_for()
        page.locator(".gate [role=status]", has_text="Answer soon, or the run pauses.").wait_for(state="attached")
        page.get_by_role("button", name="More time").click()
        page.locator(".soon").wait_for(state="detached")
        page.get_by_role("timer", name="").get_by_text("Pauses in 2 min").wait_for()


def test_the_keyboard_comes_back_from_a_dialog_and_from_the_settings(server: Served, run: Run, open_page: Open) -> None:
    page = open_page(server, f"#/run/{run.id}")
    for name in ("Rollback", "Abort"):
        page.get_by_role("button", name=name).first.focus()
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")
        assert name in page.evaluate("document.activeElement.innerText")
    page.locator("summary", has_text="Settings").focus()
    page.keyboard.press("Enter")
    page.get_by_role("switch", name="Screen reader").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    page.get_by_role("switch", name="Screen reader").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.innerText") == "Settings"


@pytest.mark.alone
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
