"""Header blocks on bytes: where one ends, and which fields it has (RFC 5322 section 2.2; issue rules for damaged ones
in docs/mime.md).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from relay.core.frozen import frozen, new_tuple
from relay.mail.boundary import BYTE_ORDER_MARK

#: Fields of one block that are looked at. Mail in the wild has under 200; a block of a million is an attack on memory.
MAX_FIELDS = 5_000
#: Octets of one block that are looked at, and lines.
_MAX_OCTETS = 4_000_000
_MAX_LINES = 200_000

#: Octets of a message or part in which the shortcut looks for the end of its header block.
_NEAR = 32_768

#: The latin-1 view of a byte order mark.
_MARK_VIEW = BYTE_ORDER_MARK.decode("latin-1")

#: A name that begins with `<` would be one (RFC 5322 section 3.6.8), but is HTML that no empty line stands before, and
#: one with `://` behind it is a URL.
_NAME = re.compile(r"(?!<)[!-9;-~]+\Z")
_FIELD_LINE = re.compile(r"(?!<)([!-9;-~]+)[ \t]*:(?!//)(.*)\Z", re.DOTALL)
_DOUBTFUL_LINE = re.compile(r"(?!<)[^:\x00-\x1f\x7f]{0,200}:(?!//)")
#: A parameter at the start of a line: its header was folded without the blank that folding takes.
_PARAMETER_LINE = re.compile(
    r"(?:boundary|charset|name|filename|format|type|report-type|protocol)(?:\*[0-9*]*)?[ \t]*=", re.I
)
_LINE_END = re.compile(rb"\r?\n")
_FOLD = re.compile(r"\n([ \t]+)")
_BLANK_LINE = re.compile(r"\n[ \t]+(?:\n|\Z)")
_NOT_BLANK = re.compile(r"^[^ \t\r\n]|^[ \t\r]+[^ \t\r\n]", re.MULTILINE)
_NOT_INDENTED = re.compile(r"^[^ \t\r\n]", re.MULTILINE)
_KNOWN_LINE = re.compile(
    r"^(?:from|to|cc|bcc|subject|date|sender|reply-to|message-id|mime-version|content-[a-z-]+|received|return-path|"
    r"in-reply-to|references|delivered-to|list-[a-z-]+|x-[!-9;-~]+|(?:resend-)?idempotency-key)[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_NAMES = {
    name: name.lower()
    for name in [
        "Received",
        "DKIM-Signature",
        "From",
        "To",
        "Cc",
        "Bcc",
        "Subject",
        "Date",
        "Message-ID",
        "Message-Id",
        "MIME-Version",
        "Mime-Version",
        "Reply-To",
        "Sender",
        "Content-Type",
        "Content-Transfer-Encoding",
        "Content-Disposition",
        "Content-ID",
        "Content-Id",
        "In-Reply-To",
        "References",
        "X-Mailer",
        "User-Agent",
        "List-Unsubscribe",
        "List-Unsubscribe-Post",
        "List-Id",
        "Return-Path",
        "X-Priority",
        "Importance",
        "Precedence",
    ]
}
#: Fields that one mail after another has with the same value, unless it is a boundary.
_RECURRING = frozenset(
    (
        "from",
        "reply-to",
        "sender",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
        "content-disposition",
        "x-mailer",
        "user-agent",
        "x-priority",
        "importance",
        "precedence",
        "auto-submitted",
        "list-id",
        "list-unsubscribe-post",
    )
)
#: Lines of such fields, and how many, of how many characters at most. A look takes a tenth of the time of reading one.
_lines: dict[str, Field] = {}
_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_LINE = 160


class Field(NamedTuple):
    """One header field. `value` is a latin-1 view of its octets, unfolded, without white space at its ends."""

    key: str
    name: str
    value: str


@frozen
class Head:
    """A header block, wherever it stands. `values` has the values of all fields of each (lower-case) name, in their
    order; `clean`: nothing had to be tolerated; `cut`: there is more than is looked at.
    """

    fields: list[Field]
    values: dict[str, list[str]]
    clean: bool
    cut: bool = False

    def first(self, key: str) -> str:
        """The value of the first field of that (lower-case) name; empty where there is none."""
        values = self.values.get(key)
        return values[0] if values else ""


def made_of(fields: list[Field], *, clean: bool, cut: bool = False) -> Head:
    """The block that has these fields."""
    values = {field[0]: [field[2]] for field in fields}
    if len(values) < len(fields):
        values = {}
        for key, _, value in fields:
            values.setdefault(key, []).append(value)
    # perf: 0.3 µs, by names 0.5 µs: python -m timeit -s "from relay.mail.header_block import Head as H" "H(1, 2, 3, 4)"
    return Head(fields, values, clean, cut)


def read(raw: bytes, start: int, end: int, *, shortcuts: bool = True) -> tuple[Head, int]:
    """The header block that begins at `start`, and the offset where the body begins; both end before `end`. Never
    raises.

    `shortcuts=False` walks even a clean block line by line, for the tests that compare the two ways.
    """
    if shortcuts and (stop := near_end(raw, start, end)) >= 0:
        fields = split(raw[start:stop])
        if fields is not None:
            return made_of(fields, clean=True), stop + 4
    if raw.startswith(BYTE_ORDER_MARK, start, end):
        while raw.startswith(BYTE_ORDER_MARK, start, end):
            start += len(BYTE_ORDER_MARK)
        line_end = _LINE_END.match(raw, start, end)
        behind = line_end.end() if line_end else end
        if _KNOWN_LINE.match(raw[behind : behind + _MAX_REMEMBERED_LINE].decode("latin-1")):
            start = behind
        head, body = read(raw, start, end, shortcuts=shortcuts)
        return Head(head.fields, head.values, False), body
    if raw.startswith(b"\r\n", start, end):
        return Head([], {}, True), start + 2
    if raw.startswith(b"\n", start, end):
        return Head([], {}, True), start + 1
    stop = body = end
    found = raw.find(b"\n\r\n", start, end)
    if found >= 0:
        stop, body = found + 1, found + 3
    found = raw.find(b"\n\n", start, stop)
    if found >= 0:
        stop, body = found + 1, found + 2
    terminated = body > stop
    cut = stop > start + _MAX_OCTETS
    stop = min(stop, start + _MAX_OCTETS)
    text = raw[start:stop].decode("latin-1")
    if shortcuts and not cut and text.count("\n") <= MAX_FIELDS:
        fields = _unfolded(text.replace("\r\n", "\n").removesuffix("\n"))
        if fields is not None:
            return made_of(fields, clean=True), body
    return _LineReader(text, terminated=terminated, cut=cut).read(start, body)


def near_end(raw: bytes, start: int, end: int) -> int:
    """Where the empty line begins that ends the block at `start`, if it is near, and its line ends are CRLF; else -1.

    That they are is for `split` to find out.
    """
    far = start + _NEAR
    return raw.find(b"\r\n\r\n", start, far if far < end else end)


def split(block: bytes) -> list[Field] | None:
    """The fields of a block, given without its last line end, in which every line ends with CRLF and is a field or its
    continuation, else None.
    """
    text = block.decode("latin-1")
    lines = text.split("\r\n")
    ends = len(lines) - 1
    if ends >= MAX_FIELDS or text.count("\n") != ends or text.count("\r") != ends:
        return None
    fields = _fields(lines)
    # Whatever begins with a blank is no field yet.
    return _unfolded(text.replace("\r\n", "\n")) if fields is None else fields


def unfold(blanks: str) -> str:
    """What stands for a line end and the blanks after it: the blanks (RFC 5322 section 2.2.3), or one space where they
    hold a tab.
    """
    return " " if "\t" in blanks else blanks


def _unfolded(text: str) -> list[Field] | None:
    """The fields of a block, given with LF and without its last line end, in which every line is a field or its
    continuation, else None.
    """
    if "\r" in text:
        return None
    if "\n " in text or "\n\t" in text:
        if _BLANK_LINE.search(text):
            return None
        text = _FOLD.sub(lambda match: unfold(match[1]), text)
    return _fields(text.split("\n"))


def _fields(lines: list[str]) -> list[Field] | None:
    """The fields that the lines are, each beyond doubt, else None."""
    fields = []
    for line in lines:
        field = _lines.get(line)
        if field is None:
            # perf: ten times a mail; a call of a function takes 0.1 µs more each time: python -m
            # scripts.benchmark.parsing --before COMMIT
            name, colon, value = line.partition(":")
            key = _NAMES.get(name)
            if key is None or not colon:
                if not colon or not _NAME.match(name) or value.startswith("//"):
                    return None
                key = name.lower()
            field = new_tuple(Field, (key, name, value.strip(" \t")))
            if key in _RECURRING and len(line) <= _MAX_REMEMBERED_LINE and "boundary" not in line:
                if len(_lines) >= _MAX_REMEMBERED:
                    _lines.clear()
                _lines[line] = field
        fields.append(field)
    return fields


class _LineReader:
    """The same line by line, tolerating what a block should not hold."""

    def __init__(self, text: str, *, terminated: bool, cut: bool) -> None:
        self._text = text
        self._cut = cut
        self._fields: list[Field] = []
        self._clean = True
        #: The field that continuation lines belong to; None: what came before them is not kept.
        self._name = ""
        self._values: list[str] | None = None
        #: Where the first of the last lines began that might be headers and might not.
        self._doubtful: int | None = None
        #: Where the next line after blank ones begins, and the next after those that continue a field.
        self._following = 0
        self._not_indented = 0
        #: Where the last header begins that is known beyond doubt, in a block that ends with an empty line.
        self._last_known = 0
        if terminated:
            for match in _KNOWN_LINE.finditer(text):
                self._last_known = match.start()

    def read(self, start: int, body: int) -> tuple[Head, int]:
        """The block that begins at `start` of the message; its body begins at `body`, unless a line ends it before."""
        position, size = 0, len(self._text)
        for _ in range(_MAX_LINES):
            if position >= size or len(self._fields) >= MAX_FIELDS:
                break
            stop = self._text.find("\n", position) + 1 or size
            ended = self._line(position, stop)
            if ended is not None:
                body = start + ended
                self._cut = False
                break
            position = stop
        else:
            self._cut = True
        self._cut |= len(self._fields) >= MAX_FIELDS and position < size
        self._close()
        return made_of(self._fields, clean=self._clean, cut=self._cut), body

    def _line(self, position: int, stop: int) -> int | None:
        """Takes one line; where the body begins if the block ends here."""
        line = self._text[position:stop].removesuffix("\n").removesuffix("\r")
        if not line.strip(" \t\r"):
            self._clean = False
            return None if self._block_goes_on(stop) else stop
        if line[0] in " \t" and not (position == 0 and _KNOWN_LINE.match(line.lstrip(" \t"))):
            if self._values is not None:
                rest = line.lstrip(" \t")
                self._values.append(unfold(line[: len(line) - len(rest)]) + rest)
            return None
        if line[0] in " \t":
            # Blanks before the first field continue nothing.
            self._clean = False
            position, line = len(line) - len(line.lstrip(" \t")), line.lstrip(" \t")
        if line.startswith(_MARK_VIEW) and (
            (not self._fields and self._values is None) or _KNOWN_LINE.match(line[len(_MARK_VIEW) :])
        ):
            # Behind an mbox line, or where a program put a second file behind the first fields.
            self._clean = False
            line = line[len(_MARK_VIEW) :]
        written = _FIELD_LINE.match(line)
        if written is None:
            return self._junk(line, position, stop)
        self._close()
        self._clean = self._clean and line[len(written[1])] == ":" and "\r" not in line
        self._name, self._values, self._doubtful = written[1], [written[2]], None
        return None

    def _junk(self, line: str, position: int, stop: int) -> int | None:
        self._clean = False
        if self._values is not None and self._name[:8].lower() == "content-" and _PARAMETER_LINE.match(line):
            self._values.append(" " + line)
            return None
        if position > 0 or not line.startswith(("From ", ">From ")):
            begin = position if self._doubtful is None else self._doubtful
            if _DOUBTFUL_LINE.match(line):
                self._doubtful = begin
            elif self._last_known < stop:
                return begin
        self._close()
        self._values = None
        return None

    def _block_goes_on(self, stop: int) -> bool:
        """Whether what follows blank lines is a known header, perhaps after the rest of a folded one, or the empty line
        that ends the block.

        A run of such lines is read once.
        """
        if self._following < stop:
            found = _NOT_BLANK.search(self._text, stop)
            self._following = found.start() if found else len(self._text)
        if self._following == len(self._text):
            return True
        if self._not_indented < self._following:
            found = _NOT_INDENTED.search(self._text, self._following)
            self._not_indented = found.start() if found else len(self._text)
        return _KNOWN_LINE.match(self._text, self._not_indented) is not None

    def _close(self) -> None:
        if self._values is not None:
            value = "".join(self._values).replace("\r", " ").strip(" \t")
            self._fields.append(Field(self._name.lower(), self._name, value))
            self._values = None
