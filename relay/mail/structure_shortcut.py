"""The tree of parts of a message whose structure is beyond doubt: the shortcut that most mails take."""

from __future__ import annotations

from relay.mail import boundary, description, header_block
from relay.mail.description import Description
from relay.mail.message import Limits
from relay.mail.part import Part

#: The multiparts that mails are made of, how deep in each other, and how many lines between parts.
_MULTIPARTS = frozenset(("multipart/alternative", "multipart/mixed", "multipart/related"))
_DEPTH = 5
_LINES = 50


def read(raw: bytes, about: Description, body: int, limits: Limits) -> Part | None:
    """The root of the tree, whose sound header block ends at `body`; None where anything below is in doubt."""
    root = Part(about, 0, body, len(raw))
    if about.multipart and _fill(raw, root, min(_DEPTH, max(1, limits.max_part_depth)), limits.max_parts) < 0:
        return None
    return root


def _fill(raw: bytes, part: Part, depth: int, left: int) -> int:
    """Adds the parts of a multipart, down to the leaves: at most `depth` levels, with at most `left` lines between
    parts. How many of these are left; -1 where anything is in doubt.
    """
    kind = part.about.content_type
    name = kind.views.get("boundary", "")
    if not depth or kind.value not in _MULTIPARTS or not 0 < len(name) <= boundary.MAX_LENGTH or name != name.strip():
        return -1
    lines = boundary.find(raw, part.body, part.end, name.encode("latin-1"), limit=_LINES)
    left -= len(lines)
    if not 2 <= len(lines) < _LINES or not lines[-1][2] or left < 0:
        return -1
    add = part.children.append
    _, start, closes = lines[0]
    for end, following, following_closes in lines[1:]:
        if closes or start >= end:
            return -1
        stop = header_block.near_end(raw, start, end)
        body = stop + 4
        about = description.of_block(raw[start:stop]) if stop >= 0 else None
        if about is None:
            head, body = header_block.read(raw, start, end)
            about = description.of(head)
        if not about.head.clean or about.content_type.value.startswith("message/"):
            return -1
        child = Part(about, start, body, end)
        if about.multipart:
            # A delimiter line in the header block may be the end of it.
            if raw.find(b"\n--", start, body) >= 0:
                return -1
            left = _fill(raw, child, depth - 1, left)
            if left < 0:
                return -1
        add(child)
        start, closes = following, following_closes
    return left
