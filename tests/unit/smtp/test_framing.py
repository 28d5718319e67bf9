"""What the framing finds depends on the bytes alone: compared with a reader that has all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.smtp import framing
from relay.smtp.framing import MAX_DISCARDED_LINE, DataEnd, Flaw, Framing, discarded_at_most
from relay.smtp.spool import NoRoom

#: What lines and data may end with, more often than chance would have it.
OCTETS = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"\n.\n", b"x", b"xyz", b"\0", b"\xff"]),
    max_size=40,
).map(b"".join)
#: What is asked of the stream, and with which limit.
Operation = tuple[str, int]
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["line", "data", "chunk"]), st.integers(0, 30)), min_size=1, max_size=12
)
ENDLESS = 25


class EndOfStream(Exception):
    pass


class Pieces:
    """A stream that arrives in the given pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces: Iterator[bytes] = iter([piece for piece in pieces if piece])

    def receive(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise EndOfStream


class Sink:
    def __init__(self) -> None:
        self.octets = b""

    def write(self, octets: bytes) -> None:
        self.octets += octets


def cut(octets: bytes, places: list[int]) -> list[bytes]:
    """The octets in pieces, cut at the given places (which wrap around)."""
    ends = sorted({place % (len(octets) + 1) for place in places} | {0, len(octets)})
    return [octets[begin:end] for begin, end in pairwise(ends)]


def found(octets: bytes, places: list[int], operations: list[Operation]) -> list[object]:
    """What the framing makes of a stream."""
    reader = Framing(Pieces(cut(octets, places)).receive)
    results: list[object] = []
    try:
        for kind, limit in operations:
            if kind == "line":
                line = reader.line(limit)
                results.append(line)
                if line is Flaw.ENDLESS:
                    break
            elif kind == "data":
                sink = Sink()
                end = reader.data(sink, limit)
                results.append((end, sink.octets) if end is DataEnd.COMPLETE else end)
                if end is DataEnd.FALSE_END:
                    break
            else:
                sink = Sink()
                reader.chunk(limit, sink)
                results.append(sink.octets)
    except EndOfStream:
        results.append("end")
    return results


def expected(octets: bytes, operations: list[Operation]) -> list[object]:
    """The same, found by the plainest means there are."""
    results: list[object] = []
    for kind, limit in operations:
        if kind == "line":
            line, separator, rest = octets.partition(b"\n")
            if len(line) > ENDLESS and len(line) + len(separator) > limit:
                return [*results, Flaw.ENDLESS]
            if not separator:
                return [*results, "end"]
            if not line.endswith(b"\r"):
                results.append(Flaw.BARE_LINE_FEED)
            else:
                results.append(line[:-1] if len(line) + 1 <= limit else Flaw.TOO_LONG)
            octets = rest
        elif kind == "data":
            stream = b"\r\n" + octets
            ends = [at for at in range(len(stream)) if stream[at:].startswith((b"\n.\n", b"\n.\r\n"))]
            if not ends:
                return [*results, "end"]
            end = ends[0]
            if stream[end - 1 : end + 4] != b"\r\n.\r\n":
                return [*results, DataEnd.FALSE_END]
            lines = stream[2 : end + 1].split(b"\r\n") if end > 1 else [b""]
            data = b"\r\n".join(line.removeprefix(b".") for line in lines)
            results.append((DataEnd.COMPLETE, data) if len(data) <= limit else DataEnd.TOO_LARGE)
            octets = stream[end + 4 :]
        else:
            if len(octets) < limit:
                return [*results, "end"]
            results.append(octets[:limit])
            octets = octets[limit:]
    return results


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes kilobytes to happen happens in a few octets."""
    monkeypatch.setattr(framing, "MAX_DISCARDED_LINE", ENDLESS)
    monkeypatch.setattr(framing, "_FEW", 3)
    monkeypatch.setattr(framing, "_STRIDE", 4)


@settings(max_examples=1000, deadline=None)
@given(OCTETS, st.lists(st.integers(0, 200), max_size=12), OPERATIONS)
@example(b".\r\nNOOP\r\n", [], [("data", 9), ("line", 9)])
@example(b"..\r\n.\r\n", [1, 2, 3, 4, 5, 6], [("data", 9)])
@example(b"x" * 26 + b"\r\n", [], [("line", 9)])
def test_any_bytes_cut_anywhere(octets: bytes, places: list[int], operations: list[Operation]) -> None:
    assert found(octets, places, operations) == expected(octets, operations)


@pytest.mark.parametrize(
    "octets",
    [
        b"a\r\n.\r\nQUIT\r\n",
        b"a\r\n..\r\n.b\r\n.\r\nQUIT\r\n",
        b"a\n.\nb\r\n.\r\n",
        b"a\r\n.\nb\r\n.\r\n",
        b"a\n.\r\nb\r\n.\r\n",
        b"a\r.\rb\r\n.\rc\r.\r\nd\r\n.\r\n",
        b"\r\r\n\n\r\n.\r\r\n.\r\n",
        b"..\r\n..\r\n.a\r\n\n.b\r\n..\r\n.\r\nQUIT\r\n",
        b"..\r\n..\r\n.a\r\n\n.b\r\n..\n.\r\n",
        b"..\r\n..\r\n.a\r\n\n.b\r\n..\r\n.\n\r\n.\r\n",
    ],
)
def test_cut_at_every_place(octets: bytes) -> None:
    operations = [("data", 100), ("line", 100)]
    whole = expected(octets, operations)
    for first in range(len(octets) + 1):
        for second in range(first, len(octets) + 1):
            assert found(octets, [first, second], operations) == whole
    assert found(octets, list(range(len(octets))), operations) == whole


@pytest.mark.parametrize(
    ("line", "limit", "result"),
    [
        (b"NOOP\r\n", 6, b"NOOP"),
        (b"NOOP\r\n", 5, Flaw.TOO_LONG),
        (b"\r\n", 2, b""),
        (b"\n", 9, Flaw.BARE_LINE_FEED),
        (b"\r\n", 1, Flaw.TOO_LONG),
        (b"NOOP\rNOOP\r\n", 99, b"NOOP\rNOOP"),
        (b"NOOP\n", 9, Flaw.BARE_LINE_FEED),
        (b"x" * 20 + b"\n", 9, Flaw.BARE_LINE_FEED),
        (b"x" * 23 + b"\r\n", 9, Flaw.TOO_LONG),
        (b"x" * 25 + b"\r\n", 9, Flaw.ENDLESS),
        (b"x" * 26, 9, Flaw.ENDLESS),
    ],
)
def test_lines(line: bytes, limit: int, result: object) -> None:
    for places in ([], list(range(len(line)))):
        assert found(line + b"MORE\r\n", places, [("line", limit)]) == [result]


class FullAfter:
    """Has room for so many writes."""

    def __init__(self, writes: int) -> None:
        self._room = writes

    def write(self, octets: bytes) -> None:
        self._room -= 1
        if self._room < 0:
            raise NoRoom


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_without_room_the_data_is_read_to_its_end(writes: int) -> None:
    reader = Framing(Pieces([b"one\r\ntwo\r\n", b"three\r\nfour\r\n", b"five\r\n.\r\n", b"NOOP\r\n"]).receive)
    with pytest.raises(NoRoom):
        reader.data(FullAfter(writes), 1000)
    assert reader.line(100) == b"NOOP"


def test_without_room_the_chunk_is_read_to_its_end() -> None:
    reader = Framing(Pieces([b"12345", b"67890NOOP\r\n"]).receive)
    with pytest.raises(NoRoom):
        reader.chunk(10, FullAfter(1))
    assert reader.line(100) == b"NOOP"


def test_without_a_sink_octets_go_nowhere() -> None:
    reader = Framing(Pieces([b"12345NOOP\r\nab\r\n.\r\nRSET\r\n"]).receive)
    reader.chunk(5, None)
    assert reader.line(100) == b"NOOP"
    assert reader.data(None, 100) is DataEnd.COMPLETE
    assert reader.line(100) == b"RSET"


def test_discard_and_empty() -> None:
    reader = Framing(Pieces([b"STARTTLS\r\nMAIL\r\nhalf", b"NOOP\r\n"]).receive)
    assert reader.empty
    reader.line(100)
    assert not reader.empty
    reader.discard()
    assert reader.empty
    assert reader.line(100) == b"NOOP"


def test_nothing_that_was_consumed_is_kept() -> None:
    """Memory: an idle connection must not hold on to the packet that its last command came in."""
    reader = Framing(Pieces([b"x" * 50_000 + b"\r\n", b"NOOP\r\n"]).receive)
    reader.chunk(50_002, None)
    with pytest.raises(EndOfStream):
        [reader.line(100) for _ in range(2)]
    assert len(reader._buffer) == 0


class Counted:
    """Counts what it is given."""

    def __init__(self) -> None:
        self.octets = 0

    def write(self, octets: bytes) -> None:
        self.octets += len(octets)


@pytest.mark.parametrize(("over", "end"), [(-1, DataEnd.COMPLETE), (0, DataEnd.COMPLETE), (1, DataEnd.TOO_LARGE)])
@pytest.mark.parametrize("text", [b"x" * 40, b"..dots\r\n..\r\n..more\r\nthan one\r\n", b"\r\n" * 20])
def test_the_limit_is_met_to_the_octet(text: bytes, over: int, end: DataEnd) -> None:
    """A message that is one octet over it must not be taken for a complete one: its last piece was thrown away."""
    stream = text + b"\r\n.\r\n"
    length = len(text.replace(b"\r\n.", b"\r\n").removeprefix(b".")) + 2
    for places in ([], [5, 17], list(range(len(stream)))):
        sink = Sink()
        assert Framing(Pieces(cut(stream, places)).receive).data(sink, length - over) is end
        assert len(sink.octets) == length or end is DataEnd.TOO_LARGE


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_what_is_over_the_limit_is_not_kept(size: int) -> None:
    sink = Counted()
    data = b"x" * 5000 + b"\r\n.\r\n"
    reader = Framing(Pieces([data[start : start + size] for start in range(0, len(data), size)]).receive)
    assert reader.data(sink, 1000) is DataEnd.TOO_LARGE
    assert sink.octets <= 1000


def test_a_line_without_an_end_is_not_read_for_ever() -> None:
    received = 0

    def receive() -> bytes:
        nonlocal received
        received += 50_000
        assert received <= 2 * MAX_DISCARDED_LINE
        return b"x" * 50_000

    assert Framing(receive).line(4096) is Flaw.ENDLESS


def test_data_without_an_end_is_not_read_for_ever() -> None:
    received = 0

    def receive() -> bytes:
        nonlocal received
        received += 1_000_000
        assert received <= 2 * discarded_at_most(1000)
        return b"x" * 1_000_000

    assert Framing(receive).data(None, 1000) is DataEnd.ENDLESS
