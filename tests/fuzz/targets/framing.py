"""Lines, message data and chunks: compared with a reader that goes octet by octet, and with other cuts of the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from relay.smtp import framing
from relay.smtp.framing import DataEnd, Flaw, Framing
from relay.smtp.spool import NoRoom
from tests.fuzz.stream import EndOfStream, Script, Stream

TOKENS = (b"\r\n", b"\r\n.\r\n", b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r\n..", b"\r.\r", b"\n\n", b"\r\r\n", b"\0")
MAX_OCTETS = 512
#: Longer lines are given up; larger than any limit that a script can ask for, as in reality.
_ENDLESS = 80
_LARGEST_LIMIT = 63

_Operation = tuple[str, int]


class _Sink:
    def __init__(self, *, full: bool) -> None:
        self.octets = b""
        self._full = full

    def write(self, octets: bytes) -> None:
        assert octets
        if self._full:
            raise NoRoom
        self.octets += octets


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: data and lines, whole and in pieces."""
    for tail in (
        b"a\r\n..b\r\n.\r\nQUIT\r\n",
        b"a\n.\r\nb",
        b"x" * 90 + b"\r\n",
        b"NOOP\r\nRSET\nx",
        b"." * 30 + b"\r\n.\r\n",
    ):
        yield b"\x03\x7f\x3f\xa8\x00" + tail
        yield b"\x82\x3f\x7f\x01\x02" + tail
        yield b"\x02\x7f\xff\x03\x01\x02\x03" + tail


def check(octets: bytes) -> None:
    """Raises AssertionError where what is found depends on the pieces, or is not what the octets say."""
    script = Script(octets)
    head = script.number()
    operations = [_operation(script.number()) for _ in range(head % 8 + 1)]
    sizes = script.sizes()
    stream = script.rest()
    # Half of the time, what takes kilobytes to happen happens in a few octets.
    with _scaled(small=bool(head & 0x80)):
        expected = list(_expected(stream, operations))
        for pieces in ((), (1,), sizes):
            found = _found(stream, pieces, operations)
            assert found == expected, (pieces, found, expected)


@contextmanager
def _scaled(*, small: bool) -> Iterator[None]:
    before = framing.MAX_DISCARDED_LINE, framing._FEW, framing._STRIDE
    try:
        framing.MAX_DISCARDED_LINE = _ENDLESS
        if small:
            framing._FEW, framing._STRIDE = 3, 4
        yield
    finally:
        framing.MAX_DISCARDED_LINE, framing._FEW, framing._STRIDE = before


def _operation(number: int) -> _Operation:
    return ("line", "data", "chunk", "full")[number >> 6], number & _LARGEST_LIMIT


def _found(stream: bytes, pieces: Sequence[int], operations: Sequence[_Operation]) -> list[object]:
    reader = Framing(Stream(stream, pieces).receive)
    results: list[object] = []
    try:
        for kind, limit in operations:
            if kind == "line":
                line = reader.line(limit)
                results.append(line)
                if isinstance(line, bytes):
                    assert b"\n" not in line
                    assert len(line) + 2 <= limit
                elif line is Flaw.ENDLESS:
                    break
            elif kind == "chunk":
                sink = _Sink(full=False)
                reader.chunk(limit, sink)
                results.append(sink.octets)
            else:
                sink = _Sink(full=kind == "full")
                try:
                    end = reader.data(sink, limit)
                except NoRoom:
                    results.append("no room")
                    continue
                assert len(sink.octets) <= limit
                results.append((end, sink.octets) if end is DataEnd.COMPLETE else end)
                if end is DataEnd.FALSE_END:
                    break
    except EndOfStream:
        results.append("end")
    return results


def _expected(stream: bytes, operations: Sequence[_Operation]) -> Iterator[object]:
    """The same by the plainest means."""
    left = iter(stream)
    for kind, limit in operations:
        if kind == "line":
            line = _expected_line(left, limit)
            yield line
            if line in (Flaw.ENDLESS, "end"):
                return
        elif kind == "chunk":
            chunk = bytes(islice(left, limit))
            if len(chunk) < limit:
                yield "end"
                return
            yield chunk
        else:
            outcome, data = _expected_data(left)
            if outcome is not DataEnd.COMPLETE:
                yield outcome
                return
            if len(data) > limit:
                yield DataEnd.TOO_LARGE
            elif kind == "full" and data:
                yield "no room"
            else:
                yield outcome, data


def _expected_line(left: Iterator[int], limit: int) -> object:
    line = bytearray()
    for octet in left:
        line.append(octet)
        if octet == 10 or len(line) > _ENDLESS:
            break
    if len(line.removesuffix(b"\n")) > _ENDLESS:
        return Flaw.ENDLESS
    if not line.endswith(b"\n"):
        return "end"
    if not line.endswith(b"\r\n"):
        return Flaw.BARE_LINE_FEED
    return bytes(line[:-2]) if len(line) <= limit else Flaw.TOO_LONG


def _expected_data(left: Iterator[int]) -> tuple[object, bytes]:
    data = bytearray()
    #: All of it, with the line end of the command before it.
    seen = bytearray(b"\r\n")
    for octet in left:
        seen.append(octet)
        data.append(octet)
        if seen.endswith(b"\r\n.\r\n"):
            return DataEnd.COMPLETE, bytes(data[:-2])
        if seen.endswith((b"\n.\n", b"\n.\r\n")):
            return DataEnd.FALSE_END, b""
        if seen.endswith(b"\r\n."):
            # Stuffed, or the beginning of the end.
            data.pop()
    return "end", b""
