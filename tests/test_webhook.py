"""A person who does not look is told elsewhere; nobody can make that message go where it was not meant to."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from commands import called, scaler
from recorded_run import a_plan
from scaler_wizard import outbound
from scaler_wizard.errors import ScalerError
from scaler_wizard.events import Telegram
from scaler_wizard.gate import Verdict
from scaler_wizard.outbound import find_way, post
from scaler_wizard.supervisor import Gate
from scaler_wizard.webhook import Message, Messenger, Webhook, load_webhook, send, written

OURS = ("127.0.0.1",)


@dataclass
class Listener:
    """A real receiver on this machine."""

    port: int = 0
    status: int = 200
    onward: str | None = None
    got: list[tuple[str, dict[str, str], str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/topic"

    def wait(self, count: int, seconds: float = 5.0) -> None:
        """Until so many messages came."""
        end = time.monotonic() + seconds
        while len(self.got) < count:
            assert time.monotonic() < end, self.got
            time.sleep(0.01)


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    opened: list[http.server.ThreadingHTTPServer] = []

    def start(**how: Any) -> Listener:
        found = Listener(**how)

        class Take(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                found.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(302 if found.onward else found.status)
                if found.onward:
                    self.send_header("Location", found.onward)
                self.end_headers()

            def do_GET(self) -> None:
                found.got.append((self.path, {}, ""))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        found.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened.append(server)
        return found

    yield start
    for server in opened:
        server.shutdown()
        server.server_close()


# -- what is said ------------------------------------------------------------------------------------------------------


def hook(listener: Listener, **more: Any) -> Webhook:
    return Webhook.model_validate({"form": "ntfy", "url": listener.url, "allow": OURS, **more})


def test_ntfy_gets_the_sentence_and_a_link(listen: Callable[..., Listener]) -> None:
    there = listen()
    send(hook(there), Message("demo-1", "Window 128 -> 256 done; approve?", urgent=True))
    ((path, headers, body),) = there.got
    assert (path, body) == ("/topic", "Window 128 -> 256 done; approve?")
    assert headers["click"] == "http://127.0.0.1:8321/#/run/demo-1" and headers["priority"] == "high"
    assert headers["host"] == f"127.0.0.1:{there.port}"


def test_slack_gets_a_text_that_cannot_become_markup(listen: Callable[..., Listener]) -> None:
    there = listen()
    send(hook(there, form="slack"), Message("demo-1", "growth 820K -> 1.2M <!channel> & more"))
    text = json.loads(there.got[0][2])["text"]
    assert text == "growth 820K -&gt; 1.2M &lt;!channel&gt; &amp; more\n<http://127.0.0.1:8321/#/run/demo-1|demo-1>"


def test_a_telegram_bot_writes_to_the_chat(listen: Callable[..., Listener]) -> None:
    there = listen()
    send(hook(there, form="telegram", chat=-100123), Message("demo-1", "The loss is nan at step 7.", urgent=True))
    said = json.loads(there.got[0][2])
    assert said["chat_id"] == -100123 and said["disable_notification"] is False
    assert said["text"].splitlines() == ["The loss is nan at step 7.", "http://127.0.0.1:8321/#/run/demo-1"]


@pytest.mark.parametrize("form", ["ntfy", "slack", "telegram"])
def test_a_message_holds_no_way_to_decide(form: Any) -> None:
    chosen = Webhook(form=form, url="https://ntfy.sh/x", chat="1" if form == "telegram" else None)
    body, headers = written(chosen, Message("demo-1", "Ready?"))
    said = (body.decode() + json.dumps(headers)).lower()
    assert not [
        word for word in ("actions", "callback", "reply_markup", "button", "token", "/commands") if word in said
    ]


# -- when it is said ---------------------------------------------------------------------------------------------------


def gate(tmp_path: Path, action: Any = "pass", sentence: str = "growth done; approve?") -> Gate:
    verdict = Verdict(action=action, sentence=sentence)
    return Gate("g", a_plan(tmp_path / "runs").phases[0], verdict, {}, "hash", time.monotonic() + 120)


def test_a_gate_that_nobody_answers_is_told_after_a_while_and_once(
    listen: Callable[..., Listener], tmp_path: Path
) -> None:
    there, said = listen(), []
    messenger = Messenger(hook(there, patience=0.2), "demo-1", say=said.append)
    messenger.tell("gate", gate(tmp_path))
    assert there.got == []
    there.wait(1)
    messenger.tell("decision", "approve")
    messenger.close()
    assert [body for _, _, body in there.got] == ["growth done; approve?"] and said == []


def test_a_gate_that_is_answered_in_time_is_not_told(listen: Callable[..., Listener], tmp_path: Path) -> None:
    there = listen()
    messenger = Messenger(hook(there, patience=0.3), "demo-1", say=print)
    messenger.tell("gate", gate(tmp_path))
    messenger.tell("decision", "approve")
    time.sleep(0.5)
    messenger.close()
    assert there.got == []


def test_a_tripped_breaker_a_phase_not_kept_and_the_end_are_told_at_once(
    listen: Callable[..., Listener], tmp_path: Path
) -> None:
    there = listen()
    messenger = Messenger(hook(there, patience=600), "demo-1", say=print)
    trip = {"cause": "divergence", "step": 7, "value": 9.0, "limit": 4.0}
    messenger.tell("telegram", Telegram(**trip, sentence="The loss rose to 9; the limit is 4."))  # type: ignore[arg-type]
    messenger.tell("telegram", Telegram(**trip, sentence="Only a warning.", hard=False))  # type: ignore[arg-type]
    messenger.tell("gate", gate(tmp_path, "rollback", "growth is not kept"))
    messenger.tell("gate", gate(tmp_path, sentence="export done; the run is complete"))
    messenger.tell("decision", "approve")
    messenger.tell("committed", a_plan(tmp_path / "runs").phases[-1])
    messenger.close()
    assert [body for _, _, body in there.got] == [
        "The loss rose to 9; the limit is 4.",
        "growth is not kept",
        "export done; the run is complete",
    ]


def test_a_receiver_that_is_down_is_tried_again_and_then_said_without_its_address(
    listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler_wizard.webhook.PAUSES", (0.0, 0.0, 0.0))
    there, said = listen(status=503), []
    messenger = Messenger(hook(there), "demo-1", say=said.append)
    trip = Telegram(cause="stall", step=0, value=1.0, limit=1.0, sentence="Nothing was said for long.")
    messenger.tell("telegram", trip)
    messenger.close()
    assert len(there.got) == 3
    assert said == ["The webhook was not reached: 127.0.0.1: answered 503"]


# -- how it is set up --------------------------------------------------------------------------------------------------


def written_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "webhook.yaml"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = written_file(tmp_path, "form: ntfy\nurl: https://ntfy.sh/x\n", 0o644)
    with pytest.raises(ScalerError, match="others on this machine can read it") as refused:
        load_webhook(file)
    assert refused.value.cure == f"chmod 600 {file}"
    assert load_webhook(tmp_path / "none.yaml") is None


@pytest.mark.parametrize(
    "text", ["form: telegram\nurl: https://a.example/botSECRET\n", "form: ntfy\nurl: x\nchat: 1\n"]
)
def test_a_form_without_what_it_needs_is_refused_and_the_secret_is_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(ScalerError, match="chat") as refused:
        load_webhook(written_file(tmp_path, text))
    assert "SECRET" not in str(refused.value)


def test_the_verb_shows_what_is_set_up_without_the_secret_and_sends_a_test(
    listen: Callable[..., Listener], tmp_path: Path
) -> None:
    there = listen()
    text = f"form: ntfy\nurl: http://127.0.0.1:{there.port}/SECRET-TOPIC\nallow: [127.0.0.1]\n"
    done = scaler("webhook", "--test", SCALER_WEBHOOK=str(written_file(tmp_path, text)))
    assert done.returncode == 0, done.stderr
    assert "SECRET" not in done.stdout + done.stderr and f"127.0.0.1:{there.port}" in done.stdout
    assert there.got[0][0] == "/SECRET-TOPIC"
    nothing = called("webhook", SCALER_WEBHOOK=str(tmp_path / "none.yaml"))
    assert nothing.returncode == 2 and "no webhook is set up" in nothing.stderr


# -- attacks -----------------------------------------------------------------------------------------------------------

# Addresses that lead inside, however they are written; the name server is this machine's own.
INSIDE = [
    "https://127.0.0.1/x",
    "https://2130706433/x",
    "https://0x7f000001/x",
    "https://0177.0.0.1/x",
    "https://127.1/x",
    "https://0.0.0.0/x",
    "https://localhost/x",
    "https://localhost./x",
    "https://[::1]/x",
    "https://[::ffff:127.0.0.1]/x",
    "https://[::127.0.0.1]/x",
    "https://[64:ff9b::7f00:1]/x",
    "https://[2002:7f00:1::1]/x",
    "https://10.0.0.1/x",
    "https://172.16.0.1/x",
    "https://192.168.1.1/x",
    "https://100.64.0.1/x",
    "https://169.254.169.254/latest/meta-data",
    "https://224.0.0.1/x",
    "https://[fd00::1]/x",
    "https://[fe80::1]/x",
]
# Addresses that are not what they seem, or not spoken safely; the name server would give a public address.
MISLEADING = [
    "http://hook.example/x",
    "file:///etc/passwd",
    "ftp://hook.example/x",
    "gopher://hook.example/x",
    "https://hook.example:22/x",
    "https://hook.example@127.0.0.1/x",
    "https://hook.example\\@127.0.0.1/x",
    "https://hook.example/x\r\nHost: 127.0.0.1",
    "https://hook.example/x y",
    "https://hook.example:99999999/x",
    "//hook.example/x",
    "https:///x",
]


def public(host: str, port: int) -> list[str]:
    return ["93.184.215.14"]


@pytest.mark.parametrize("url", INSIDE)
def test_no_way_leads_into_a_private_network(url: str) -> None:
    with pytest.raises(ScalerError, match=r"private network|no such machine"):
        find_way(url)


@pytest.mark.parametrize("url", MISLEADING)
def test_an_address_that_misleads_is_refused(url: str) -> None:
    with pytest.raises(ScalerError) as refused:
        find_way(url, resolver=public)
    assert "/x" not in str(refused.value) or "HOST" in refused.value.cure


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(ScalerError, match=r"leads to 10\.0\.0\.1"):
        find_way("https://hook.example/x", resolver=lambda host, port: ["93.184.215.14", "10.0.0.1"])


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"])
def test_what_is_for_machines_among_themselves_is_refused_even_by_name(address: str) -> None:
    with pytest.raises(ScalerError, match="private network"):
        find_way("http://mine.lan/x", allowed=["mine.lan"], resolver=lambda host, port: [address])


def test_a_host_of_ones_own_may_be_private_plain_and_elsewhere_and_only_that_host() -> None:
    home = lambda host, port: ["192.168.1.7"]  # noqa: E731
    assert find_way("http://mine.lan:8080/x", allowed=["mine.lan"], resolver=home).address == "192.168.1.7"
    with pytest.raises(ScalerError):
        find_way("http://mine.lan.example:8080/x", allowed=["mine.lan"], resolver=home)
    with pytest.raises(ScalerError):
        find_way("http://example:8080/mine.lan", allowed=["mine.lan"], resolver=home)


class Rebinding:
    """A name server that first gives a public address, and then one inside."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return ["93.184.215.14" if self.asked == 1 else "127.0.0.1"]


def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes where connections go, and lets none through."""
    found: list[str] = []

    def connect(where: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        found.append(where[0])
        raise OSError("not here")

    monkeypatch.setattr(socket, "create_connection", connect)
    return found


def test_a_name_that_changes_its_mind_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    connections, resolver = dialled(monkeypatch), Rebinding()
    with pytest.raises(ScalerError):
        post("https://rebind.example/x", b"", {}, resolver=resolver)
    assert connections == ["93.184.215.14"] and resolver.asked == 1


def test_a_redirect_is_never_followed(listen: Callable[..., Listener]) -> None:
    victim = listen()
    there = listen(onward=victim.url)
    with pytest.raises(ScalerError, match="answered 302"):
        post(there.url, b"x", {}, allowed=OURS)
    assert victim.got == []
    with pytest.raises(ScalerError, match="private network"):
        post("https://127.0.0.1/x", b"x", {})


# -- each guard is needed: without it, its attacks get through ---------------------------------------------------------


def test_without_the_look_at_addresses_the_ways_inside_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "_fit", lambda address, named: True)
    reached = [url for url in INSIDE if outbound.look_up(find_way(url).host, 443)]
    assert len(reached) == len(INSIDE)


def test_without_the_look_at_the_text_misleading_addresses_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anything:
        def fullmatch(self, text: str) -> bool:
            return True

    monkeypatch.setattr(outbound, "PLAIN", Anything())
    assert find_way("https://hook.example/x\\y", resolver=public).path == "/x\\y"


def test_without_the_pinned_address_the_second_answer_would_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound._Pinned, "connect", HTTPConnection.connect)
    connections = dialled(monkeypatch)
    with pytest.raises(ScalerError):
        post("https://rebind.example/x", b"", {}, resolver=Rebinding())
    assert connections == ["rebind.example"]


def test_a_client_that_follows_would_reach_the_victim(listen: Callable[..., Listener]) -> None:
    victim = listen()
    there = listen(onward=victim.url)
    with urllib.request.urlopen(urllib.request.Request(there.url, data=b"x", method="POST"), timeout=5) as answer:
        assert answer.status == 200
    assert len(victim.got) == 1
