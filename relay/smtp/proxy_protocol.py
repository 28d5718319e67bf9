"""The PROXY protocol, versions 1 and 2: how a load balancer names the client that it forwards.

Source: "The PROXY protocol", versions 1 & 2, as published with HAProxy (2020/03/05). Only proxies that the operator
trusts are asked for a header; then it comes first of all, before the banner and before any TLS handshake, and nothing
is read beyond its last octet: what follows belongs to the dialogue, or to the handshake.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from relay.core.frozen import frozen

#: Octets of a header, as far as we go along: the addresses and a generous measure of TLVs. Version 2 could say 64 KiB.
MAX_OCTETS: Final = 4096
#: Section 2.1: the longest line of version 1, CRLF included.
MAX_LINE_OCTETS: Final = 107

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_OCTETS: Final = 16
_LINE_START: Final = b"PROXY "
_SHORTEST_LINE: Final = len(b"PROXY UNKNOWN\r\n")

_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _INET, _INET6, _UNIX = range(4)
_STREAM: Final = 1
#: Octets of both addresses and ports, by address family (section 2.2).
_ADDRESS_OCTETS: Final = {_UNSPECIFIED: 0, _INET: 12, _INET6: 36, _UNIX: 216}


class NotProxied(Exception):
    """What arrived is no PROXY header, or ended before it was one. The text says why; nothing in it is the client's."""


@frozen
class Header:
    """What a proxy said. `client`: the address of the client, IPv4 or IPv6 in the usual notation. None: the connection
    is the proxy's own (LOCAL, as for a health check), or its client is unknown; then there is no other address."""

    client: str | None


@frozen
class Missing:
    """The header is not complete. At least so many more octets belong to it; to read more would be to read too much."""

    octets: int


def parse(octets: bytes) -> Header | Missing:
    """The header that `octets` are, or begin to be; they must not go beyond its end. Raises NotProxied."""
    # An empty beginning is taken for that of the shorter one.
    if octets.startswith(_LINE_START[: len(octets)]):
        return _parse_line(octets)
    if octets.startswith(_SIGNATURE[: len(octets)]):
        return _parse_binary(octets)
    raise NotProxied("neither version of the PROXY protocol")


def read(receive: Callable[[int], bytes]) -> Header:
    """Reads one header.

    `receive` gives at most so many octets as it is asked for, none at the end of the stream; what it raises passes
    through. Raises NotProxied.
    """
    octets = b""
    while True:
        found = parse(octets)
        if isinstance(found, Header):
            return found
        received = receive(found.octets)
        if not received:
            raise NotProxied("cut off" if octets else "nothing")
        octets += received


# Version 1: a line of text


def _parse_line(octets: bytes) -> Header | Missing:
    if len(octets) < _SHORTEST_LINE:
        return Missing(_SHORTEST_LINE - len(octets))
    if not octets.endswith(b"\r\n"):
        if b"\n" in octets or b"\r" in octets[:-1]:
            raise NotProxied("a line that does not end in CRLF")
        if len(octets) >= MAX_LINE_OCTETS:
            raise NotProxied("a line too long")
        return Missing(1 if octets.endswith(b"\r") else min(2, MAX_LINE_OCTETS - len(octets)))
    try:
        words = octets[:-2].decode("ascii").split(" ")
    except UnicodeDecodeError as error:
        raise NotProxied("a line that is not ASCII") from error
    if words[1] == "UNKNOWN":
        return Header(None)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise NotProxied("a line of another form")
    family = socket.AF_INET if words[1] == "TCP4" else socket.AF_INET6
    client, destination = (_canonical(family, word) for word in words[2:4])
    if client is None or destination is None or not all(_is_port(word) for word in words[4:]):
        raise NotProxied("addresses or ports of another form")
    return Header(client)


def _canonical(family: socket.AddressFamily, text: str) -> str | None:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):  # a NUL in it is the latter
        return None


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5 and int(text) < 65536 and str(int(text)) == text


# Version 2: binary


def _parse_binary(octets: bytes) -> Header | Missing:
    if len(octets) < _FIXED_OCTETS:
        return Missing(_FIXED_OCTETS - len(octets))
    version, command = octets[12] >> 4, octets[12] & 15
    family, transport = octets[13] >> 4, octets[13] & 15
    length = int.from_bytes(octets[14:16], "big")
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise NotProxied("a version or command unknown to version 2")
    if _FIXED_OCTETS + length > MAX_OCTETS:
        raise NotProxied("a header too long")
    if command == _PROXY and (family not in _ADDRESS_OCTETS or transport > 2 or length < _ADDRESS_OCTETS[family]):
        raise NotProxied("a family unknown to version 2, or too short for its addresses")
    if len(octets) < _FIXED_OCTETS + length:
        return Missing(_FIXED_OCTETS + length - len(octets))
    # Datagrams, and addresses of another kind, can't be those of a client of SMTP; the TLVs behind the
    # addresses say nothing that we need.
    if command == _LOCAL or transport != _STREAM:
        return Header(None)
    if family == _INET:
        return Header(socket.inet_ntop(socket.AF_INET, octets[16:20]))
    if family == _INET6:
        return Header(socket.inet_ntop(socket.AF_INET6, octets[16:32]))
    return Header(None)
