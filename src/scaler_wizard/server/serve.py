"""Serve the cockpit: on loopback unless a certificate or a tunnel stands in front, behind one-time links always."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from scaler_wizard.errors import ScalerError
from scaler_wizard.server.app import make_app, make_feeds
from scaler_wizard.server.feed import Feeds
from scaler_wizard.server.guard import Keys

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Address:
    """Where to listen, and what protects it."""

    listen: str = "127.0.0.1"
    port: int = 8321
    certificate: Path | None = None
    key: Path | None = None
    tunnel: str | None = None
    """Name under which an encrypting tunnel is reached from outside."""

    @property
    def secure(self) -> bool:
        """Whether browsers reach it by https."""
        return self.certificate is not None or self.tunnel is not None

    def check(self) -> None:
        """Refuse to be reachable from other machines in the clear."""
        if self.listen not in LOOPBACK and self.certificate is None:
            raise ScalerError(
                f"--listen {self.listen}: other machines would reach the cockpit without encryption",
                "give --certificate and --key, or stay on 127.0.0.1 behind a tunnel: --tunnel NAME",
            )
        if (self.certificate is None) != (self.key is None):
            raise ScalerError("--certificate and --key: one without the other", "give both files")
        for file in (self.certificate, self.key):
            if file is not None and not file.is_file():
                raise ScalerError(f"{file}: no such file", "check the path")

    def hosts(self) -> tuple[str, ...]:
        """Host headers that are ours."""
        if self.tunnel is not None:
            return (self.tunnel,)
        names = ["127.0.0.1", "localhost", "[::1]"] if self.listen in LOOPBACK else [self._name()]
        return tuple(f"{name}:{self.port}" for name in names)

    def _name(self) -> str:
        try:
            listened = ip_address(self.listen)
        except ValueError:
            return self.listen
        if listened.is_unspecified:
            return socket.getfqdn()
        return f"[{listened}]" if listened.version == 6 else str(listened)

    def url(self) -> str:
        """What to open."""
        return f"{'https' if self.secure else 'http'}://{self.hosts()[0]}"


def serve(
    runs: Path, address: Address, *, models: Path | None, program_token: str | None, say: Callable[[str], None]
) -> None:
    """Serve until interrupted; runs go on without it. Raises ScalerError for an unsafe address."""
    address.check()
    keys = Keys(program_token)
    feeds = make_feeds()
    app = make_app(runs, keys=keys, hosts=address.hosts(), secure=address.secure, models=models, feeds=feeds)
    listening = _bind(address)
    say(f"The cockpit, for one browser, once:\n\n    {address.url()}/#token={keys.link()}\n")
    say(f"For programs: Authorization: Bearer {keys.program_token}" if program_token is None else "")
    if sys.stdin.isatty():
        say("Enter gives another link, Ctrl-C ends the cockpit; runs go on without it.")
        threading.Thread(target=_more_links, args=(keys, address, say), daemon=True).start()
    config = uvicorn.Config(
        app,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        ws_max_size=4096,
    )
    Server(config, feeds).run(sockets=[listening])


class Server(uvicorn.Server):
    """Ends the event streams before it waits for what is under way: they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, feeds: Feeds) -> None:
        super().__init__(config)
        self._feeds = feeds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop in good order."""
        self._feeds.end()
        await super().shutdown(sockets)


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.listen else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.listen, address.port))
    except OSError as error:
        raise ScalerError(
            f"port {address.port} cannot be used ({error.strerror})", "choose another: --port N"
        ) from None
    return listening


def _more_links(keys: Keys, address: Address, say: Callable[[str], None]) -> None:
    for _ in sys.stdin:
        say(f"    {address.url()}/#token={keys.link()}")
