"""Both versions of the PROXY protocol, cut anywhere, with anything behind: what is read is the header and no more."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.smtp.proxy_protocol import MAX_OCTETS, Header, Missing, NotProxied, parse, read

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def binary(command: int = 0x21, family: int = 0x11, payload: bytes = b"") -> bytes:
    return SIGNATURE + bytes([command, family]) + len(payload).to_bytes(2, "big") + payload


def inet(client: str, port: int = 40000) -> bytes:
    packed = ipaddress.ip_address(client).packed
    return packed + bytes(len(packed)) + port.to_bytes(2, "big") + (2587).to_bytes(2, "big")


class Stream:
    """Octets that arrive in pieces of the sizes given, over and over."""

    def __init__(self, octets: bytes, sizes: list[int]) -> None:
        self.left = octets
        self._sizes = sizes
        self._turn = 0

    def receive(self, most: int) -> bytes:
        assert most > 0
        size = min(most, self._sizes[self._turn % len(self._sizes)])
        self._turn += 1
        taken, self.left = self.left[:size], self.left[size:]
        return taken


addresses4 = st.ip_addresses(v=4).map(str)
addresses6 = st.ip_addresses(v=6).map(lambda address: socket.inet_ntop(socket.AF_INET6, address.packed))
ports = st.integers(0, 65535)
tlvs = st.binary(max_size=600)


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, str | None]:
    """A valid header, and the client that it names."""
    kind = draw(st.sampled_from(("tcp4", "tcp6", "unknown", "inet", "inet6", "local", "unspecified", "unix")))
    port = draw(ports)
    if kind in ("tcp4", "tcp6"):
        client, destination = (draw(addresses4 if kind == "tcp4" else addresses6) for _ in range(2))
        return f"PROXY {kind.upper()} {client} {destination} {port} {draw(ports)}\r\n".encode(), client
    if kind == "unknown":
        rest = draw(st.text("abcdef0123456789:. ", max_size=80))
        return b"PROXY UNKNOWN" + (b" " + rest.encode() if rest else b"") + b"\r\n", None
    if kind == "inet":
        client = draw(addresses4)
        return binary(0x21, 0x11, inet(client, port) + draw(tlvs)), client
    if kind == "inet6":
        client = draw(addresses6)
        return binary(0x21, 0x21, inet(client, port) + draw(tlvs)), client
    if kind == "local":
        return binary(0x20, draw(st.integers(0, 255)), draw(tlvs)), None
    if kind == "unspecified":
        return binary(0x21, 0x00, draw(tlvs)), None
    return binary(0x21, 0x31, bytes(216) + draw(tlvs)), None


@given(headers(), st.binary(max_size=50), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_wherever_it_is_cut_the_header_is_read_and_nothing_behind_it(
    header: tuple[bytes, str | None], behind: bytes, sizes: list[int]
) -> None:
    octets, client = header
    stream = Stream(octets + behind, sizes)
    assert read(stream.receive) == Header(client)
    assert stream.left == behind


@given(headers(), st.data())
def test_a_header_that_ends_early_is_none(header: tuple[bytes, str | None], data: st.DataObject) -> None:
    octets, _ = header
    stream = Stream(octets[: data.draw(st.integers(0, len(octets) - 1))], [7])
    with pytest.raises(NotProxied):
        read(stream.receive)


@given(headers())
def test_what_is_missing_never_goes_beyond_the_header(header: tuple[bytes, str | None]) -> None:
    octets, _ = header
    for length in range(len(octets)):
        missing = parse(octets[:length])
        assert isinstance(missing, Missing)
        assert 0 < missing.octets <= len(octets) - length


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: SIGNATURE + b"\x21" + rest))
def test_rubbish_is_refused_or_waits_for_a_bounded_rest(octets: bytes) -> None:
    stream = Stream(octets + bytes(MAX_OCTETS), [4096])
    try:
        found = read(stream.receive)
    except NotProxied:
        pass
    else:
        assert isinstance(found, Header)
    assert len(octets) + MAX_OCTETS - len(stream.left) <= MAX_OCTETS


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO client.example\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r \n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 nowhere 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWNX\r\n         ",
        b"PROXY TCP4 \xff92.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        binary(0x11, 0x11, inet("192.0.2.1")),
        binary(0x22, 0x11, inet("192.0.2.1")),
        binary(0x21, 0x11, bytes(11)),
        binary(0x21, 0x21, bytes(35)),
        binary(0x21, 0x41, bytes(300)),
        binary(0x21, 0x13, inet("192.0.2.1")),
        binary(0x21, 0x11, bytes(MAX_OCTETS)),
    ],
)
def test_refused(octets: bytes) -> None:
    with pytest.raises(NotProxied):
        read(Stream(octets, [3]).receive)


def test_the_longest_line_of_version_1_is_read() -> None:
    line = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(line) == 107
    assert read(Stream(line, [107]).receive) == Header(None)
    with pytest.raises(NotProxied, match="too long"):
        read(Stream(line[:-2] + b"x\r\n", [107]).receive)


def test_proxy_headers_for_datagrams_name_no_client() -> None:
    assert parse(binary(0x21, 0x12, inet("192.0.2.1"))) == Header(None)
