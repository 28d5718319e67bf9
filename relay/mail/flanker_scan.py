"""flanker's scanner on a view in which every octet keeps its value, and the spans of the parts that it finds.

flanker decodes bytes as UTF-8 or by guess, so it gets text made of latin-1: one character an octet. Its scanner walks
every line, at 26 ns an octet, so it gets only what carries structure: the header block of the message, and each line
that begins with `--` with what follows it up to an empty line. Bodies are cut out, and the spans are put back on the
offsets of the raw message.
"""

from __future__ import annotations

import logging
import warnings
from bisect import bisect_right
from typing import Any, Final

from relay.core.frozen import frozen
from relay.mail import boundary

# flanker prints grammar warnings through logging's last resort, and old spellings in it warn on newer Pythons.
logging.getLogger("flanker").addHandler(logging.NullHandler())
logging.getLogger("flanker").propagate = False
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flanker.mime.message import scanner
    from flanker.mime.message.errors import DecodingError

#: Characters that flanker is given at most: its regular expressions for parameters are not linear in a header's length.
MAX_VIEW: Final = 32_768

#: Blanks in a row that flanker is given at most, line ends left out as unfolding does. Where a parameter's value begins
#: its expression has two repetitions of blanks side by side, whose time grows with the square of their number.
_MAX_BLANKS: Final = 100
_TOO_MANY_BLANKS: Final = " " * _MAX_BLANKS
_TO_BLANKS: Final = {
    0x09: " ",
    0x0A: None,
    0x0B: " ",
    0x0C: " ",
    0x0D: None,
    0x1C: " ",
    0x1D: " ",
    0x1E: " ",
    0x1F: " ",
}

#: Levels of parts that are followed: more than any setting allows, and a fifth of what Python's stack holds.
_DEEPEST: Final = 201

#: What flanker says, and the cause that is counted.
_CAUSES: Final = (("boundary", "boundary"), ("Too many", "limits"), ("ascii", "charset"))


class Unfit(Exception):
    """flanker can't read this message. `cause` is one of boundary, charset, limits, malformed, size, structure."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@frozen
class Span:
    """One part: its octets with its headers. `main` is the first half of its media type; `parts` is empty but for a
    multipart.
    """

    start: int
    end: int
    main: str
    parts: tuple[Span, ...]


def scan(raw: bytes) -> Span:
    """The tree of parts that flanker sees in `raw`. Raises Unfit, and nothing else."""
    pieces = _structure(raw)
    view = "".join([raw[start:end].decode("latin-1") for start, end in pieces])
    if _TOO_MANY_BLANKS in view.translate(_TO_BLANKS):
        raise Unfit("size")
    try:
        part = scanner.scan(view)
    except DecodingError as error:
        message = str(error)
        raise Unfit(next((cause for sign, cause in _CAUSES if sign in message), "malformed")) from error
    except Exception as error:
        raise Unfit("malformed") from error
    if part is None:
        raise Unfit("malformed")
    return _span(part, _Offsets(pieces, len(raw)), _DEEPEST)


def _structure(raw: bytes) -> list[tuple[int, int]]:
    """The stretches of `raw` that can carry structure, in order and apart from each other."""
    size = len(raw)
    pieces: list[tuple[int, int]] = []
    start = kept = 0
    #: The next empty line after `start` of either kind; `size` where there is none.
    crlf = lf = -1
    while True:
        # Each is looked for again once it was passed, and only then: all searches of one kind read the message once.
        if crlf < start:
            found = raw.find(b"\n\r\n", start)
            crlf = found if found >= 0 else size
        if lf < start:
            found = raw.find(b"\n\n", start)
            lf = found if found >= 0 else size
        stop = lf + 2 if lf + 2 <= crlf else min(crlf + 3, size)
        pieces.append((start, stop))
        kept += stop - start
        if kept > MAX_VIEW:
            raise Unfit("size")
        # The empty line may itself be the line end before the next dashed line.
        position = boundary.search(raw, b"\n--", stop - 1, size)
        if position < 0:
            return pieces
        start = max(stop, position - 1 if raw[position - 1] == 0x0D else position)


class _Offsets:
    """From offsets in the view to offsets in the raw message."""

    def __init__(self, pieces: list[tuple[int, int]], size: int) -> None:
        self._raw = [start for start, _ in pieces]
        self._view = []
        position = 0
        for start, end in pieces:
            self._view.append(position)
            position += end - start
        self._length = position
        self._size = size

    def __call__(self, position: int) -> int:
        if position >= self._length:
            return self._size
        index = bisect_right(self._view, position) - 1
        return self._raw[index] + position - self._view[index]


def _span(part: Any, offsets: _Offsets, depth: int) -> Span:
    """The span of a part and of those in it, so many levels of them. Raises Unfit where there are more."""
    if not depth:
        raise Unfit("limits")
    container = part._container
    main = container.content_type.main.lower()
    return Span(
        offsets(container.start),
        offsets(container.end + 1),
        main,
        tuple(_span(child, offsets, depth - 1) for child in part.parts) if main == "multipart" else (),
    )
