"""The tree of parts of a message (RFC 2046), by offsets into its raw octets."""

from __future__ import annotations

from relay.mail import boundary, description, flanker_scan, header_block, structure_shortcut
from relay.mail.boundary import Delimiter
from relay.mail.description import Description
from relay.mail.flanker_scan import Span, Unfit
from relay.mail.header_block import Head
from relay.mail.message import Limits
from relay.mail.parameters import Parameters
from relay.mail.part import Part

#: A tree is walked by recursion: whatever the setting says, it is not followed deeper than this.
_DEEPEST = 200
#: A body is searched for something to read up to this many octets; a longer one is text whatever it holds.
_BLANK = 1000

#: What lies beyond a limit, and is kept as it is.
_REST = description.assumed(Head([], {}, True), Parameters("application/octet-stream", texts={}, views={}))


def read(raw: bytes, limits: Limits, *, shortcuts: bool = True) -> tuple[Part, str]:
    """The message's root part, and what read it: `shortcut`, `flanker`, or `fallback:<cause>`. Never raises.

    The shortcut is for what needs no parser: a message of one part, and multiparts (mixed, related, alternative) whose
    header blocks and delimiter lines are all as they should be. Everything else is flanker's. What flanker found is
    held against the delimiter lines in the octets; where it raises, or took a line for what it isn't, the tolerant
    reading stands, and the cause is counted.
    """
    about, body = _described(raw, 0, len(raw), description.TEXT, shortcuts=shortcuts)
    if shortcuts and about.head.clean:
        root = structure_shortcut.read(raw, about, body, limits)
        if root is not None:
            return root, "shortcut"
    try:
        span = flanker_scan.scan(raw)
        return _StructureReader(raw, limits, shortcuts=shortcuts).root(about, body, span), "flanker"
    except Unfit as unfit:
        return _StructureReader(raw, limits, shortcuts=shortcuts).root(about, body, None), f"fallback:{unfit.cause}"


def _described(raw: bytes, start: int, end: int, default: Parameters, *, shortcuts: bool) -> tuple[Description, int]:
    """What the header block says that begins at `start`, and where the body begins.

    A delimiter line of the boundary that the block itself declares ends it, even without an empty line before.
    """
    head, body = header_block.read(raw, start, end, shortcuts=shortcuts)
    about = description.of(head, default)
    if about.multipart and raw.find(b"\n--", start, body) >= 0:
        for value in boundary.candidates(about.content_type.views.get("boundary", "")):
            lines = boundary.find(raw, start, body, value, limit=1)
            if lines and lines[0].start > start:
                body = raw.index(b"--", lines[0].start)
                head, _ = header_block.read(raw, start, body, shortcuts=shortcuts)
                return description.of(header_block.made_of(head.fields, clean=False), default), body
    return about, body


class _StructureReader:
    """One walk over one message."""

    def __init__(self, raw: bytes, limits: Limits, *, shortcuts: bool) -> None:
        self._raw = raw
        self._max_parts = limits.max_parts
        self._max_depth = max(1, min(limits.max_part_depth, _DEEPEST))
        self._shortcuts = shortcuts
        self._count = 0
        self._full = False

    def root(self, about: Description, body: int, span: Span | None) -> Part:
        """The whole tree. With flanker's span each step is held against it, and Unfit is raised where they part."""
        return self._part(Part(about, 0, body, len(self._raw)), 1, span)

    def _part(self, part: Part, depth: int, span: Span | None) -> Part:
        """The part with its parts, or what is kept instead of it."""
        self._count += 1
        start, end, multipart = part.start, part.end, part.about.multipart
        if span is not None and (span.start != start or multipart != (span.main == "multipart")):
            raise Unfit("structure")
        if not multipart:
            if span is not None and span.end != end:
                raise Unfit("structure")
            return part
        if depth > self._max_depth:
            return Part(_REST, start, start, end)
        if span is None:
            lines = self._delimiters(part)
            if all(line.closes for line in lines):
                return self._unsplit(part, lines)
            self._split(part, lines, depth)
        else:
            self._split_as(part, span, depth)
        # Empty parts leave nothing of a multipart.
        return part if part.children else self._as_text(part, end, end)

    def _delimiters(self, part: Part) -> list[Delimiter]:
        """The delimiter lines of a multipart, by its boundary or, where that one isn't there, by one that the body
        shows.
        """
        limit = self._max_parts - self._count + 2
        for value in boundary.candidates(part.about.content_type.views.get("boundary", "")):
            lines = boundary.find(self._raw, part.body, part.end, value, limit=limit)
            if lines:
                return lines
        adopted = boundary.adopt(self._raw, part.body, part.end)
        return boundary.find(self._raw, part.body, part.end, adopted, limit=limit) if adopted else []

    def _split(self, part: Part, lines: list[Delimiter], depth: int) -> None:
        for number, line in enumerate(lines):
            end = lines[number + 1].start if number + 1 < len(lines) else part.end
            if line.closes or self._full:
                continue
            if self._count >= self._max_parts:
                self._full = True
                part.children.append(Part(_REST, line.end, line.end, len(self._raw)))
                continue
            self._add(part, line.end, max(line.end, end), depth=depth, span=None)

    def _split_as(self, part: Part, span: Span, depth: int) -> None:
        """Splits where flanker did, which must be at every line of the declared boundary and nowhere else."""
        value = part.about.content_type.views.get("boundary", "").encode("latin-1")
        if not value or len(value) > boundary.MAX_LENGTH or self._count + len(span.parts) > self._max_parts:
            raise Unfit("limits" if value else "boundary")
        lines = boundary.find(self._raw, part.body, part.end, value, limit=len(span.parts) + 2)
        opening = [line for line in lines if not line.closes]
        if not opening or len(opening) != len(span.parts) or (len(opening) != len(lines) and not lines[-1].closes):
            raise Unfit("boundary")
        ends = [*(line.start for line in lines[1:]), part.end]
        for line, end, child in zip(opening, ends, span.parts, strict=False):
            if line.end > end:
                raise Unfit("boundary")
            self._add(part, line.end, end, depth=depth, span=child)

    def _add(self, part: Part, start: int, end: int, *, depth: int, span: Span | None) -> None:
        default = description.MESSAGE if part.media_type == "multipart/digest" else description.TEXT
        about, body = _described(self._raw, start, end, default, shortcuts=self._shortcuts)
        child = self._part(Part(about, start, body, end), depth + 1, span)
        if child.is_multipart or child.about.head.fields or child.body < child.end or child.media_type != "text/plain":
            part.children.append(child)

    def _unsplit(self, part: Part, lines: list[Delimiter]) -> Part:
        """A multipart without a part: what stands between its delimiter lines is text, unless nothing is there."""
        starts = [part.body, *(line.end for line in lines)]
        ends = [*(line.start for line in lines), part.end]
        stretches = [(start, max(start, end)) for start, end in zip(starts, ends, strict=True)]
        texts = [self._as_text(part, *stretch) for stretch in stretches if not self._is_blank(*stretch)]
        if len(texts) < 2:
            return texts[0] if texts else self._as_text(part, part.end, part.end)
        part.children = texts
        return part

    def _is_blank(self, start: int, end: int) -> bool:
        return end - start < _BLANK and not self._raw[start:end].strip()

    @staticmethod
    def _as_text(part: Part, body: int, end: int) -> Part:
        fields = [field for field in part.about.head.fields if field.key != "content-disposition"]
        about = description.assumed(header_block.made_of(fields, clean=False), description.TEXT)
        return Part(about, part.start, body, end)
