"""Values with parameters, as Content-Type and Content-Disposition have (RFC 2045 section 5.1, RFC 2231)."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from relay.core.frozen import frozen
from relay.core.memo import memoised
from relay.mail import charset, encoded_word

#: Parameters of one value that are looked at; more than a handful is an attack on time.
_MAX_PARAMETERS = 200
#: Characters of one value that are looked at.
_MAX_LENGTH = 32_768

#: Words between slashes of one value.
_MAX_WORDS = 3

#: Characters of a value that is remembered.
_REMEMBERED = 80

_ONE_PARAMETER = re.compile(
    r"([!#$%&*+./0-9A-Z^_a-z{|}~-]++);[ \t]*([A-Za-z-]{1,100})=(?:\"([ !#-\[\]-~]*+)\"|([!#-'*+\--:<-\[\]-~]++))\Z"
)
#: A word of the value. A `=` behind it makes it the name of a parameter, so that there is no value.
_WORD = re.compile(r"[^;,\s(/\"=]*", re.ASCII)
_SLASH = re.compile(r"/*", re.ASCII)
_IS_NAME = re.compile(r"(?:\*[0-9*]*)?[ \t]*=", re.ASCII)
_BLANKS = re.compile(r"[\s;,]*", re.ASCII)
_NAME = re.compile(r"([^\s=;\"]{1,100})\s*=\s*", re.ASCII)
#: A backslash that ends a value behind an octet above 127 is the second half of a character: it escapes nothing.
_QUOTED = re.compile(r'[^"\\]*+(?:\\(?:(?<=[\x81-\xfe]\\)(?="[ \t]*(?:;|\Z))|.)[^"\\]*+)*', re.DOTALL)
_TO_SEMICOLON = re.compile(r"[^;]*")
#: Where a comment begins behind an unquoted value (RFC 2045 section 5.1). File names hold brackets more often.
_COMMENT = re.compile(r"(?<![ \t])[ \t]++\(")
_NAMES_OF_FILES = frozenset(("filename", "name"))
#: What some programs put around a value instead of quotation marks.
_AROUND_VALUE = "'`<>"
_ESCAPED = re.compile(r'\\(["\\])')
_SECTION = re.compile(r"([^*]+)\*(?:(\d{1,4})(\*?))?\Z")
#: Where a `;` may have been forgotten, and the parameters that may begin there. Two expressions, since one that looked
#: for both would try each blank of a long row anew.
_GAP = re.compile(r"[\s,]++", re.ASCII)
_KNOWN_NAME = re.compile(
    r"(?:boundary|charset|name|filename|format|delsp|type|start|method|report-type|protocol|micalg)(?:\*[0-9*]*)?\s*=",
    re.IGNORECASE | re.ASCII,
)


@frozen
class Parameters:
    """A value and its parameters. `value` is lower case; names are lower case; the texts are decoded, except in
    `views`.

    `views` holds a parameter's octets as a latin-1 view, without RFC 2047 or charset: what a boundary is compared with.
    """

    value: str
    texts: dict[str, str]
    views: dict[str, str]


def parse(view: str, *, shortcuts: bool = True) -> Parameters:
    """The value and parameters in a header's latin-1 view, tolerating `;;`, a missing `;`, comments and unquoted
    specials.

    The first of several parameters of one name counts; RFC 2231 goes before RFC 2047 goes before raw octets. Never
    raises. Raw text that isn't UTF-8 is in the charset that the value itself declares, or in what it shows itself to be
    in. `shortcuts=False` takes nothing as a whole or from memory, for the tests that compare the two ways.
    """
    if not shortcuts:
        return _parse(view[:_MAX_LENGTH])
    return _parse_again(view) if len(view) <= _REMEMBERED else _parse_short(view)


def parse_in(view: str, label: str) -> Parameters:
    """`parse` of a value whose raw text may be in the charset `label`, which another part declares."""
    return _parse(view[:_MAX_LENGTH], label)


def _parse_short(view: str) -> Parameters:
    """A value with one sound parameter as a whole, which takes a fifth of the time: a boundary is another each time."""
    match = _ONE_PARAMETER.match(view) if len(view) <= _MAX_LENGTH and "=?" not in view else None
    if match is None:
        return _parse(view[:_MAX_LENGTH])
    value, name, quoted, text = match.groups()
    texts = {name.lower(): text if quoted is None else quoted}
    return Parameters(value.lower(), texts=texts, views=texts)


#: What it returns must not be changed.
_parse_again = memoised(entries=512, octets=_REMEMBERED + 80)(_parse_short)


def _parse(view: str, label: str = "") -> Parameters:
    if view.isascii() and "\x1b" not in view:
        return _parse_octets(view)
    # Text in a charset whose characters may hold quotes and semicolons is UTF-8 before it is taken apart; a boundary
    # is compared with octets.
    octets = _parse_octets(view)
    converted = charset.utf_8_view(view, octets.views.get("charset", label))
    if converted == view:
        return octets
    texts = _parse_octets(converted).texts
    return Parameters(
        octets.value, texts={name: texts.get(name, text) for name, text in octets.texts.items()}, views=octets.views
    )


def _parse_octets(view: str) -> Parameters:
    value, position = _value(view)
    plain: dict[str, str] = {}
    sections: dict[str, dict[int, tuple[str, bool]]] = {}
    for name, text in _pairs(view, position):
        section = _SECTION.match(name) if "*" in name else None
        if section is None:
            plain.setdefault(name, text)
        else:
            number, extended = (int(section[2]), bool(section[3])) if section[2] else (0, True)
            sections.setdefault(section[1], {}).setdefault(number, (text, extended))
    views = dict(plain)
    texts = {name: encoded_word.decode(text) for name, text in plain.items()}
    for name, numbered in sections.items():
        octets, label = _join([numbered[number] for number in sorted(numbered)])
        views[name] = octets.decode("latin-1")
        text = charset.decode(octets, label)
        texts[name] = encoded_word.decode(views[name]) if not label and "=?" in text else text
    return Parameters(value.strip(_AROUND_VALUE).lower(), texts=texts, views=views)


def _value(view: str) -> tuple[str, int]:
    """What stands before the parameters, and where it ends; blanks and comments around its slash, and quotation marks
    around all of it, are none of it. It is empty where the first parameter stands first.
    """
    start = _skip_comments(view, 0)
    if view.startswith('"', start):
        quoted, stop = _quoted(view, start)
        # The quotes may hold the parameters too.
        inner, _, rest = quoted.partition(";")
        value = "/".join([word.strip(" \t") for word in inner.split("/", _MAX_WORDS)])
        return value, start + 1 + len(inner) if rest else stop
    position = start
    words: list[str] = []
    while len(words) < _MAX_WORDS:
        word = _WORD.match(view, position)
        text = word[0] if word else ""
        end = position + len(text)
        if not words and _IS_NAME.match(view, end):
            return "", start
        words.append(text)
        position = end
        beyond = _skip_comments(view, end)
        if not view.startswith("/", beyond):
            break
        slashes = _SLASH.match(view, beyond)
        position = _skip_comments(view, slashes.end() if slashes else beyond + 1)
    return "/".join(words), position


def _pairs(view: str, position: int) -> list[tuple[str, str]]:
    """Names, in lower case, and values, unquoted, from `position` on."""
    pairs: list[tuple[str, str]] = []
    size = len(view)
    while position < size and len(pairs) < _MAX_PARAMETERS:
        blanks = _BLANKS.match(view, position)
        position = _skip_comments(view, blanks.end() if blanks else position)
        name = _NAME.match(view, position)
        if name is None:
            # Not a parameter: go on after the next separator, or where a known name begins.
            skipped = _TO_SEMICOLON.match(view, position)
            stop = skipped.end() if skipped else size
            known = _forgotten_separator(view, position, stop)
            position = max(known.end() if known else stop + 1, position + 1)
            continue
        position = name.end()
        key = name[1].lower()
        if view.startswith('"', position):
            text, position = _quoted(view, position)
        else:
            text, position = _unquoted(view, position)
            if key in _NAMES_OF_FILES:
                # A quotation mark can't be part of it.
                text = text.removesuffix('"')
            elif "(" in text and (comment := _COMMENT.search(text)):
                text = text[: comment.start()]
        pairs.append((key, text))
    return pairs


def _quoted(view: str, position: int) -> tuple[str, int]:
    inner = _QUOTED.match(view, position + 1)
    stop = inner.end() if inner else len(view)
    text = view[position + 1 : stop]
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text, stop + 1


def _unquoted(view: str, position: int) -> tuple[str, int]:
    match = _TO_SEMICOLON.match(view, position)
    stop = match.end() if match else len(view)
    forgotten = _forgotten_separator(view, position, stop)
    if forgotten:
        return view[position : forgotten.start()], forgotten.end()
    return view[position:stop].rstrip(" \t\r\n"), stop


def _forgotten_separator(view: str, start: int, stop: int) -> re.Match[str] | None:
    """The first blanks after which a known parameter begins without a `;`."""
    return next((gap for gap in _GAP.finditer(view, start, stop) if _KNOWN_NAME.match(view, gap.end(), stop)), None)


def _skip_comments(view: str, position: int) -> int:
    """The offset after the blanks and comments that stand at `position`."""
    depth = 0
    size = len(view)
    while position < size:
        character = view[position]
        if character == "(":
            depth += 1
        elif character == ")" and depth:
            depth -= 1
        elif not depth and character not in " \t":
            break
        position += 1
    return position


def _join(sections: list[tuple[str, bool]]) -> tuple[bytes, str]:
    """The octets of an RFC 2231 value, percent-decoded where extended and joined, and the charset that they share."""
    first, extended = sections[0]
    label = ""
    if extended and first.count("'") >= 2:
        label, _, first = first.split("'", 2)
    octets = [
        unquote_to_bytes(text.encode("latin-1")) if encoded else text.encode("latin-1")
        for text, encoded in [(first, extended), *sections[1:]]
    ]
    return b"".join(octets), label.strip(' "')
