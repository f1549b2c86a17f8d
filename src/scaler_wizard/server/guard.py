"""Who may talk to the server: every request passes here first, whatever its route, method or protocol.

Refused: a Host that is not ours (DNS rebinding), an Origin or Sec-Fetch-Site that is not ours (forged requests,
sockets from other pages), anything without a session. Open to all are only the shell of the page, its assets, and the
exchange of a one-time token for a session. The token travels in the fragment of a link, which no browser sends.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import deque
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "scaler_session"
SESSION_SECONDS = 12 * 3600
ATTEMPTS, ATTEMPT_SECONDS = 10, 60.0
SMALL_BODY = 64 * 1024
UPLOAD = "/api/uploads"
SAFE = ("GET", "HEAD")
OPEN = (("GET", "/"), ("HEAD", "/"), ("POST", "/api/session"))
ASSETS = "/assets/"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self), payment=(), usb=()",
}


class Keys:
    """One-time tokens, sessions, and one token for programs; all of them live in memory and die with the server."""

    def __init__(self, program_token: str | None = None) -> None:
        self.program_token = program_token or secrets.token_urlsafe(32)
        self._once: set[str] = set()
        self._sessions: dict[str, float] = {}
        self._failed: deque[float] = deque(maxlen=ATTEMPTS)

    def link(self) -> str:
        """A fresh one-time token."""
        token = secrets.token_urlsafe(32)
        self._once.add(token)
        return token

    def exchange(self, token: str) -> str | None:
        """A session for an unspent token; None for any other, and for everybody while too many were wrong."""
        now = time.monotonic()
        if len(self._failed) == ATTEMPTS and now - self._failed[0] < ATTEMPT_SECONDS:
            return None
        found = next((known for known in self._once if _same(known, token)), None)
        if found is None:
            self._failed.append(now)
            return None
        self._once.discard(found)
        session = secrets.token_urlsafe(32)
        self._sessions[session] = now + SESSION_SECONDS
        return session

    def knows(self, session: str) -> bool:
        """Whether a session is one of ours and still valid."""
        now = time.monotonic()
        return any(_same(known, session) and now < until for known, until in self._sessions.items())

    def is_program(self, token: str) -> bool:
        """Whether a bearer token is the one for programs."""
        return _same(self.program_token, token)


def _same(known: str, given: str) -> bool:
    return hmac.compare_digest(known.encode(), given.encode())


class Guard:
    """Wraps the whole application; nothing is asked of the routes behind it."""

    def __init__(self, app: ASGIApp, *, keys: Keys, hosts: Sequence[str], secure: bool = False) -> None:
        self._app, self._keys = app, keys
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(f"{'https' if secure else 'http'}://{host}" for host in self._hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on with the page's security headers."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if refusal is not None:
            await _refuse(scope, receive, _guarded(send), *refusal)
            return
        await self._app(scope, _limited(scope, receive), _guarded(send))

    def refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        """Status, what is wrong, what to do; None lets the request through."""
        headers = Headers(scope=scope)
        socket = scope["type"] == "websocket"
        method = "SOCKET" if socket else scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 421, "this server does not answer under that name", "open the link that `scaler cockpit` printed"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.lower() not in self._origins:
            return 403, "the request comes from another page", "open the cockpit itself"
        if site not in (None, "same-origin") and not (method in SAFE and (site == "none" or scope["path"] == "/")):
            return 403, "the request comes from another page", "open the cockpit itself"
        if _is_open(method, scope["path"]) and (method in SAFE or origin is not None):
            return None
        return self._unknown(headers, method, origin)

    def _unknown(self, headers: Headers, method: str, origin: str | None) -> tuple[int, str, str] | None:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            known = self._keys.is_program(token.strip())
            return None if known else (401, "that token is not known", "use the token that `scaler cockpit` printed")
        if not self._keys.knows(_cookie(headers)):
            return 401, "there is no session", "open the link that `scaler cockpit` printed"
        if method not in SAFE and origin is None:
            return 403, "a request that changes something must say where it comes from", "send it from the cockpit"
        return None


def _is_open(method: str, path: str) -> bool:
    return (method, path) in OPEN or (method in SAFE and path.startswith(ASSETS))


def _cookie(headers: Headers) -> str:
    try:
        jar = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return guarded


def _limited(scope: Scope, receive: Receive) -> Receive:
    """Bodies above a small size end the request; uploads have a limit of their own."""
    if scope["type"] != "http" or scope["path"] == UPLOAD:
        return receive
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > SMALL_BODY else message

    return limited


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, wrong: str, cure: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4000 + status, "reason": wrong})
        return
    await JSONResponse({"wrong": wrong, "cure": cure}, status_code=status)(scope, receive, send)
