"""The wizard in a real browser: every control changes the plan that is shown, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chromium import show

from cockpit_server import Served

pytestmark = pytest.mark.e2e
Open = Callable[..., Any]
TEXT = "In the beginning was the word, and it was measured. " * 60


def fact(page: Any, name: str) -> str:
    """A number of the plan that belongs to the newest wish."""
    page.locator(".plan[aria-busy=false]").wait_for()
    return str(page.locator(".numbers div", has_text=name).first.locator("dd").text_content())


def test_every_slider_changes_the_plan_and_the_recipe_that_is_shown(server: Served, open_page: Open) -> None:
    page = open_page(server, "#/new")
    page.locator(".numbers").wait_for()
    assert fact(page, "Window") == "128 → 256" and fact(page, "Parameters").startswith("820K → 1.24M")
    page.get_by_role("slider", name="Window").press("ArrowRight")
    page.locator(".numbers dd", has_text="128 → 512").wait_for()
    page.get_by_role("slider", name="Parameters").press("ArrowRight")
    page.locator(".numbers dd", has_text="1.31M").wait_for()
    page.get_by_text("Show the recipe").click()
    recipe = page.locator(".plan pre")
    assert {"model: embedded", "parameters: 1.6x", "context: 4x"} <= set(str(recipe.text_content()).splitlines())
    page.get_by_role("slider", name="Memory it may use").press("ArrowLeft")
    recipe.get_by_text("memory_share: 0.85").wait_for()
    for name in ("Time", "Memory while growing", "Memory in use later", "Disk", "Tokens to learn from"):
        assert fact(page, name) not in ("", "unknown")


def test_the_rank_can_be_set_only_where_adapters_are_trained_and_says_so(server: Served, open_page: Open) -> None:
    page = open_page(server, "#/new")
    rank = page.get_by_role("slider", name="LoRA rank")
    page.locator(".numbers").wait_for()
    assert rank.is_disabled()
    reason = page.locator(f"[id='{rank.get_attribute('aria-describedby')}']").text_content()
    assert reason == "Only adapters have a rank: choose “Adapters (LoRA)” above."
    page.get_by_role("radio", name="Adapters (LoRA)").check()
    assert rank.is_enabled()
    page.get_by_text("Show the recipe").click()
    rank.press("ArrowRight")
    page.locator(".plan pre").get_by_text("lora_rank:").wait_for()


def test_what_past_runs_say_is_shown_as_a_band_or_as_unknown(server: Served, open_page: Open) -> None:
    page = open_page(server, "#/new")
    page.locator(".foreseen .quiet[lang=en]").wait_for()
    said = str(page.locator(".foreseen b").text_content())
    asked = server.ask("POST", "/api/expected", {"model": "embedded", "parameters": "1.5x", "context": "2x"}).json
    assert asked["middle"] is not None and f"{asked['middle']:+.3f}".rstrip("0") in said
    assert asked["basis"] == page.locator(".foreseen .quiet[lang=en]").text_content()


def test_a_dropped_text_shows_what_is_kept_of_it_and_is_planned_with(server: Served, open_page: Open) -> None:
    page = open_page(server, "#/new")
    page.evaluate(
        """text => { const data = new DataTransfer();
        data.items.add(new File([text], "notes.txt", { type: "text/plain" }));
        const drop = new DragEvent("drop", { bubbles: true, dataTransfer: data });
        document.querySelector(".drop").dispatchEvent(drop); }""",
        TEXT,
    )
    page.get_by_text("What is kept of notes.txt").wait_for()
    page.get_by_text("Held-out text is kept apart").wait_for()
    assert page.get_by_role("radio", name="notes.txt").is_checked()
    page.get_by_text("Show the recipe").click()
    page.locator(".plan pre").get_by_text("data: upload-").wait_for()


def test_a_model_that_the_hub_does_not_give_is_refused_in_two_lines(server: Served, open_page: Open) -> None:
    page = open_page(server, "#/new")
    page.get_by_role("textbox", name="Or a model of the Hugging Face hub").fill("no-such-org-here/no-such-model")
    page.get_by_role("button", name="Fetch").click()
    page.locator(".step .trouble").get_by_text("the hub does not give it").wait_for(timeout=60_000)
    assert page.locator(".step .trouble p").count() == 2
    assert page.get_by_role("radio", name="embedded").is_checked()


def test_a_wish_in_words_sets_the_sliders_and_gives_its_reasons(server: Served, open_page: Open) -> None:
    page = open_page(server, "#/new")
    page.locator(".numbers").wait_for()
    page.get_by_role("textbox", name="Say what you want").fill("longer documents on this laptop")
    page.get_by_role("button", name="Advise me").click()
    page.get_by_text("Set by the recipe").wait_for()
    assert page.locator(".wish li").count() > 0
    show(page, "#/")
