"""Where links stand in an HTML document, by a scanner in the way of HTML's tokenizer (WHATWG HTML section 13.2.5).

It works on the octets of UTF-8, in one pass: all that it looks for is ASCII. A parser that writes the document anew
would change case, quotes, line ends and references. Linear: each search that finds nothing ends the scan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html.entities import html5
from typing import Final

from relay.core.frozen import frozen

_NAME: Final = re.compile(rb"[A-Za-z][^\t\n\f\r />]*")
_BLANKS: Final = re.compile(rb"[\t\n\f\r /]*")
_SPACES: Final = re.compile(rb"[\t\n\f\r ]*")
_ATTRIBUTE: Final = re.compile(rb"=?[^\t\n\f\r />=]*")
_UNQUOTED: Final = re.compile(rb"[^\t\n\f\r >]*")
#: Elements whose content is text for the tokenizer.
_TEXT_ELEMENTS: Final = (
    b"script",
    b"style",
    b"textarea",
    b"title",
    b"xmp",
    b"iframe",
    b"noembed",
    b"noframes",
    b"noscript",
)
_CLOSE: Final = {name: re.compile(rb"</" + name + rb"(?=[\t\n\f\r />])", re.IGNORECASE) for name in _TEXT_ELEMENTS}
#: Elements whose content is markup that is not shown as part of the document, or not by HTML's rules.
_HIDDEN: Final = (b"template", b"svg", b"math")
#: Octets of a name that anything here asks for, at most.
_LONGEST_NAME: Final = 16
#: Octets of a tag of which a copy is made, at most; and of all that lies between links of which one is made for all.
_LONGEST_TAG: Final = 65_536
_LONGEST_RUN: Final = 262_144
#: Links that are looked at together, at most.
_TOGETHER: Final = 64
#: An attribute as nearly all are written; others are read piece by piece.
_QUOTED: Final = re.compile(rb"[\t\n\f\r ]++([A-Za-z][A-Za-z0-9:_-]*+)=(?:\"([^\"]*+)\"|'([^']*+)')")
_UNSUBSCRIBE: Final = re.compile(rb"unsubscribe", re.IGNORECASE)
#: Attributes as nearly all are written; of one tag 20 at most, since a repetition that may go back takes memory for
#: each. `%b` is what they are not called, and what may stand in their quotes.
_WRITTEN: Final = rb"[\t\n\f\r ]++%b[a-z][a-z0-9:_-]*+=(?:\"%b*+\"|'%b*+')"
_ANY: Final = _WRITTEN % (b"", b'[^"]', b"[^']")
_BEFORE_HREF: Final = _WRITTEN % (b"(?!href=)", b'[^"]', b"[^']")
_WITHOUT_BRACKET: Final = _WRITTEN % (b"", b'[^"<]', b"[^'<]")
#: Start tags that are looked at, of other elements than <a>; of the others only what names one is.
_NAMED: Final = rb"s(?:cript|tyle|vg)|t(?:itle|e(?:xtarea|mplate))|xmp|iframe|no(?:embed|frames|script)|math|plaintext"
_NOT_NAMED: Final = rb"(?:[b-hj-loq-ru-wyz]|p(?!l)|(?!a[\t\n\f\r />]|%b)[a-z])[a-z0-9:-]*+" % _NAMED
#: The rest of a start tag with five attributes at most, as nearly all are written.
_MORE: Final = rb"(?:>| [a-z][a-z:-]*+=\"[^\"<]*+\"%b)"
_SHORT_TAG: Final = _MORE % (_MORE % (_MORE % (_MORE % (_MORE % b">"))))
#: The rest of most end tags; not of those that are looked at.
_END: Final = rb"(?:[ac-ln-ru-z]|b(?!ody)|m(?!ath)|s(?!vg)|t(?!emplate))[a-z0-9]*+>"
#: Where something begins that is to be looked at. Groups: the href of an <a> as nearly all are written, a usual one
#: (see UsualLinks), or any in either quotes. What is passed over holds no second `<`: text, and tags of no element that
#: is named here.
# perf: 17 KB of HTML with 40 links take 0.06 ms instead of 0.9 ms, in which each tag was read by itself; and instead of
# 0.13 ms without the first lookahead, for the tags that nearly all are.
# python -m timeit -s 'from relay.delivery.html_links import links; t = b"<p class=\"c\">text text text text</p>" * 9' \
# -s 'd = (t + b"<a href=\"https://x.example\">x</a>") * 40' 'list(links(d))'
_NOTABLE: Final = re.compile(
    rb"<(?!/%b|%b%b)"
    % (_END, _NOT_NAMED, _SHORT_TAG)
    + rb"(?:a(?:%b){0,20}[\t\n\f\r ]++href=(?:\"(https?://[!#-Z^-~]++)\"|\"([^\"]*+)\"|'([^']*+)')"
    rb"(?:%b){0,20}[\t\n\f\r ]*+>"
    rb"|(?!/(?!body|template|svg|math)[a-z][a-z0-9:-]*+(?:%b){0,20}[\t\n\f\r ]*+/?>|%b(?:%b){0,20}[\t\n\f\r ]*+/?>))"
    % (_BEFORE_HREF, _ANY, _WITHOUT_BRACKET, _NOT_NAMED, _WITHOUT_BRACKET)
)
#: One search for both: one of them alone may be far away, or nowhere, for each comment that the other one ends.
_COMMENT_END: Final = re.compile(rb"--!?>")
#: What begins a comment that ends with `>`.
_BOGUS: Final = (b"!", b"?", b"/")
_REFERENCE: Final = re.compile(r"&(?:#([0-9]{1,8})|#[xX]([0-9a-fA-F]{1,8})|([A-Za-z][A-Za-z0-9]{1,40}))(;?)(?=(=?))")
#: What stands for another character in references to numbers (WHATWG HTML section 13.2.5.80).
_WINDOWS: Final = {code: bytes((code,)).decode("windows-1252", "replace") for code in range(0x80, 0xA0)}


class Link:
    """A start tag <a>. `start` and `end`: where the value of its first `href` stands in the document; -1: it has none.

    `left_alone`: it asks not to be tracked, by `unsubscribe` in an attribute or by `clicktracking="off"`.
    """

    __slots__ = ("end", "left_alone", "start")

    def __init__(self, start: int = -1, end: int = -1, left_alone: bool = False) -> None:
        self.start = start
        self.end = end
        self.left_alone = left_alone

    def add(self, document: bytes, name: tuple[int, int], value: tuple[int, int]) -> None:
        """One more of its attributes. Of two of one name the first counts, as in browsers."""
        if name[1] - name[0] <= _LONGEST_NAME:
            attribute = document[name[0] : name[1]].lower()
            if attribute == b"href" and self.start < 0:
                self.start, self.end = value
            elif attribute == b"clicktracking" and value[1] - value[0] <= _LONGEST_NAME:
                self.left_alone |= document[value[0] : value[1]].strip().lower() == b"off"
        self.left_alone |= _UNSUBSCRIBE.search(document, name[0], value[1]) is not None


@frozen
class UsualLinks:
    """Start tags <a> that follow each other, none of which asks not to be tracked: where the value of `href` stands.

    Each begins with `http://` or `https://`, and is printable ASCII without blanks, double quotes, backslashes and
    square brackets.
    """

    spans: Sequence[tuple[int, int]]


@frozen
class BodyEnd:
    """The first `</body` of the document."""

    start: int


def links(document: bytes) -> Iterator[UsualLinks | Link | BodyEnd]:
    """Every <a> with an href, and the first end of a body, in order; those in Outlook's conditional comments too."""
    scan = _Scan(document)
    while True:
        quoted: list[re.Match[bytes]] = []
        for notable in _NOTABLE.finditer(document, scan.position, scan.limit):
            if notable.lastindex is None:
                yield from scan.links(quoted)
                found = scan.read(notable.start())
                if found is not None:
                    yield found
                break
            quoted.append(notable)
            if len(quoted) == _TOGETHER:
                yield from scan.links(quoted)
                quoted = []
        else:
            yield from scan.links(quoted)
            if not scan.leave_comment():
                return


class _Scan:
    """How far a document has been read, and what it is in there."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self.position = 0
        #: The end of what is being read: the document, or a conditional comment, behind which it goes on at `_after`.
        self.limit = self._after = len(document)
        self._in_comment = False
        #: How many of these elements have begun and not ended.
        self._hidden = dict.fromkeys(_HIDDEN, 0)
        self.is_hidden = False
        self._body_ended = False

    def leave_comment(self) -> bool:
        """Goes on behind the conditional comment whose end was reached; False: it was the document's."""
        if not self._in_comment:
            return False
        self.position, self.limit, self._in_comment = self._after, len(self._document), False
        self._hidden = dict.fromkeys(_HIDDEN, 0)
        self.is_hidden = False
        return True

    def links(self, quoted: Sequence[re.Match[bytes]]) -> Iterator[UsualLinks | Link]:
        """What was found of <a> with an href in quotes, where it is shown. `quoted`: in order."""
        if not quoted or self.is_hidden:
            return
        # perf: 0.45 µs instead of 0.7 µs for each of 40 links where none asks not to be tracked, the search included:
        # python -m timeit -s 'from relay.delivery.html_links import links' \
        # -s 'd = b"<a href=\"https://x.example\">x</a>" * 40' 'list(links(d))'
        if quoted[-1].end() - quoted[0].start() <= _LONGEST_RUN and {each.lastindex for each in quoted} == {1}:
            tags = b"".join([each[0] for each in quoted]).lower()
            if tags.find(b"clicktracking") < 0 and tags.find(b"unsubscribe") < 0:
                yield UsualLinks([each.span(1) for each in quoted])
                return
        usual: list[tuple[int, int]] = []
        for each in quoted:
            begin, end = each.span()
            tag = each[0].lower() if end - begin <= _LONGEST_TAG else b"clicktracking"
            tells = tag.find(b"clicktracking") >= 0
            left_alone = tag.find(b"unsubscribe") >= 0
            group = each.lastindex or 0
            if group == 1 and not tells and not left_alone:
                usual.append(each.span(group))
                continue
            if usual:
                yield UsualLinks(usual)
                usual = []
            if not tells:
                yield Link(*each.span(group), left_alone)
                continue
            found = self.read(begin)
            if isinstance(found, Link):
                yield found
        if usual:
            yield UsualLinks(usual)

    def read(self, begin: int) -> Link | BodyEnd | None:
        """Reads what begins with the `<` there, piece by piece."""
        document, limit = self._document, self.limit
        if document.startswith(b"<!--", begin):
            self._comment(begin)
            return None
        following = document[begin + 1 : begin + 2]
        name = _NAME.match(document, begin + 1 + (following == b"/"), limit)
        if name is None:
            # Behind `<` what is no letter is text, behind `<!`, `<?` and `</` it begins a comment.
            self.position = _behind(document, b">", begin + 2, limit) if following in _BOGUS else begin + 1
            return None
        element = name[0].lower() if name.end() - name.start() <= _LONGEST_NAME else b""
        link = Link() if element == b"a" and following != b"/" else None
        end = _attributes(document, name.end(), limit, link)
        if end < 0:
            self.position = limit
            return None
        self.position = end
        if following == b"/":
            return self._end_tag(element, begin)
        if link is None:
            self._start_tag(element)
            return None
        return link if link.start >= 0 and not self.is_hidden else None

    def _comment(self, begin: int) -> None:
        """Outlook reads a conditional comment as a document; no program reads another comment."""
        end = _comment_end(self._document, begin, self.limit)
        if not self._in_comment and self._document[begin + 4 : begin + 7].lower() == b"[if":
            self._in_comment = True
            self.limit, self._after = (self.limit, self.limit) if end < 0 else (end - 3, end)
            self.position = _behind(self._document, b">", begin + 4, self.limit)
        else:
            self.position = self.limit if end < 0 else end

    def _end_tag(self, element: bytes, begin: int) -> BodyEnd | None:
        if element == b"body" and not self._body_ended and not self._in_comment:
            self._body_ended = True
            return BodyEnd(begin)
        if self._hidden.get(element):
            self._hidden[element] -= 1
            self.is_hidden = any(self._hidden.values())
        return None

    def _start_tag(self, element: bytes) -> None:
        if element in self._hidden:
            # An element of SVG or MathML may end in its start tag.
            empty = self._document[self.position - 2 : self.position - 1] == b"/"
            self._hidden[element] += element == b"template" or not empty
            self.is_hidden = any(self._hidden.values())
        elif element == b"plaintext":
            self.position = self.limit
        elif element in _CLOSE and not self._hidden[b"svg"] and not self._hidden[b"math"]:
            close = _CLOSE[element].search(self._document, self.position, self.limit)
            self.position = self.limit if close is None else close.start()


def _comment_end(document: bytes, position: int, limit: int) -> int:
    """Behind the comment that begins at `position`; -1 where it does not end."""
    for early in (position + 2, position + 3):  # `<!-->` and `<!--->`
        if document.startswith(b"-->", early, limit):
            return early + 3
    end = _COMMENT_END.search(document, position + 4, limit)
    return -1 if end is None else end.end()


def _behind(document: bytes, octets: bytes, position: int, limit: int) -> int:
    """Behind the next of these octets; the limit where there is none."""
    found = document.find(octets, position, limit)
    return limit if found < 0 else found + len(octets)


def _attributes(document: bytes, position: int, limit: int, link: Link | None) -> int:
    """Reads the attributes of a tag, for a link; where the tag ends, or -1 where the document ends first."""
    while True:
        quoted = _QUOTED.match(document, position, limit)
        if quoted is not None:
            position = quoted.end()
            if link is not None:
                link.add(document, quoted.span(1), quoted.span(quoted.lastindex or 1))
            continue
        position = _end(_BLANKS, document, position, limit)
        if position >= limit:
            return -1
        if document[position] == 0x3E:
            return position + 1
        name = position, _end(_ATTRIBUTE, document, position, limit)
        position = _end(_SPACES, document, name[1], limit)
        if position >= limit or document[position] != 0x3D:
            value = name[1], name[1]
        else:
            position = _end(_SPACES, document, position + 1, limit)
            quote = document[position : position + 1]
            if quote in (b'"', b"'") and position < limit:
                end = document.find(quote, position + 1, limit)
                if end < 0:
                    return -1
                value, position = (position + 1, end), end + 1
            else:
                value = position, _end(_UNQUOTED, document, position, limit)
                position = value[1]
        if link is not None:
            link.add(document, name, value)


def _end(pattern: re.Pattern[bytes], document: bytes, position: int, limit: int) -> int:
    match = pattern.match(document, position, limit)
    assert match is not None  # noqa: S101 - these match the empty text too
    return match.end()


def unescape(value: str) -> str:
    """An attribute's value with its character references decoded as in attributes: `&copy=1` is none there."""
    if "&" not in value:
        return value
    # perf: 0.2 µs instead of 1.2 µs for a link whose references are all of the one kind that nearly all are:
    # python -m timeit -s 'from relay.delivery.html_links import unescape' 'unescape("https://x.example/?a=1&amp;b=2")'
    replaced = value.replace("&amp;", "&")
    if len(value) - len(replaced) == 4 * value.count("&"):
        return replaced
    return _REFERENCE.sub(_referenced, value)


def _referenced(match: re.Match[str]) -> str:
    decimal, hexadecimal, name, semicolon, equals = match.groups()
    if name is not None:
        # The names without a semicolon are those of old, and none where a letter, a digit or `=` follows.
        known = html5.get(f"{name};") if semicolon else None if equals else html5.get(name)
        return match[0] if known is None else known
    code = int(decimal) if decimal is not None else int(hexadecimal, 16)
    if code in _WINDOWS:
        return _WINDOWS[code]
    if code == 0 or 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
        return "\ufffd"
    return chr(code)
