"""One HTML document out of several pieces that stand one after another in a message."""

from __future__ import annotations

from typing import Final, NamedTuple

from relay.mail.html_text import IN_HEAD, UNSEEN
from relay.mail.html_tokens import Markup

#: What stands between two pieces.
SEPARATOR: Final = "<br/>\n"

_STRUCTURE: Final = frozenset(("html", "/html", "head", "/head", "body", "/body", "!"))
_OF_A_DOCUMENT: Final = frozenset(("html", "head", "body"))


class _Outline(NamedTuple):
    """A piece that leaves nothing open, and where something can be added to it: `opening` is before all that is seen of
    it, `closing` behind it.
    """

    html: str
    is_document: bool
    opening: int
    closing: int


def join(pieces: list[str]) -> str:
    """The pieces as one: those before the first whole document stand behind its `<body …>`, those after it before its
    last `</body>`. A later document gives the inside of its body and its style sheets. What one leaves open, a comment
    or a style sheet, is closed, so that it swallows no other.
    """
    if len(pieces) == 1:
        return pieces[0]
    outlines = [_outline(piece) for piece in pieces]
    first = next((number for number, outline in enumerate(outlines) if outline.is_document), None)
    if first is None:
        return SEPARATOR.join([outline.html for outline in outlines])
    before = [outline.html + SEPARATOR for outline in outlines[:first]]
    rest = outlines[first + 1 :]
    after = [SEPARATOR + (_inside(outline.html) if outline.is_document else outline.html) for outline in rest]
    document, _, opening, closing = outlines[first]
    return "".join([document[:opening], *before, document[opening:closing], *after, document[closing:]])


def _outline(html: str) -> _Outline:
    markup = Markup(html)
    is_document = in_head = unseen = False
    opening = closing = first_seen = -1
    #: Behind the last of what is seen.
    last_seen = position = 0
    for name, start, end, _ in markup:
        if not (unseen or in_head) and html[position:start].strip():
            first_seen, last_seen = position if first_seen < 0 else first_seen, start
        position, unseen = end, name in UNSEEN
        if in_head and _ends_head(name):
            in_head = False
        if name in _OF_A_DOCUMENT or (name == "!" and html[start : start + 9].lower() == "<!doctype"):
            is_document = True
            in_head = name == "head"
            if name == "body" and opening < 0 and first_seen < 0:
                opening = end
        elif name == "/body" or (name == "/html" and closing < last_seen):
            closing = start
        elif name and name not in _STRUCTURE and not in_head and name.removeprefix("/") not in IN_HEAD:
            first_seen, last_seen = start if first_seen < 0 else first_seen, end
    if not (unseen or in_head) and html[position:].strip():
        first_seen, last_seen = position if first_seen < 0 else first_seen, len(html)
    if markup.text_from >= 0:
        html = html[: markup.text_from] + html[markup.text_from :].replace("<", "&lt;")
    html += markup.closer
    if closing < last_seen or markup.closer:
        closing = len(html)
    if opening < 0:
        opening = closing if first_seen < 0 else first_seen
    return _Outline(html, is_document, min(opening, closing), closing)


def _ends_head(name: str) -> bool:
    return name in ("/head", "body") or (name.removeprefix("/") not in IN_HEAD and name not in ("", "!"))


def _inside(html: str) -> str:
    """What is seen of a document, and its style sheets, without the elements that only one may have."""
    kept: list[str] = []
    in_head = False
    position = 0
    raw_text = ""
    for name, start, end, _ in Markup(html):
        if not in_head or raw_text == "style":
            kept.append(html[position:start])
        position, raw_text = end, name if name in UNSEEN else ""
        if in_head and _ends_head(name):
            in_head = False
        if name == "head":
            in_head = True
        elif name not in _STRUCTURE and (not in_head or name in ("style", "/style")):
            kept.append(html[start:end])
    if not in_head or raw_text == "style":
        kept.append(html[position:])
    return "".join(kept)
