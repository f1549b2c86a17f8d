"""Who may talk to the cockpit's server: attacks on every route, and that none of them changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import BaseRoute
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from cockpit_server import Served, served
from recorded_run import make_run
from scaler_wizard.errors import ScalerError
from scaler_wizard.server.app import routes
from scaler_wizard.server.guard import ATTEMPTS, COOKIE, HEADERS, Keys
from scaler_wizard.server.serve import Address

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    runs = tmp_path_factory.mktemp("guarded") / "runs"
    make_run(runs, committed=2)
    with served(runs) as found:
        yield found


def state(server: Served) -> bytes:
    """Everything on disk that a request could have changed."""
    folder = next(path for path in server.runs.iterdir() if not path.name.startswith("."))
    log = server.ask("GET", f"/api/runs/{folder.name}").json["sequence"]
    names = sorted(str(path.relative_to(server.runs)) for path in server.runs.rglob("*") if "run.db" not in path.name)
    return f"{log} {(folder / 'current').read_text()} {names}".encode()


def run_id(server: Served) -> str:
    return next(path.name for path in server.runs.iterdir() if not path.name.startswith("."))


def all_paths(server: Served) -> list[str]:
    """Every route of the application itself, so that a new one cannot escape."""
    found: list[BaseRoute] = list(routes(server.runs, keys=server.keys).routes)
    paths = [str(route.path) for route in found]  # type: ignore[attr-defined]
    assert len(paths) > 15
    filled = (path.replace("{run_id}", run_id(server)).replace("{wanted}", "upload-0") for path in paths)
    return sorted({path.replace("{name}", "x.js") for path in filled})


def test_every_route_refuses_every_method_without_a_session(server: Served) -> None:
    before = state(server)
    for path in all_paths(server):
        for method in METHODS:
            answer = server.raw(method, path, {"Origin": server.origin, "Sec-Fetch-Site": "same-origin"}, {})
            opened = path == "/" or path.startswith("/assets/") or (path, method) == ("/api/session", "POST")
            if opened and (method in ("GET", "HEAD") or path == "/api/session"):
                assert answer.status in (200, 404, 422), (method, path)
            else:
                assert answer.status == 401, (method, path, answer)
    assert state(server) == before


def test_every_answer_carries_the_security_headers(server: Served) -> None:
    for answer in (server.ask("GET", "/"), server.ask("GET", "/api/runs"), server.raw("GET", "/api/runs", {})):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example:{port}", ""])
def test_a_foreign_host_name_is_refused_even_with_a_session(server: Served, host: str) -> None:
    answer = server.ask("GET", "/api/runs", headers={"Host": host.format(port=server.port)})
    assert answer.status in (400, 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_a_forged_request_from_another_page_is_refused(server: Served, headers: dict[str, str]) -> None:
    before = state(server)
    command = {"key": "k" * 16, "action": "Rollback", "confirmed": True}
    assert server.ask("POST", f"/api/runs/{run_id(server)}/commands", command, headers).status == 403
    assert state(server) == before


def test_a_change_without_an_origin_is_refused(server: Served) -> None:
    cookie = {"Cookie": f"{COOKIE}={server.session}"}
    assert server.raw("POST", "/api/link", cookie).status == 403


def test_a_method_cannot_be_disguised(server: Served) -> None:
    before = state(server)
    disguise = {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST"}
    assert server.ask("GET", f"/api/runs/{run_id(server)}/commands?_method=POST", headers=disguise).status == 405
    assert state(server) == before


def test_a_link_works_once_and_its_session_cannot_be_read_by_scripts(server: Served) -> None:
    token = server.keys.link()
    first = server.raw("POST", "/api/session", {"Origin": server.origin}, {"token": token})
    again = server.raw("POST", "/api/session", {"Origin": server.origin}, {"token": token})
    assert (first.status, again.status) == (204, 401)
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie


def test_a_session_cannot_be_begun_from_another_page(server: Served) -> None:
    token = server.keys.link()
    for headers in ({"Origin": "http://evil.example"}, {}, {"Origin": server.origin, "Sec-Fetch-Site": "cross-site"}):
        assert server.raw("POST", "/api/session", headers, {"token": token}).status in (401, 403)
    assert server.raw("POST", "/api/session", {"Origin": server.origin}, {"token": token}).status == 204


def test_guessing_tokens_ends_after_a_few_attempts_even_for_the_right_one() -> None:
    keys = Keys()
    assert all(keys.exchange(f"guess {number}") is None for number in range(ATTEMPTS))
    assert keys.exchange(keys.link()) is None


@pytest.mark.parametrize("cookie", ["", "x", f"{COOKIE}=", f"{COOKIE}=guess", f"{COOKIE}=a; {COOKIE}=b", "\x01=;;;="])
def test_a_wrong_cookie_is_no_session(server: Served, cookie: str) -> None:
    assert server.raw("GET", "/api/runs", {"Cookie": cookie}).status in (400, 401)


def test_a_program_needs_the_whole_token(server: Served) -> None:
    def status(words: str) -> int:
        return server.raw("GET", "/metrics", {"Authorization": words}).status

    token = server.keys.program_token
    assert status(f"Bearer {token}") == 200
    assert {status(f"Bearer {token[:-1]}"), status("Bearer "), status(f"Basic {token}"), status("x")} == {401}


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/..%2f..%2fetc",
        "/api/runs/%252e%252e%252fetc",
        "/api/runs/..;/etc/passwd",
        "/api/runs/%00",
        "/api/runs/C:%5Cwindows",
        "/api/runs/.uploads",
        "/assets/..%2findex.html",
        "/assets/%2e%2e/%2e%2e/server/guard.py",
        "/assets/..%5c..%5cserver",
        "//etc/passwd",
    ],
)
def test_no_path_of_a_client_leaves_its_place(server: Served, path: str) -> None:
    answer = server.ask("GET", path)
    assert answer.status in (400, 404), (path, answer.status)
    assert b"root:" not in answer.body and b"import" not in answer.body


def test_the_event_stream_needs_a_session(server: Served) -> None:
    assert server.raw("GET", f"/api/runs/{run_id(server)}/events", {}).status == 401


def socket_refused(server: Served, headers: dict[str, str], origin: str | None) -> bool:
    address = f"ws://{server.host}/api/runs/{run_id(server)}/socket"
    try:
        with connect(address, additional_headers=headers, origin=origin) as connection:  # type: ignore[arg-type]
            connection.recv(timeout=5)
    except (InvalidStatus, ConnectionClosed):
        return True
    return False


def test_a_socket_needs_a_session_and_our_own_origin(server: Served) -> None:
    cookie = {"Cookie": f"{COOKIE}={server.session}"}
    assert socket_refused(server, {}, server.origin)
    assert socket_refused(server, cookie, "http://evil.example")
    assert socket_refused(server, cookie, None)
    assert socket_refused(server, {**cookie, "Sec-Fetch-Site": "cross-site"}, server.origin)
    assert not socket_refused(server, cookie, server.origin)


def test_a_body_too_large_is_not_read(server: Served) -> None:
    def status(spaces: int) -> int:
        return server.ask("POST", "/api/plan", b'{"model": "embedded", "context": "2x"' + b" " * spaces + b"}").status

    assert (status(1000), status(200_000)) == (200, 400)


@pytest.mark.parametrize("listen", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_other_machines_reach_it_only_over_tls(listen: str, tmp_path: Path) -> None:
    with pytest.raises(ScalerError, match="without encryption"):
        Address(listen=listen).check()
    with pytest.raises(ScalerError, match="one without the other"):
        Address(listen=listen, certificate=tmp_path).check()


def test_behind_a_tunnel_only_the_tunnels_name_is_answered() -> None:
    address = Address(tunnel="cockpit.example.org")
    address.check()
    assert address.hosts() == ("cockpit.example.org",) and address.url() == "https://cockpit.example.org"
