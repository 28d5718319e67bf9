"""PROXY headers: read to their last octet and no further, however they are cut, and what they name is an address."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from relay.smtp.proxy_protocol import MAX_OCTETS as MOST
from relay.smtp.proxy_protocol import Header, NotProxied, read
from tests.fuzz.stream import Script, Stream

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TOKENS = (
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"PROXY UNKNOWN",
    b"192.0.2.1",
    b"2001:db8::1",
    b"\r\n",
    _SIGNATURE,
    b"::ffff:",
)
MAX_OCTETS = 320
_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n\x80-\xff]*)?|TCP([46]) ([0-9a-fA-F:.]+) ([0-9a-fA-F:.]+) (\d+) (\d+))\r\n", re.ASCII
)

#: What became of a header: the client, "nobody" or why it is none; and the octets that it has.
_Outcome = tuple[str, int]


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: a header of each kind, with something behind it."""
    addresses4 = bytes((192, 0, 2, 1, 192, 0, 2, 2, 0x9C, 0x40, 0x0A, 0x1B))
    addresses6 = bytes.fromhex("20010db8" + "00" * 11 + "01") * 2 + addresses4[8:]
    for header in (
        b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 2587\r\n",
        b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 40000 2587\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff:f 1 2\r\n",
        b"PROXY TCP4 192.0.2\0.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.2 65536 1\r\n",
        _SIGNATURE + b"\x21\x11\x00\x0c" + addresses4,
        _SIGNATURE + b"\x21\x11\x00\x0f" + addresses4 + b"\x04\x00\x00",
        _SIGNATURE + b"\x21\x21\x00\x24" + addresses6,
        _SIGNATURE + b"\x20\x00\x00\x00",
        _SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
        _SIGNATURE + b"\x21\x12\x00\x0c" + addresses4,
    ):
        yield b"\x00" + header + b"EHLO x\r\n"
        yield b"\x03\x00\x04\x0f" + header


def check(octets: bytes) -> None:
    """Raises AssertionError where the pieces matter, or something else is read than stands there."""
    script = Script(octets)
    sizes = script.sizes()
    stream = script.rest()
    whole = _outcome(stream, ())
    assert whole == _outcome(stream, (1,)) == _outcome(stream, sizes)
    if whole[0] != "none":
        assert whole[1] <= MOST
        if stream.startswith(b"P"):
            _check_line(stream[: whole[1]], whole[0])
        else:
            _check_binary(stream[: whole[1]], whole[0])
    else:
        # What is strictly one was not refused.
        line = _LINE.match(stream)
        assert line is None or line.end() > 107 or (line[1] is not None and not _sound(line)), stream


def _outcome(octets: bytes, sizes: Sequence[int]) -> _Outcome:
    stream = Stream(octets, sizes)
    try:
        header = read(stream.receive_most)
    except NotProxied:
        # How far it was read before it was refused depends on the pieces, within bounds.
        assert stream.position <= MOST
        return "none", 0
    assert isinstance(header, Header)
    if header.client is not None:
        assert str(ipaddress.ip_address(header.client))
    return header.client or "nobody", stream.position


def _check_line(header: bytes, client: str) -> None:
    assert header.count(b"\n") == 1
    match = _LINE.fullmatch(header)
    if match is None or match[1] is None:
        assert header.startswith(b"PROXY UNKNOWN")
        assert client == "nobody"
    else:
        assert _sound(match)
        assert ipaddress.ip_address(client) == ipaddress.ip_address(match[2].decode())


def _sound(match: re.Match[bytes]) -> bool:
    """Whether addresses and ports of a line are what they should be, by the standard library's judgement."""
    try:
        versions = {ipaddress.ip_address(match[number].decode()).version for number in (2, 3)}
    except ValueError:
        return False
    ports = [match[number] for number in (4, 5)]
    return (
        versions == {int(match[1])}
        and all(port == str(int(port)).encode() and int(port) < 65536 for port in ports if len(port) < 20)
        and all(len(port) < 20 for port in ports)
    )


def _check_binary(header: bytes, client: str) -> None:
    assert header.startswith(_SIGNATURE)
    command, family = header[12], header[13]
    assert command in (0x20, 0x21)
    assert len(header) == 16 + int.from_bytes(header[14:16], "big")
    if command == 0x21 and family in (0x11, 0x21):
        packed = header[16:20] if family == 0x11 else header[16:32]
        assert ipaddress.ip_address(client) == ipaddress.ip_address(packed)
    else:
        assert client == "nobody"
