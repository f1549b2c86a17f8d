"""Attacks from another page in a real Chromium that has a session: all are stopped, and nothing changes."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cockpit_server import Served
from scaler_wizard.run import Run

pytestmark = pytest.mark.e2e

# Each is JavaScript of a foreign page; `at` is the cockpit's address, `run` a run's id. It answers what it got hold of.
ATTACKS = {
    "reads the list of runs": "fetch(at + '/api/runs', { credentials: 'include' }).then(a => a.text())",
    "reads it without cors": "fetch(at + '/api/runs', { mode: 'no-cors', credentials: 'include' }).then(a => a.text())",
    "posts a command": """fetch(at + `/api/runs/${run}/commands`, { method: 'POST', credentials: 'include',
        body: order })""",
    "posts a command as plain text": """fetch(at + `/api/runs/${run}/commands`, { method: 'POST', mode: 'no-cors',
        credentials: 'include', headers: { 'content-type': 'text/plain' }, body: order }).then(a => a.text())""",
    "sends a beacon": "Promise.resolve(navigator.sendBeacon(at + `/api/runs/${run}/commands`, order)).then(() => '')",
    "submits a form": """new Promise(done => { const frame = document.createElement('iframe'); frame.name = 'hole';
        document.body.append(frame); const form = document.createElement('form'); form.method = 'POST';
        form.enctype = 'text/plain'; form.target = 'hole'; form.action = at + `/api/runs/${run}/commands`;
        const field = document.createElement('input'); field.name = order.slice(0, -1) + ', "x": "'; field.value = '"}';
        form.append(field); document.body.append(form); form.submit(); setTimeout(() => done(''), 600); })""",
    "listens to the events": """new Promise(done => { const source = new EventSource(at + `/api/runs/${run}/events`,
        { withCredentials: true }); source.onmessage = m => done(m.data); source.onerror = () => done(''); })""",
    "opens a socket": """new Promise(done => { const socket = new WebSocket(at.replace('http', 'ws') +
        `/api/runs/${run}/socket`); socket.onmessage = m => done(m.data); socket.onclose = () => done(''); })""",
    "frames the page to catch clicks": """new Promise(done => { const frame = document.createElement('iframe');
        frame.src = at + '/'; frame.onload = () => { let got = '';
        try { got = frame.contentDocument?.body.innerText ?? '' } catch (error) { got = '' } done(got) };
        document.body.append(frame); setTimeout(() => done(''), 3000); })""",
    "includes the interface as a script": """new Promise(done => { const script = document.createElement('script');
        script.src = at + '/api/runs'; script.onload = () => done('loaded'); script.onerror = () => done('');
        document.body.append(script); })""",
    "opens a window and looks into it": """new Promise(done => { const other = window.open(at + '/');
        setTimeout(() => { let got = ''; try { got = other?.document.body.innerText ?? '' } catch (error) { got = '' }
        done(got); }, 800); })""",
    "starts a run": "fetch(at + '/api/runs', { method: 'POST', mode: 'no-cors', credentials: 'include', body: order })",
    "uploads a text": """fetch(at + '/api/uploads?name=x.txt', { method: 'POST', mode: 'no-cors',
        credentials: 'include', body: 'word '.repeat(1000) }).then(a => a.text())""",
    "deletes with a method of its own": "fetch(at + '/api/uploads/x', { method: 'DELETE', credentials: 'include' })",
    "begins a session with guessed tokens": """Promise.all([...Array(12).keys()].map(n => fetch(at + '/api/session',
        { method: 'POST', mode: 'no-cors', credentials: 'include', body: JSON.stringify({ token: 'guess' + n }) })
        .then(a => a.text()))).then(all => all.join(''))""",
    "asks for a new link": "fetch(at + '/api/link', { method: 'POST', credentials: 'include' }).then(a => a.text())",
}


@pytest.fixture(scope="session")
def foreign() -> Iterator[int]:
    """A server that belongs to somebody else; its page is empty."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>Win a prize</title><body></body>")

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def state(run: Run) -> tuple[Any, ...]:
    """What an attack could have changed."""
    files = sorted(str(path) for path in run.folder.parent.rglob("*") if "run.db" not in path.name)
    return run.journal.newest().seq, run.current, run.journal.get("request"), tuple(files)


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1", "localhost"])
def test_no_foreign_page_reads_or_changes_anything(
    server: Served, run: Run, context: Any, open_page: Callable[..., Any], foreign: int, name: str
) -> None:
    open_page(server)  # this browser has a session
    page, before, got = context.new_page(), state(run), {}
    page.goto(f"http://{name}:{foreign}/")
    order = '{"key": "attack-attack-attack", "action": "Rollback", "confirmed": true}'
    for attack, code in ATTACKS.items():
        told = page.evaluate(
            "async ([at, run, order]) => { try { return String(await (" + code + ") ?? '') } catch (e) { return '' } }",
            [server.origin, run.id, order],
        )
        got[attack] = "" if told.startswith("[object") else told
    assert {attack: told for attack, told in got.items() if told} == {}
    assert state(run) == before


def test_a_name_bound_to_this_machine_gets_nothing(server: Served, run: Run, context: Any) -> None:
    page, before = context.new_page(), state(run)
    answer = page.goto(f"http://rebind.example:{server.port}/#token={server.keys.link()}")
    assert answer.status == 421 and page.locator("#root").count() == 0
    told = page.evaluate("fetch('/api/runs').then(answer => answer.status)")
    assert told == 421 and state(run) == before


def test_a_spent_link_opens_nothing(server: Served, run: Run, browser: Any) -> None:
    link = f"{server.origin}/#token={server.keys.link()}"
    for words in ("Runs", "Open the cockpit from its link"):
        other = browser.new_context(locale="en")
        page = other.new_page()
        page.goto(link)
        page.get_by_role("heading", level=1, name=words).wait_for()
        assert "token" not in page.url
        other.close()


def test_the_page_runs_no_code_that_it_was_not_built_from(
    server: Served, run: Run, open_page: Callable[..., Any]
) -> None:
    run.journal.add("note", {"kind": "note", "text": '<img src=x onerror="window.hacked=1"><script>hacked=1</script>'})
    page = open_page(server, f"#/run/{run.id}")
    page.get_by_text("<img src=x").first.wait_for()
    page.evaluate("""() => {
        const script = document.createElement('script'); script.textContent = 'window.hacked = 2';
        document.body.append(script);
        document.body.setAttribute('onclick', 'window.hacked = 3'); document.body.click(); }""")
    assert page.evaluate("window.hacked ?? null") is None
