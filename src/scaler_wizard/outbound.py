"""One POST to an address that a person named: to no other machine, never into a private network by accident.

A name is resolved once, all its addresses are checked, and the connection goes to one of those that were checked: a
second answer of the name server comes too late. A redirect is an answer, never followed. Proxies of the environment
are not asked. Not covered: what the named machine itself does with the message.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from scaler_wizard.errors import ScalerError

SECONDS = 10.0
LARGEST_ANSWER = 16 * 1024
PLAIN = re.compile(r"[!-\[\]-~]{1,2000}")
"""Printable ASCII without space and backslash: what parsers of addresses agree on."""
OPEN_IPV6 = IPv6Network("2000::/3")
"""All that was ever given out to the open internet."""
IN_BETWEEN = (IPv6Network("2001::/32"), IPv6Network("2002::/16"))
"""Teredo and 6to4 carry an IPv4 address inside, which may be anything."""

Resolver = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Way:
    """A checked way to a machine."""

    host: str
    port: int
    address: str
    """Where the connection goes, whatever the name says later."""
    path: str
    secure: bool

    @property
    def host_header(self) -> str:
        """The name as HTTP wants it."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"


def look_up(host: str, port: int) -> list[str]:
    """All addresses of a name, by this machine's own resolver."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(where[4][0]) for where in found]


def find_way(url: str, *, allowed: Collection[str] = (), resolver: Resolver = look_up) -> Way:
    """Check an address. `allowed` are hosts that may be private and unencrypted, since the person named them.

    Raises ScalerError, which names the host and never the address: that may hold a secret.
    """
    parts = urlsplit(url) if PLAIN.fullmatch(url) else None
    try:
        port = parts.port if parts else None
    except ValueError:
        parts, port = None, None
    if parts is None or not parts.hostname or "@" in parts.netloc:
        raise ScalerError(
            "the address cannot be used", "give https://HOST/PATH, without a name or password before HOST"
        )
    host = parts.hostname.rstrip(".")
    named = host in {name.lower() for name in allowed}
    if parts.scheme != "https" and not (named and parts.scheme == "http"):
        raise ScalerError(f"{host}: only https is used", f"write https://, or allow {host} by name where it is yours")
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    if port != 443 and not named:
        raise ScalerError(f"{host}: port {port} is not the usual one", f"allow {host} by name where it is yours")
    addresses = resolver(host, port)
    if not addresses:
        raise ScalerError(f"{host}: no such machine", "check the name and the connection")
    if wrong := next((one for one in addresses if not _fit(one, named=named)), None):
        raise ScalerError(f"{host}: leads to {wrong}, inside a private network", f"allow {host} by name if it is yours")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Way(host, port, addresses[0], path, secure)


def _fit(address: str, *, named: bool) -> bool:
    """Whether a connection may go there; what is only for machines among themselves is refused even by name."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    if found.is_unspecified or found.is_multicast or found.is_link_local:
        return False
    return named or _open(found)


def _open(found: IPv4Address | IPv6Address) -> bool:
    if isinstance(found, IPv4Address):
        return found.is_global and not found.is_reserved
    return found in OPEN_IPV6 and found.is_global and not any(found in between for between in IN_BETWEEN)


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    allowed: Collection[str] = (),
    resolver: Resolver = look_up,
    seconds: float = SECONDS,
) -> None:
    """Send. Raises ScalerError where the way is not allowed, nobody answers, or the answer is not a 2xx."""
    way = find_way(url, allowed=allowed, resolver=resolver)
    connection = _Pinned(way, seconds)
    try:
        connection.request("POST", way.path, body, {"Host": way.host_header, "User-Agent": "scaler-wizard", **headers})
        answer = connection.getresponse()
        answer.read(LARGEST_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        raise ScalerError(f"{way.host}: did not take it ({type(error).__name__})", "check that it is up") from None
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        cure = "give the address that it leads to" if 300 <= answer.status < 400 else "check the address and its token"
        raise ScalerError(f"{way.host}: answered {answer.status}", cure)


class _Pinned(http.client.HTTPConnection):
    """Connects to the address that was checked."""

    def __init__(self, way: Way, seconds: float) -> None:
        super().__init__(way.host, way.port, timeout=seconds)
        self._way, self._seconds = way, seconds

    def connect(self) -> None:
        self.sock = socket.create_connection((self._way.address, self._way.port), self._seconds)
        if self._way.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._way.host)
