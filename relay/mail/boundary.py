"""Delimiter lines of multiparts (RFC 2046 section 5.1.1), and boundaries that the header doesn't name."""

from __future__ import annotations

import re
from typing import NamedTuple

from relay.core.frozen import new_tuple

#: What some programs put before the first octet of a text file (Unicode section 23.8).
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: RFC 2046 allows 70; what is longer than this is no boundary.
MAX_LENGTH = 250
#: Lines that begin with `--` and are looked at when a boundary has to be found.
_MAX_GUESSES = 500

#: Octets that are searched for a whole needle after a dash was seen.
_WINDOW = 8192

#: Behind the end of a multipart anything may stand that could not belong to a longer boundary (RFC 2046 section 5.1.1).
_LINE_END = re.compile(rb"(--)?[ \t]*+\r*+(?:\n|\Z)|(--)[^\s0-9A-Za-z'()+_,./:=?-][^\n]{0,1000}+(?:\n|\Z)")
_DASHED_LINE = re.compile(rb"(?:\A|\n)--([^\r\n]{1,250})(?:\r?\n|\Z)(?=([A-Za-z-]{0,30}))")
_WHITE_SPACE = re.compile(r"\s+", re.ASCII)


class Delimiter(NamedTuple):
    """One delimiter line: what is before it ends at `start` (the line end belongs to the delimiter), what follows
    begins at `end`.
    """

    start: int
    end: int
    closes: bool


def search(raw: bytes, needle: bytes, start: int, end: int) -> int:
    """`raw.find(needle, start, end)` for a needle that begins with a line end and two dashes.

    Base64 has no dash, so a search for one octet, which runs at the speed of memory, leaps over attachments.
    """
    while (dash := raw.find(b"-", start, end)) >= 0:
        window = min(dash + _WINDOW, end)
        found = raw.find(needle, max(start, dash - 1), window)
        if found >= 0:
            return found
        if window == end:
            return -1
        start = window - len(needle)
    return -1


def find(raw: bytes, start: int, end: int, boundary: bytes, *, limit: int) -> list[Delimiter]:
    """The delimiter lines of `boundary` in `raw[start:end]`, `limit` at most. Blanks at the end of the line are
    allowed.
    """
    found: list[Delimiter] = []
    add = found.append
    needle = b"\n--" + boundary
    size = len(needle)
    # Where the delimiter line before ends: two in a row share the line end between them.
    last = start
    # Where the line end before a delimiter line begins; less than 0: the next is still to be found.
    before, position = -1, start
    if raw.startswith(needle[1:], start, end):
        before, position = start, start + size - 1
    elif raw.startswith(BYTE_ORDER_MARK + needle[1:], start, end):
        before, position = start, start + len(BYTE_ORDER_MARK) + size - 1
    while True:
        if before < 0:
            # The next line is near, or else it may be far.
            if end - position <= _WINDOW:
                line = raw.find(needle, position, end)
            else:
                line = raw.find(needle, position, position + _WINDOW)
                if line < 0:
                    line = search(raw, needle, position + _WINDOW - size, end)
            if line < 0:
                return found
            before = line - 1 if line > start and raw[line - 1] == 0x0D else line
            position = line + size
        # Nearly every one ends in one of two ways; to compare takes a fifth of the time of the expression.
        stop = position + 2
        closes = False
        if stop > end or raw[position:stop] != b"\r\n":
            stop = position + 4
            closes = raw[position:stop] == b"--\r\n"
            if stop > end or not closes:
                match = _LINE_END.match(raw, position, end)
                if match is None:
                    before = -1
                    continue
                stop, closes = match.end(), (match[1] or match[2]) is not None
        add(new_tuple(Delimiter, (before if before > last else last, stop, closes)))
        if len(found) >= limit:
            return found
        last, before = stop, -1


def candidates(view: str) -> list[bytes]:
    """What a boundary parameter may mean: itself, and itself without the white space that folding put into it."""
    value = view.rstrip(" \t")
    spellings = [value, value.strip(" \t"), _WHITE_SPACE.sub("", value), value.strip("'\"<> \t")]
    if "\\" in value:
        spellings.append(value.replace("\\", ""))
    return [spelling.encode("latin-1") for spelling in dict.fromkeys(spellings) if 0 < len(spelling) <= MAX_LENGTH]


def adopt(raw: bytes, start: int, end: int) -> bytes | None:
    """A boundary that the body itself shows: a dashed line before a Content field, or one that comes again with `--`
    behind it.
    """
    seen: list[bytes] = []
    closing: set[bytes] = set()
    for match in _DASHED_LINE.finditer(raw, max(start - 1, 0), end):
        value = match[1].rstrip(b" \t")
        if match[2].lower().startswith(b"content-") and value.strip(b"-"):
            return value
        if value.endswith(b"--") and value.strip(b"-"):
            closing.add(value[:-2])
        seen.append(value)
        if len(seen) >= _MAX_GUESSES:
            break
    return next((value for value in seen if value in closing), None)
