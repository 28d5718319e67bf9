"""One address in what a person or a program wrote around it (RFC 5322 section 3.4.1): all of it, or nothing.

Everything here is Unicode text. Octets that belong to no character are lone surrogates, as `surrogateescape` has them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from relay.mail import quoted_string

#: Format characters that are not visible and that no domain has: marks of direction, the byte order mark, the soft
#: hyphen.
_UNUSABLE: Final = "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
#: What stands for a control character that is no blank: it is part of no address (RFC 5322 section 3.2.3).
CONTROL: Final = "\x7f"
#: Those and the joiners, which are part of some scripts.
INVISIBLE: Final = _UNUSABLE + "\u200c\u200d"
#: Quotation marks and brackets that aren't ASCII.
TYPOGRAPHIC: Final = (
    "\u00ab\u00b4\u00bb\u2018-\u201f\u2032\u2033\u2039\u203a\u3008-\u3011\uff02\uff07-\uff09\uff1c\uff1e\uff3b\uff3d"
)
#: Dashes, bullets and dots of lists and sentences, none of which IDNA allows in a domain.
_PUNCTUATION: Final = "\u2010-\u2027"
#: What begins with one of these is half of something: no local part of the world does.
_HALF: Final = rf"(?!['`{{|{TYPOGRAPHIC}{INVISIBLE}{_PUNCTUATION}])"
LOCAL: Final = re.compile(rf'{_HALF}[^\s\x00-\x20\x7f"(),:;<>@\[\]\\{_UNUSABLE}]++\Z')
#: Letters, digits, hyphens and low lines of any script, and full stops.
_DOMAIN: Final = re.compile(
    rf"(?![{TYPOGRAPHIC}{INVISIBLE}])[A-Za-z0-9\u0080-\U0010ffff]"
    rf"[^\x00-,/:-@\[-^`{{-\x7f{TYPOGRAPHIC}{_PUNCTUATION}{_UNUSABLE}]*+\Z"
)
_BEHIND_QUOTED_LOCAL: Final = re.compile(r'"\s?@\s?')
#: Brackets and quotes that can't be part of an unquoted address, and what may follow one at the end of a sentence.
_BEFORE: Final = re.compile(rf'[<>()\[\]"{TYPOGRAPHIC}]')
_AFTER: Final = re.compile(rf'[<>()\[\]"{TYPOGRAPHIC}.!?,\\\u2026\u3002]')
_NOT_SEEN: Final = rf"[\s{INVISIBLE}{CONTROL}]"
_AT_THE_ENDS: Final = re.compile(rf"\A{_NOT_SEEN}++|(?<!{_NOT_SEEN}){_NOT_SEEN}++\Z")
#: What could be part of a local part, but stands around addresses that programs print: on both sides, or not at all.
_PAIRS: Final = frozenset(("''", "``", "`'", "{}"))
#: What Python 2 prints before a text in a list, and Python 3 before octets.
_LITERALS: Final = ("u'", "b'")
_QUOTES: Final = "'\"`"
#: Brackets around brackets that are taken off.
_DEPTH: Final = 6
#: No address is longer, brackets and blanks included.
_MAX_LENGTH: Final = 4096


class AddrSpec(NamedTuple):
    """Local part, without its quotes, and domain."""

    local: str
    domain: str


def read(text: str, *, sentence: bool = False) -> AddrSpec | None:
    """The address that `text` is: with the blanks that RFC 5322 allows, and with brackets, quotes, a route, `mailto:`
    or the end of a sentence around it; None where it is anything else.

    In a `sentence`, where no angle brackets stand around the text, a blank behind a full stop ends it.
    """
    if len(text) > _MAX_LENGTH or "@" not in text:
        return None
    for _ in range(_DEPTH):
        text = trimmed(text)
        found = exact(text, sentence=sentence)
        if found is not None:
            return found
        peeled = _peeled(text)
        if peeled == text:
            return None
        text = peeled
    return None


def trimmed(text: str) -> str:
    """`text` without the blanks, the invisible and the control characters at its ends."""
    return text if text.isascii() and text.isalnum() else _AT_THE_ENDS.sub("", text)


def _peeled(text: str) -> str:
    """`text` without the outermost thing around an address."""
    if text[:7].lower() == "mailto:":
        return text[7:].partition("?")[0]
    if text.startswith("@") and ":" in text:
        # A route (RFC 5322 section 4.4).
        return text.partition(":")[2]
    if len(text) < 3:
        return text
    if text[0] + text[-1] in _PAIRS:
        return text[1:-1]
    if text.endswith("'") and text.startswith(_LITERALS):
        return text[2:-1]
    if _BEFORE.match(text[0]) or (text[0] == "{" and text[1] in _QUOTES):
        text = text[1:]
    if _AFTER.match(text[-1]) or (text[-1] == "}" and text[-2] in _QUOTES):
        text = text[:-1]
    return text


def exact(text: str, *, sentence: bool = False) -> AddrSpec | None:
    """`local@domain`, blanks around the at sign and around full stops."""
    stop = quoted_string.closing_quote(text, 1) if text.startswith('"') else 0
    between = _BEHIND_QUOTED_LOCAL.match(text, stop) if stop else None
    if between:
        local, domain = quoted_string.unescaped(text[1:stop]), text[between.end() :]
    else:
        local, at, domain = text.partition("@")
        if not at:
            return None
        written, local = local, _without_blanks(local, sentence=sentence)
        if len(local) < len(written.strip()) and (local.startswith(".") or ".." in local):
            return None
        if not LOCAL.match(local) or ("=?" in text and "?=" in text):
            return None
    domain = _without_blanks(domain, sentence=sentence)
    # Any number of full stops at the end, and one at a time before.
    bare = domain.rstrip(".")
    if not local or not _DOMAIN.match(domain) or ".." in bare:
        return None
    return AddrSpec(local, bare)


def _without_blanks(text: str, *, sentence: bool) -> str:
    """`text` without the blanks at its ends and around full stops."""
    words = text.split()
    if len(words) < 2:
        return words[0] if words else ""
    joined = " ".join(words).replace(" . ", ".").replace(" .", ".")
    return joined if sentence else joined.replace(". ", ".")
