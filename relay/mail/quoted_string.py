"""Quoted strings (RFC 5322 section 3.2.4) in Unicode text or views of octets: where one ends."""

from __future__ import annotations

import re
from typing import Final

#: Quoted pairs that are gone through at once. The engine remembers each repetition of a group until the match is done,
#: 62 octets for two characters of text, so without a bound a field of 10 MB would take 300 MB.
_PAIRS: Final = 1000
_CONTENT: Final = re.compile(rf'[^"\\]*+(?:\\.[^"\\]*+){{0,{_PAIRS}}}', re.DOTALL)
_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def closing_quote(text: str, position: int) -> int:
    """The offset of the quotation mark that ends the string whose content begins at `position`; `len(text)` without
    one.
    """
    size = len(text)
    while (content := _CONTENT.match(text, position)) is not None:
        position = content.end()
        if position == size or text[position] == '"':
            break
        if position + 1 == size:
            # A backslash with nothing behind it.
            return size
    return position


def is_whole(text: str) -> bool:
    """Whether `text` is one quoted string and nothing else."""
    return len(text) > 1 and text[0] == '"' and closing_quote(text, 1) == len(text) - 1


def unescaped(content: str) -> str:
    """The content of a quoted string or a comment without the backslashes of its quoted pairs."""
    return _PAIR.sub(r"\1", content) if "\\" in content else content
