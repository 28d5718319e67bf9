"""Between plain text and HTML: text as HTML shows it, and HTML as text. Both are linear in their input."""

from __future__ import annotations

import re
from contextlib import suppress
from html import escape, unescape
from typing import Final

from relay.mail.html_tokens import RAW_TEXT, Markup, attribute

#: Blanks that HTML does not show: all but the last of a row, and one at the start of a line.
_BLANK_RUN = re.compile(r" (?= )|^ ", re.MULTILINE)
_TAB: Final = "    "

#: Elements that begin and end a line.
_BLOCKS: Final = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "dir"),
        *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
        *("header", "hr", "html", "legend", "li", "main", "menu", "nav", "ol", "option", "p", "pre", "section"),
        *("summary", "table", "tbody", "tfoot", "thead", "tr", "ul"),
    )
)
_CELLS: Final = frozenset(("td", "th"))
#: Elements whose content is not shown.
UNSEEN: Final = RAW_TEXT - {"textarea", "xmp"}
#: What belongs to a head; any other element ends it (WHATWG HTML section 13.2.6.4.4).
IN_HEAD: Final = frozenset(("base", "head", "link", "meta", "noscript", "script", "style", "template", "title"))
_WITHOUT_PLACE: Final = ("#", "javascript:", "cid:", "data:")

_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_CONTROLS = dict.fromkeys([*range(9), *range(0x0E, 0x20), 0x7F])
_SEVERAL_BLANKS = re.compile(r" {2,}")
_SCHEME = re.compile(r"\A(?:https?://|mailto:|tel:)")
#: Begins and ends a line, among the text; it can't be part of it.
_LINE: Final = "\x01"


def escaped_size(text: str) -> int:
    """Characters that `escaped` makes of `text`, at most."""
    tabs = text.count("\t")
    blanks = 2 * text.count("  ") + text.count("\n ") + (len(_TAB) + 1) * tabs + 1
    marks = 3 * (text.count("<") + text.count(">")) + 4 * (text.count("&") + text.count("\n"))
    return len(text) + (len(_TAB) - 1) * tabs + marks + (len("&nbsp;") - 1) * blanks


def escaped(text: str) -> str:
    """Plain text, with LF line ends, as HTML that shows the same: a `<br>` a line, and `&nbsp;` for the blanks that
    HTML would not show. (Outlook ignores the white-space property of CSS.)
    """
    shown = escape(text.replace("\t", _TAB), quote=False)
    return _BLANK_RUN.sub("&nbsp;", shown).replace("\n", "<br>\n")


def reduced(html: str) -> str:
    """HTML as plain text with LF line ends: blocks are lines, a link is its text with the URL in parentheses, an image
    is its alternative text. Head, style, script and comments are left out. It is never longer than `html`, but for
    the blanks around what stands side by side.
    """
    return _Reduction().read(html)


class _Reduction:
    """One walk over one document."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._in_head = False
        self._preformatted = 0
        #: Templates that are open: nothing in them is shown.
        self._templates = 0
        #: The link that is open, and where its text begins.
        self._url = ""
        self._link_text = 0

    def read(self, html: str) -> str:
        """The text of the document."""
        position = 0
        unseen = False
        for name, start, end, attributes in Markup(html):
            if start > position and not unseen:
                self._add(html[position:start])
            position, unseen = end, name in UNSEEN
            self._element(name, attributes)
        if position < len(html) and not unseen:
            self._add(html[position:])
        self._close_link()
        lines = map(_tidy, "".join(self._text).split(_LINE))
        return "\n".join(filter(None, lines)).replace("\xa0", " ")

    def _element(self, name: str, attributes: str) -> None:
        plain_name = name.removeprefix("/")
        if self._in_head and (name in ("/head", "body") or (plain_name not in IN_HEAD and name not in ("", "!"))):
            self._in_head = False
        if plain_name in _BLOCKS:
            self._text.append(_LINE)
            if plain_name == "pre":
                self._preformatted = max(0, self._preformatted + (1 if name == "pre" else -1))
        elif plain_name == "br":
            self._text.append("\n")
        elif plain_name in _CELLS:
            self._text.append(" ")
        elif name == "head":
            self._in_head = True
        elif plain_name == "template":
            self._templates = max(0, self._templates + (1 if name == "template" else -1))
        elif plain_name == "a":
            self._close_link()
            if name == "a" and attributes:
                self._open_link(attribute(attributes, "href"))
        elif name == "img" and attributes:
            self._add(attribute(attributes, "alt"))

    def _open_link(self, url: str) -> None:
        url = "".join(_unescaped(url).split())
        self._url = "" if url.lower().startswith(_WITHOUT_PLACE) else url
        self._link_text = len(self._text)

    def _close_link(self) -> None:
        if self._url:
            shown = "".join(self._text[self._link_text :]).strip(f" \n{_LINE}\xa0")
            if _bare(shown) != _bare(self._url):
                self._text.append(f" ({self._url})" if shown else f"({self._url})")
            self._url = ""

    def _add(self, text: str) -> None:
        if self._templates or (self._in_head and text.isspace()):
            return
        # Text ends a head.
        self._in_head = False
        text = _unescaped(text)
        if self._preformatted:
            text = text.replace("\r\n", "\n").replace("\t", _TAB).replace(" ", "\xa0")
        else:
            text = _BLANKS.sub(" ", text)
        self._text.append(text)


def _unescaped(text: str) -> str:
    if "&" in text:
        # A number of thousands of digits is no character.
        with suppress(ValueError):
            text = unescape(text)
    return text.translate(_CONTROLS)


def _tidy(line: str) -> str:
    return _SEVERAL_BLANKS.sub(" ", line).replace(" \n", "\n").replace("\n ", "\n").strip("\n ")


def _bare(url: str) -> str:
    """What two URLs have in common that look like the same to a reader."""
    return _SCHEME.sub("", url.strip().lower()).rstrip("/")
