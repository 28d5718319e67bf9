"""Fetching what a URL of a customer names, without reaching into our own network (contract sections 3 and 9).

The name is resolved once, every address is looked at, and the connection goes to the address that was looked at.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

import gevent

from relay.core.address import normalise_domain

#: Seconds for the whole of it.
FETCH_SECONDS: Final = 10.0
_PORTS: Final = {"http": 80, "https": 443}
_PRIVATE_SUFFIXES: Final = (".internal", ".local", ".localhost", ".cluster.local")
#: Networks that are globally routable by their form, and lead to addresses that may not be.
_TUNNELS: Final = tuple(map(ipaddress.ip_network, ("2002::/16", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32")))
_READ: Final = 65_536
#: Characters of a URL.
_LONGEST_URL: Final = 8_000
#: Among them the backslash, which some programs take for a slash.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_IN_TARGET: Final = "/?%:@!$&'()*+,;=~-._[]"


class RefusedUrlError(Exception):
    """A URL that is never fetched, whatever it would answer."""


class UnavailableError(Exception):
    """There was no whole answer. It may come later."""


def fetch(url: str, most: int, write: Callable[[bytes], None]) -> None:
    """Gives the content of a GET to `write`, at most `most` octets. Raises RefusedUrlError, UnavailableError, and what
    `write` raises.

    A redirect is an error, like every status but 200: it could lead anywhere.
    """
    parts = checked(url)
    with gevent.Timeout(FETCH_SECONDS) as limit:
        try:
            _get(parts, most, write)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnavailableError(type(error).__name__) from None
        except gevent.Timeout as late:
            if late is not limit:
                raise
            raise UnavailableError("TimeoutError") from None


def checked(url: str) -> SplitResult:
    """The parts of a URL that may be asked for, as far as its text tells. Raises RefusedUrlError."""
    url = url.strip()
    if len(url) > _LONGEST_URL or _CONTROLS.search(url):
        raise RefusedUrlError("not a URL")
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise RefusedUrlError("user information")
        port = parts.port
        host = parts.hostname or ""
        if host and not host.isascii():
            host = normalise_domain(host)
            # Its form in ASCII is what is resolved, asked for in the request, and named in the certificate.
            parts = parts._replace(netloc=host if port is None else f"{host}:{port}")
    except ValueError:
        raise RefusedUrlError("not a URL") from None
    host = host.rstrip(".").lower()
    if parts.scheme not in _PORTS or not host:
        raise RefusedUrlError("neither http nor https")
    if port is not None and port < 1024 and port not in _PORTS.values():
        raise RefusedUrlError("a reserved port")
    if host == "localhost" or host.endswith(_PRIVATE_SUFFIXES):
        raise RefusedUrlError("a private name")
    return parts


def routable(address: str) -> bool:
    """Whether an address may be connected to: globally routable, by whatever way it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return routable(str(found.ipv4_mapped))
        if any(found in network for network in _TUNNELS):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def address_of(host: str, port: int) -> str:
    """The address to connect to. Raises RefusedUrlError when one of the name's is not routable, OSError for no name."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(map(routable, found)):
        raise RefusedUrlError("an address that is not globally routable")
    return found[0]


def _get(parts: SplitResult, most: int, write: Callable[[bytes], None]) -> None:
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    connection = http.client.HTTPConnection(host, port, timeout=FETCH_SECONDS)
    sock = socket.create_connection((address_of(host, port), port), timeout=FETCH_SECONDS)
    try:
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = sock
        # As browsers do: what may not stand in a request is encoded, what is encoded stays.
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_TARGET)
        fields = {"Host": parts.netloc, "User-Agent": "opensend-relay", "Accept": "*/*"}
        connection.request("GET", target, headers=fields)
        response = connection.getresponse()
        if response.status != 200:
            raise UnavailableError(f"HTTP{response.status}")
        left = most
        while octets := response.read(_READ):
            left -= len(octets)
            if left < 0:
                raise UnavailableError("TooLarge")
            write(octets)
    finally:
        sock.close()
