"""Where a line and where a message ends, across reads: the only reader of the wire (RFC 5321 sections 2.3.8, 4.5.2).

What is found depends on the bytes alone, never on how the network cut them. A line ends with CRLF and nothing else. A
bare LF in a *command* is refused and ends the connection: a line feed that is put into an address must not get a second
command executed. Bare CR and bare LF in *data* are kept as data, and never end a line there; a lone dot between them,
which some servers take for the end of data, is refused as soon as it is seen (`DataEnd.FALSE_END`): to go on reading
would leave a client that believes it has finished without an answer, and to believe it would let a second message be
smuggled in.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from relay.smtp.spool import NoRoom

#: A line this long is no mistake but an attack or a wrong protocol; until then it is read and thrown away.
MAX_DISCARDED_LINE = 1_000_000

#: What is over the limit is read to the end of data, so that the client learns why: up to so many times the limit, and
#: so many octets at the least.
_DISCARDED_LIMITS = 4
_LEAST_DISCARDED = 100_000_000

_CARRIAGE_RETURN = 13
_LINE_END = b"\r\n"
#: Every end of data, the true one and the false ones, has these, and few other lines do.
_DOTTED = b"\n."
_END_OF_DATA = b"\n.\r\n"
_UNIX_END_OF_DATA = b"\n.\n"
#: Octets that are searched for a line that begins with a dot, once any dot was seen.
_STRIDE = 4096
#: Lines that begin with a dot and are looked at one by one.
_FEW = 16
#: A dot and a CR may be the beginning of an end of data; what is before them stays in sight.
_HELD_BACK = 2


def discarded_at_most(limit: int) -> int:
    """Octets after which message data that is thrown away is not read any further, where `limit` may be kept."""
    return max(_DISCARDED_LIMITS * limit, _LEAST_DISCARDED)


class Flaw(Enum):
    """What can be wrong with a line before it is looked at."""

    #: Longer than allowed; it was read to its end and thrown away.
    TOO_LONG = "too long"
    #: No end in sight: the connection is beyond repair.
    ENDLESS = "endless"
    #: It ended in LF without CR.
    BARE_LINE_FEED = "bare line feed"


class DataEnd(Enum):
    """How the reading of message data ended."""

    COMPLETE = "complete"
    #: Over the limit; it was read to its end and the surplus thrown away.
    TOO_LARGE = "too large"
    #: LF . LF, LF . CR LF or CR LF . LF: what follows may be data or commands.
    FALSE_END = "false end"
    #: So far over the limit that the rest was not read: the connection is beyond repair.
    ENDLESS = "endless"


# Looked up once: to find a member in its Enum takes long in Python 3.11.
_COMPLETE: Final = DataEnd.COMPLETE
_FALSE_END: Final = DataEnd.FALSE_END


class Sink(Protocol):
    """Where message data goes as it arrives."""

    def write(self, octets: bytes) -> None:
        """Takes the next octets; raises NoRoom where they can't be kept."""


class Framing:
    """Cuts a stream of octets into lines and message data.

    `receive` returns the next octets of the stream, one at least. It may block, and it raises when there are no more:
    whatever it raises passes through.
    """

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._buffer = b""
        self._position = 0

    @property
    def empty(self) -> bool:
        """Whether everything that arrived has been consumed."""
        return self._position >= len(self._buffer)

    def discard(self) -> None:
        """Throws away what arrived and has not been consumed (RFC 3207 section 4.2: nothing survives STARTTLS)."""
        self._buffer = b""
        self._position = 0

    def _fill(self) -> None:
        """Waits for octets if there are none. While it waits nothing is kept: there are thousands of connections."""
        if self._position >= len(self._buffer):
            self.discard()
            self._buffer = self._receive()

    def line(self, limit: int) -> bytes | Flaw:
        """The next line without its CRLF. `limit` counts octets, CRLF included."""
        self._fill()
        buffer, start = self._buffer, self._position
        end = buffer.find(b"\n", start)
        while end < 0:
            searched = len(buffer) - start
            if searched > limit:
                return self._skip_line()
            # Let go of what is consumed before waiting.
            self._buffer, buffer = buffer[start:], b""
            self._position = start = 0
            self._buffer += self._receive()
            buffer = self._buffer
            end = buffer.find(b"\n", searched)
        if end + 1 - start > limit:
            return self._skip_line()
        self._position = end + 1
        if end == start or buffer[end - 1] != _CARRIAGE_RETURN:
            return Flaw.BARE_LINE_FEED
        return buffer[start : end - 1]

    def _skip_line(self) -> Flaw:
        """Reads on to the end of a line that is too long; nothing of it is kept but its last octet."""
        length = 0
        last = 0
        while (end := self._buffer.find(b"\n", self._position)) < 0:
            length += len(self._buffer) - self._position
            if length > MAX_DISCARDED_LINE:
                return Flaw.ENDLESS
            if not self.empty:
                last = self._buffer[-1]
            self.discard()
            self._buffer = self._receive()
        length += end - self._position
        if length > MAX_DISCARDED_LINE:
            return Flaw.ENDLESS
        if end > self._position:
            last = self._buffer[end - 1]
        self._position = end + 1
        return Flaw.TOO_LONG if last == _CARRIAGE_RETURN else Flaw.BARE_LINE_FEED

    def data(self, sink: Sink | None, limit: int) -> DataEnd:
        """Reads message data to CRLF.CRLF into `sink` or nowhere, with dots unstuffed and the last CRLF kept.

        `limit` counts octets after unstuffing. NoRoom of the sink is raised once the data has been read to its end.
        """
        size = 0
        failure: NoRoom | None = None
        self._fill()
        # The two octets before the rest, so that a line end before it is seen; the DATA line's own, to begin with.
        window = _LINE_END + self._buffer[self._position :]
        while True:
            verdict, end, stuffed = _find_end(window)
            if verdict is _FALSE_END:
                return verdict
            # Without an end, the last octets wait for what they may become together with the next.
            taken = end if verdict else max(len(window) - _HELD_BACK, len(_LINE_END))
            octets = window[:taken].replace(b"\r\n.", _LINE_END)[2:] if stuffed else window[2:taken]
            size += len(octets)
            if size > limit:
                if size > discarded_at_most(limit):
                    return DataEnd.ENDLESS
            elif octets and sink is not None and failure is None:
                try:
                    sink.write(octets)
                except NoRoom as error:
                    failure = error
            if verdict:
                # `end` is behind the CRLF that ends the last line; the dot and its CRLF follow.
                self._buffer, self._position = window, end + 3
                break
            # Let go of what is consumed before waiting, but for the two octets before the rest.
            self.discard()
            window, octets = window[taken - len(_LINE_END) :], b""
            # perf: one copy of what arrives, not two, is 2 % of a mail of 230 KB: ./scripts/bench --before COMMIT
            window += self._receive()
        if size > limit:
            return DataEnd.TOO_LARGE
        if failure is not None:
            raise failure
        return _COMPLETE

    def chunk(self, size: int, sink: Sink | None) -> None:
        """Reads exactly `size` octets (RFC 3030 BDAT) into `sink` or nowhere.

        NoRoom of the sink is raised once the chunk has been read to its end.
        """
        failure: NoRoom | None = None
        while size > 0:
            self._fill()
            octets = self._buffer[self._position : self._position + size]
            self._position += len(octets)
            size -= len(octets)
            if sink is not None and failure is None:
                try:
                    sink.write(octets)
                except NoRoom as error:
                    failure = error
        if failure is not None:
            raise failure


def _find_end(window: bytes) -> tuple[DataEnd | None, int, bool]:
    """The end of data in `window`, or a false one, the offset behind the last line's CRLF, and whether stuffed dots
    stand before it.

    The first octet of `window` has been looked at before.
    """
    at = _next_dotted(window, 1)
    stuffed = False
    for _ in range(_FEW):
        if at < 0:
            return None, 0, stuffed
        follows = window[at + 2 : at + 4]
        if follows == _LINE_END and window[at - 1] == _CARRIAGE_RETURN:
            return _COMPLETE, at + 1, stuffed
        if follows == _LINE_END or follows[:1] == b"\n":
            return _FALSE_END, at, stuffed
        stuffed = True
        at = _next_dotted(window, at + 1)
    # So many dots are a matter for one search over the rest rather than for a step each.
    end = window.find(_END_OF_DATA, at) if at >= 0 else -1
    false_end = window.find(_UNIX_END_OF_DATA, at, end + 1 if end >= 0 else len(window)) if at >= 0 else -1
    if false_end >= 0:
        return _FALSE_END, false_end, stuffed
    if end < 0:
        return None, 0, stuffed
    if window[end - 1] != _CARRIAGE_RETURN:
        return _FALSE_END, end, stuffed
    return _COMPLETE, end + 1, stuffed


def _next_dotted(window: bytes, start: int) -> int:
    """Where the next LF with a dot behind it is, or -1.

    A search for one octet runs at the speed of memory: it leaps over Base64, which has no dot.
    """
    while (dot := window.find(b".", start)) >= 0:
        stop = dot + _STRIDE
        found = window.find(_DOTTED, max(start, dot - 1), stop)
        if found >= 0:
            return found
        # The octet before the next stride may be the line end of a dot at its beginning.
        start = stop - 1
    return -1
