"""One HTML document out of several pieces that stand one after another in a message."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from relay.mail.html_text import IN_HEAD, UNSEEN
from relay.mail.html_tokens import Markup

#: What stands between two pieces.
SEPARATOR: Final = "<br/>\n"

_STRUCTURE: Final = frozenset(("html", "/html", "head", "/head", "body", "/body", "!"))
_OF_A_DOCUMENT: Final = frozenset(("html", "head", "body"))
#: A document of frames shows nothing beside them, and mail programs show no frames.
_FRAMES: Final = frozenset(("frameset", "/frameset", "frame"))
#: What begins and ends a template, which shows nothing.
_TEMPLATE: Final = {"template": 1, "/template": -1}
#: A value of an attribute; the quotation mark of one that nothing closes.
_VALUE = re.compile(r"=\s*+(?:\"[^\"]*+\"|'[^']*+'|([\"']))")


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
    last `</body>`. A later document gives the inside of its body and its style sheets. What one leaves open, a comment,
    a style sheet or a quoted value, is closed, so that it swallows no other; framesets are left out.
    """
    if len(pieces) == 1:
        return pieces[0]
    outlines = [_outline(_sound(piece)) for piece in pieces]
    first = next((number for number, outline in enumerate(outlines) if outline.is_document), None)
    if first is None:
        return SEPARATOR.join([outline.html for outline in outlines])
    before = [outline.html + SEPARATOR for outline in outlines[:first]]
    rest = outlines[first + 1 :]
    after = [SEPARATOR + (_inside(outline.html) if outline.is_document else outline.html) for outline in rest]
    document, _, opening, closing = outlines[first]
    return "".join([document[:opening], *before, document[opening:closing], *after, document[closing:]])


def _sound(html: str) -> str:
    """`html` without frames, and with a quotation mark before the `>` of a tag in which one is missing."""
    kept: list[str] = []
    position = 0
    for name, start, end, attributes in Markup(html):
        if name in _FRAMES:
            kept.append(html[position:start])
            position = end
            continue
        unclosed = next(filter(None, (match[1] for match in _VALUE.finditer(attributes))), "")
        if unclosed:
            kept += [html[position : end - 1], unclosed]
            position = end - 1
    return "".join([*kept, html[position:]]) if kept else html


def _outline(html: str) -> _Outline:
    markup = Markup(html)
    is_document = in_head = unseen = False
    opening = closing = first_seen = -1
    #: Behind the last of what is seen.
    last_seen = position = 0
    #: Templates that are open: nothing in them is seen.
    templates = 0
    for name, start, end, _ in markup:
        if not (unseen or templates) and html[position:start].strip():
            # Text ends a head.
            in_head = False
            first_seen, last_seen = position if first_seen < 0 else first_seen, start
        if templates or name == "template":
            templates += _TEMPLATE.get(name, 0)
            position, unseen = end, False
            continue
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
    if not (unseen or templates) and html[position:].strip():
        first_seen, last_seen = position if first_seen < 0 else first_seen, len(html)
    if markup.text_from >= 0:
        html = html[: markup.text_from] + html[markup.text_from :].replace("<", "&lt;")
    closer = markup.closer + "</template>" * templates
    html += closer
    if closing < last_seen or closer:
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
    position = templates = 0
    raw_text = ""
    for name, start, end, _ in Markup(html):
        if templates:
            templates += _TEMPLATE.get(name, 0)
            position = end
            continue
        if in_head and not raw_text and html[position:start].strip():
            in_head = False
        if not in_head or raw_text == "style":
            kept.append(html[position:start])
        position, raw_text = end, name if name in UNSEEN else ""
        if name == "template":
            templates = 1
            continue
        if in_head and _ends_head(name):
            in_head = False
        if name == "head":
            in_head = True
        elif name not in _STRUCTURE and (not in_head or name in ("style", "/style")):
            kept.append(html[start:end])
    if not templates and (not in_head or raw_text in ("", "style")):
        kept.append(html[position:])
    return "".join(kept)
