"""The cockpit's server on a real socket, in a thread, and a client that can send any header it likes."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from scaler_wizard.server.app import make_app, make_feeds
from scaler_wizard.server.guard import COOKIE, Keys
from scaler_wizard.server.serve import Server


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Served:
    """A running server."""

    port: int
    keys: Keys
    runs: Path
    session: str = ""
    stop: Callable[[], None] = lambda: None

    @property
    def host(self) -> str:
        """Its name with its port."""
        return f"127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        """Where its pages come from."""
        return f"http://{self.host}"

    def sign_in(self) -> None:
        """Exchange a one-time token, as the page does."""
        answer = self.raw("POST", "/api/session", {"Origin": self.origin}, {"token": self.keys.link()})
        assert answer.status == 204, answer
        self.session = answer.headers["set-cookie"].split(";")[0].partition("=")[2]

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Answer:
        """As the page asks, with its session."""
        own = {"Origin": self.origin, "Sec-Fetch-Site": "same-origin", "Cookie": f"{COOKIE}={self.session}"}
        return self.raw(method, path, {**own, **headers}, body)

    def raw(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Answer:
        """Exactly these headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            usual = {"Host": self.host, "Content-Type": "application/json", "Content-Length": str(len(sent))}
            for name, value in {**usual, **headers}.items():
                connection.putheader(name, value)
            connection.endheaders(sent)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] = {}) -> Iterator[Iterator[dict[str, Any]]]:
        """Server-sent events, as {"id": ..., "event": ..., "data": ...}."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        own = {"Host": self.host, "Cookie": f"{COOKIE}={self.session}", "Sec-Fetch-Site": "same-origin"}
        connection.request("GET", path, headers={**own, **headers})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        try:
            yield _events(answer)
        finally:
            connection.close()


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    while line := answer.readline().decode():
        name, colon, value = line.rstrip("\n").partition(": ")
        if colon and name:
            event[name] = value
        elif not line.strip() and "data" in event:
            yield event | {"data": json.loads(event["data"], parse_constant=_no_json)}
            event = {}


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")  # Python alone would take it


@contextmanager
def served(runs: Path, *, models: Path | None = None, like: Served | None = None) -> Iterator[Served]:
    """Serve `runs` on a free port until the end of the block; `like` an earlier server: on its port, with its keys."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", like.port if like else 0))
    port = int(listening.getsockname()[1])
    keys = like.keys if like else Keys("program-token-of-the-tests")
    feeds, hosts = make_feeds(), (f"127.0.0.1:{port}", f"localhost:{port}")
    app = make_app(runs, keys=keys, hosts=hosts, models=models, feeds=feeds)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
    server = Server(config, feeds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    found = Served(port, keys, runs, stop=lambda: setattr(server, "should_exit", True))
    found.sign_in()
    try:
        yield found
    finally:
        server.should_exit = True
        thread.join(5)
