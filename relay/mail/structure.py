"""The tree of parts of a message (RFC 2046), by offsets into its raw octets."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from dataclasses import field as attribute

from relay.mail import boundary, flanker_scan, header, parameter
from relay.mail.boundary import Delimiter
from relay.mail.flanker_scan import Span, Unfit
from relay.mail.header import Head
from relay.mail.message import Limits
from relay.mail.parameter import Parameters

#: A tree is walked by recursion: whatever the setting says, it is not followed deeper than this.
_DEEPEST = 200
#: A body is searched for something to read up to this many octets; a longer one is text whatever it holds.
_BLANK = 1000

#: What the shortcut follows: the multiparts that mails are made of, so deep, and with so many lines between parts.
_PLAIN_MULTIPARTS = frozenset(("multipart/alternative", "multipart/mixed", "multipart/related"))
_PLAIN_DEPTH = 5
_PLAIN_LINES = 50

_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`{|}~0-9a-z-]{1,127}/[!#$%&'*+.^_`{|}~0-9a-z-]{1,127}\Z")
_NO_HEAD = Head([], 0, True)
_TEXT = Parameters("text/plain", {}, {})
_WHOLE = Parameters("application/octet-stream", {}, {})


@dataclass(slots=True)
class Part:
    """One part: `raw[start:body]` is its header block, `raw[body:end]` its body. `children` is empty but for a
    multipart.
    """

    head: Head
    start: int
    body: int
    end: int
    content_type: Parameters
    children: list[Part] = attribute(default_factory=list)

    @property
    def media_type(self) -> str:
        """`type/subtype`, lower case, valid by RFC 2045."""
        return self.content_type.value

    @property
    def is_multipart(self) -> bool:
        """Whether it holds other parts and has no content of its own."""
        return bool(self.children)


def read(raw: bytes, limits: Limits, *, shortcuts: bool = True) -> tuple[Part, str]:
    """The message's root part, and who read it: `shortcut`, `flanker`, or `fallback:<cause>`. Never raises.

    The shortcut is for what needs no parser: a message of one part, and multiparts (mixed, related, alternative) whose
    header blocks and delimiter lines are all as they should be. Everything else is flanker's. What flanker found is
    held against the delimiter lines in the octets; where it raises, or took a line for what it isn't, the tolerant
    reading stands, and the cause is counted.
    """
    head = header.read(raw, 0, len(raw), shortcuts=shortcuts)
    if shortcuts:
        plain = _Reading(raw, head, limits).plain()
        if plain is not None:
            return plain, "shortcut"
    try:
        return _Reading(raw, head, limits, shortcuts=shortcuts).root(flanker_scan.scan(raw)), "flanker"
    except Unfit as unfit:
        return _Reading(raw, head, limits, shortcuts=shortcuts).root(None), f"fallback:{unfit.cause}"


def content_type(head: Head, default: Parameters = _TEXT) -> Parameters:
    """The Content-Type of a header block; `default` where there is none, text/plain where it is invalid."""
    value = head.first("content-type")
    if not value:
        return default
    parsed = parameter.parse(value)
    if _MEDIA_TYPE.match(parsed.value):
        return parsed
    return Parameters("text/plain", parsed.texts, parsed.views)


def _is_multipart(part: Part) -> bool:
    return part.media_type.startswith("multipart/")


class _Reading:
    """One walk over one message."""

    def __init__(self, raw: bytes, head: Head, limits: Limits, *, shortcuts: bool = True) -> None:
        self._raw = raw
        self._head = head
        self._max_parts = limits.max_parts
        self._max_depth = max(1, min(limits.max_part_depth, _DEEPEST))
        self._shortcuts = shortcuts
        self._count = 0
        self._full = False

    def plain(self) -> Part | None:
        """The root of a message whose structure is beyond doubt, else None."""
        if not self._head.clean:
            return None
        root = Part(self._head, 0, self._head.body, len(self._raw), content_type(self._head))
        return root if not _is_multipart(root) or self._fill(root, 1) else None

    def _fill(self, part: Part, depth: int) -> bool:
        """Adds the parts of a multipart, down to the leaves; False where anything about them is in doubt."""
        name = part.content_type.views.get("boundary", "")
        sound = part.media_type in _PLAIN_MULTIPARTS and name and name == name.strip()
        if not sound or len(name) > boundary.MAX_LENGTH or depth > min(self._max_depth, _PLAIN_DEPTH):
            return False
        lines = boundary.find(self._raw, part.body, part.end, name.encode("latin-1"), _PLAIN_LINES)
        self._count += len(lines)
        if not 2 <= len(lines) < _PLAIN_LINES or not lines[-1].closes or self._count > self._max_parts:
            return False
        for line, following in itertools.pairwise(lines):
            if line.closes or line.end >= following.start:
                return False
            head = header.read(self._raw, line.end, following.start)
            child = Part(head, line.end, head.body, following.start, content_type(head))
            if not head.clean or child.media_type.startswith("message/"):
                return False
            if _is_multipart(child) and not self._fill(child, depth + 1):
                return False
            part.children.append(child)
        return True

    def root(self, span: Span | None) -> Part:
        """The whole tree. With flanker's span each step is held against it, and Unfit is raised where they part."""
        return self._part(self._head, 0, len(self._raw), _TEXT, 1, span)

    def _part(self, head: Head, start: int, end: int, default: Parameters, depth: int, span: Span | None) -> Part:
        self._count += 1
        kind = content_type(head, default)
        multipart = kind.value.startswith("multipart/")
        if span is not None and (span.start != start or multipart != (span.main == "multipart")):
            raise Unfit("structure")
        part = Part(head, start, head.body, end, kind)
        if not multipart:
            if span is not None and span.end != end:
                raise Unfit("structure")
            return part
        if depth > self._max_depth:
            return Part(_NO_HEAD, start, start, end, _WHOLE)
        if span is None:
            lines = self._delimiters(part)
            if all(line.closes for line in lines):
                return self._unsplit(part)
            self._split(part, lines, depth)
        else:
            self._split_as(part, span, depth)
        # Empty parts leave nothing of a multipart.
        return part if part.children else self._as_text(part, end)

    def _delimiters(self, part: Part) -> list[Delimiter]:
        """The delimiter lines of a multipart, by its boundary or, where that one isn't there, by one that the body
        shows.
        """
        limit = self._max_parts - self._count + 2
        for value in boundary.candidates(part.content_type.views.get("boundary", "")):
            lines = boundary.find(self._raw, part.body, part.end, value, limit)
            if lines:
                return lines
        adopted = boundary.adopt(self._raw, part.body, part.end)
        return boundary.find(self._raw, part.body, part.end, adopted, limit) if adopted else []

    def _split(self, part: Part, lines: list[Delimiter], depth: int) -> None:
        for number, line in enumerate(lines):
            end = lines[number + 1].start if number + 1 < len(lines) else part.end
            if line.closes or self._full:
                continue
            if self._count >= self._max_parts:
                self._full = True
                part.children.append(Part(_NO_HEAD, line.end, line.end, len(self._raw), _WHOLE))
                continue
            self._add(part, line.end, max(line.end, end), depth, None)

    def _split_as(self, part: Part, span: Span, depth: int) -> None:
        """Splits where flanker did, which must be at every line of the declared boundary and nowhere else."""
        value = part.content_type.views.get("boundary", "").encode("latin-1")
        if not value or len(value) > boundary.MAX_LENGTH or self._count + len(span.parts) > self._max_parts:
            raise Unfit("limits" if value else "boundary")
        lines = boundary.find(self._raw, part.body, part.end, value, len(span.parts) + 2)
        opening = [line for line in lines if not line.closes]
        if not opening or len(opening) != len(span.parts) or (len(opening) != len(lines) and not lines[-1].closes):
            raise Unfit("boundary")
        ends = [*(line.start for line in lines[1:]), part.end]
        for line, end, child in zip(opening, ends, span.parts, strict=False):
            if line.end > end:
                raise Unfit("boundary")
            self._add(part, line.end, end, depth, child)

    def _add(self, part: Part, start: int, end: int, depth: int, span: Span | None) -> None:
        digest = part.media_type == "multipart/digest"
        default = Parameters("message/rfc822", {}, {}) if digest else _TEXT
        head = header.read(self._raw, start, end, shortcuts=self._shortcuts)
        child = self._part(head, start, end, default, depth + 1, span)
        if child.is_multipart or child.head.fields or child.body < child.end or child.media_type != "text/plain":
            part.children.append(child)

    def _unsplit(self, part: Part) -> Part:
        """A multipart without a part: its body is text, unless there is nothing in it."""
        blank = part.end - part.body < _BLANK and not self._raw[part.body : part.end].strip()
        return self._as_text(part, part.end if blank else part.body)

    @staticmethod
    def _as_text(part: Part, body: int) -> Part:
        fields = [field for field in part.head.fields if field.key != "content-disposition"]
        return Part(Head(fields, part.head.body, False), part.start, body, part.end, _TEXT)
