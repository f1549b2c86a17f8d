"""The whole main job in a real browser, by keyboard alone, on a real run: from the wizard to the export."""

from __future__ import annotations

import http.server
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cockpit_server import Served, served
from scaler_wizard.run import Run, in_use

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
PATIENCE = 300
SECRET = "a-topic-that-nobody-else-knows"
TABS = 150


class Keyboard:
    """Reaches everything by Tab and the keys of the thing itself, as a person without a mouse does."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def to(self, name: str) -> None:
        """Tab to the thing with this accessible name."""
        for _ in range(TABS):
            if name in self._page.evaluate(_NAME):
                return
            self._page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not reach {name!r}")

    def press(self, name: str, key: str = "Enter") -> None:
        """Tab there and press a key."""
        self.to(name)
        self._page.keyboard.press(key)

    def write(self, name: str, text: str) -> None:
        """Tab to a field and type."""
        self.to(name)
        self._page.keyboard.type(text)


_NAME = """() => { const one = document.activeElement;
    if (!one?.matches('a, button, input, select, textarea, summary')) return '';
    const label = one.labels?.[0]?.innerText ?? ''; return [one.getAttribute('aria-label'), label, one.innerText]
    .filter(Boolean).join(' ') }"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A webhook of the user's own, on this machine; every gate is told at once."""
    got: list[str] = []

    class Take(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = tmp_path / "webhook.yaml"
    file.write_text(
        f"form: ntfy\nurl: http://127.0.0.1:{server.server_port}/{SECRET}\nallow: [127.0.0.1]\npatience: 0\n"
    )
    file.chmod(0o600)
    monkeypatch.setenv("SCALER_WEBHOOK", str(file))
    yield got
    server.shutdown()
    server.server_close()


def test_by_keyboard_alone_a_model_grows_its_breaker_trips_and_it_is_rolled_back_undone_and_exported(
    tmp_path: Path, open_page: Callable[..., Any], told: list[str]
) -> None:
    runs = tmp_path / "runs"
    with served(runs) as server:
        page = open_page(server)
        keys = Keyboard(page)
        keys.press("New run")
        page.locator(".numbers").wait_for()
        keys.press("Balanced", "Space")
        keys.press("For experts")
        keys.write("Tokens to learn from", "40K")
        keys.write("Learning rate", "5")  # so high that the loss explodes
        page.keyboard.press("Tab")
        page.locator(".phases li").nth(4).wait_for()
        keys.write("Sign with your name", "Ada")
        page.locator("button:has-text('Sign and start'):enabled").wait_for()
        keys.press("Sign and start")
        page.locator(".rollback").wait_for()
        (run,) = [Run(path) for path in runs.iterdir() if (path / "run.db").exists()]
        for slug in ("000-baseline", "001-grow", "002-extend-256"):
            _approve(page, keys, slug)
            _until(lambda slug=slug: run.current == slug)
        _until(lambda: run.last("telegram") is not None)
        trip = run.last("telegram")
        assert trip is not None and trip.data["hard"] and trip.data["cause"] in ("divergence", "slope", "nonfinite")
        page.get_by_role("alert").get_by_text(trip.data["sentence"]).wait_for()
        _until(lambda: run.status == "stopped" or run.open_gate() is not None)  # it offers the last good step, if any
        assert run.current == "002-extend-256"
        page.evaluate("document.getElementById('main').focus()")
        keys.press("Rollback")
        page.locator(".preview li").first.wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the button beside the safe one
        _until(lambda: run.current == "001-grow")
        page.get_by_text("Rollback complete").first.wait_for()
        keys.press("Undo rollback")
        _until(lambda: run.current == "002-extend-256")
        with page.expect_download() as loading:
            keys.press("Model")
        _holds_the_grown_model(Path(loading.value.path()))
        assert {row.data["how"] for row in run.journal.events(kinds=("decision",))} == {"cockpit"}
        assert told == [row.data["sentence"] for row in run.journal.events(kinds=("gate", "telegram"))]
        holds = [file for file in run.folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
        assert holds == []


def test_a_run_is_made_watched_answered_rolled_back_resumed_and_completed_by_keyboard_alone(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    runs = tmp_path / "runs"
    with served(runs) as server:
        page = open_page(server)
        keys = Keyboard(page)
        keys.press("New run")
        page.locator(".numbers").wait_for()
        keys.press("Quick look", "Space")
        keys.to("Window")
        page.keyboard.press("ArrowRight")  # 4x
        page.keyboard.press("ArrowLeft")  # and back to 2x
        page.locator(".phases li").nth(2).wait_for()
        keys.write("Sign with your name", "Ada")
        page.locator("button:has-text('Sign and start'):enabled").wait_for()
        keys.press("Sign and start")
        page.locator(".rollback").wait_for()
        (run,) = [Run(path) for path in runs.iterdir() if (path / "run.db").exists()]
        for slug in ("000-baseline", "001-extend-256"):
            _approve(page, keys, slug)
            _until(lambda slug=slug: run.current == slug)
        _gate(page, "002-export").wait_for(timeout=1000 * PATIENCE)
        page.evaluate("document.getElementById('main').focus()")
        keys.press("Rollback")
        page.locator(".preview li").first.wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the button beside the safe one
        _until(lambda: run.current == "000-baseline")
        page.get_by_text("Rollback complete").first.wait_for()
        keys.press("Undo rollback")
        _until(lambda: run.current == "001-extend-256")
        _until(lambda: not in_use(run.folder))
        keys.press("Resume")
        _approve(page, keys, "002-export")
        _until(lambda: run.status == "completed")
        page.get_by_text("Completed").first.wait_for()
        with page.expect_download() as loading:
            keys.press("Model")
        _holds_the_grown_model(Path(loading.value.path()), "README.md")
        assert {row.data["how"] for row in run.journal.events(kinds=("decision",))} == {"cockpit"}


def _gate(page: Any, slug: str) -> Any:
    return page.locator(f".gate[data-phase='{slug}'] .main:enabled")


def _approve(page: Any, keys: Keyboard, slug: str) -> None:
    _gate(page, slug).wait_for(timeout=1000 * PATIENCE)
    page.evaluate("document.getElementById('main').focus()")
    keys.press("Approve")


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def _holds_the_grown_model(file: Path, *more: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as archive:
        names = {Path(name).name for name in archive.getnames()}
        config = next(archive.extractfile(one).read() for one in archive if one.name.endswith("/config.json"))  # type: ignore[union-attr]
    assert {"config.json", "model.safetensors", "tokenizer.json", *more} <= names
    assert b'"max_position_embeddings": 256' in config


def test_ending_the_server_and_every_browser_changes_nothing_for_a_run(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    runs = tmp_path / "runs"
    with served(runs) as server:
        run = _started(server, runs)
        page = open_page(server, f"#/run/{run.id}")
        page.locator(".rollback").wait_for()
        _until(lambda: in_use(run.folder))
        page.close()
    before = run.journal.newest().seq
    _until(lambda: run.open_gate() is not None and run.journal.newest().seq > before)
    assert in_use(run.folder)
    with served(runs) as server:
        key = {"key": "abort-it-now-please", "action": "Pause"}
        assert server.ask("POST", f"/api/runs/{run.id}/commands", key).status == 200
        _until(lambda: not in_use(run.folder))
    assert run.status == "paused"


def _started(server: Served, runs: Path) -> Run:
    wish = {"model": "embedded", "context": "2x", "train": "nothing"}
    seen = server.ask("POST", "/api/contract", wish).json["textHash"]
    ask = {"key": "one-run-and-no-more", "wish": wish, "sign": "Ada", "textHash": seen}
    assert server.ask("POST", "/api/runs", ask).status == 201
    (run,) = [Run(path) for path in runs.iterdir() if (path / "run.db").exists()]
    return run
