"""The markup of an HTML document, token by token, as browsers find it (WHATWG HTML section 13.2.5), in linear time.

A mail's HTML is damaged as often as not. What a browser would swallow to the end of the document, such as a comment
that is never closed, is in `Markup.closer`, so that something can stand behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

#: Elements whose content is no markup.
RAW_TEXT: Final = frozenset(("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes"))

#: A value of an attribute and what stands behind it, up to the next one.
_VALUE = r"=\s*+(?:\"[^\"]*+\"|'[^']*+')?[^=>]*+"
#: Each alternative takes all that it can and can't fail later, so that no octet is gone through twice. It is the
#: beginning of a comment that is not empty. The engine remembers each value until the match is done, so they have a
#: bound.
_MARKUP = re.compile(
    r"<(?:"
    r"(?P<comment>!--(?P<empty>-?>)?)"
    rf"|(?P<close>/?)(?P<name>[A-Za-z][^\s/>]*+)(?P<attributes>[^=>]*+(?:{_VALUE}){{0,100}})(?P<tag_end>>?)"
    r"|[!?/][^>]*+>?"
    r")"
)
_MORE_ATTRIBUTES = re.compile(rf"(?:{_VALUE}){{1,100}}")
_COMMENT_END = re.compile(r"--!?>")
_ATTRIBUTE = re.compile(r"([^\s\"'<>/=]++)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s\"'>]*+)))?")
_RAW_TEXT_ENDS = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in RAW_TEXT}
_MAX_ATTRIBUTES = 50


class Token(NamedTuple):
    """One piece of markup, `html[start:end]`. `name` is an element's, lower case, with a slash before it where it ends;
    `!` for a declaration, empty for a comment. `attributes` are as written.
    """

    name: str
    start: int
    end: int
    attributes: str


class Markup:
    """The tokens of a document. When they have been gone through, `closer` ends what the document left open, and
    `text_from`: where a `<` begins a tag that has no end: from there on everything is text; -1 without one.
    """

    def __init__(self, html: str) -> None:
        self._html = html
        self.closer = ""
        self.text_from = -1

    def __iter__(self) -> Iterator[Token]:
        html = self._html
        position = 0
        while (match := _MARKUP.search(html, position)) is not None:
            start, position = match.span()
            name = match["name"]
            if name is None:
                if not match["comment"]:
                    yield Token("!", start, position, "")
                    continue
                if not match["empty"]:
                    comment_end = _COMMENT_END.search(html, position)
                    if comment_end is None:
                        self.closer = "-->"
                    position = comment_end.end() if comment_end else len(html)
                yield Token("", start, position, "")
                continue
            attributes = match["attributes"]
            if not match["tag_end"]:
                while (more := _MORE_ATTRIBUTES.match(html, position)) is not None:
                    position = more.end()
                if position == len(html):
                    self.text_from = start
                    return
                attributes = html[match.start("attributes") : position]
                position += 1
            name = name.lower()
            if match["close"]:
                yield Token("/" + name, start, position, "")
                continue
            yield Token(name, start, position, attributes)
            if name in RAW_TEXT:
                closing = _RAW_TEXT_ENDS[name].search(html, position)
                if closing is None:
                    self.closer = f"</{name}>"
                    return
                position = closing.start()


def attribute(attributes: str, name: str) -> str:
    """The value of an attribute, as written; empty where there is none. The first fifty are looked at."""
    for number, match in enumerate(_ATTRIBUTE.finditer(attributes)):
        if number >= _MAX_ATTRIBUTES:
            break
        if match[1].lower() == name:
            return match[2] or match[3] or match[4] or ""
    return ""
