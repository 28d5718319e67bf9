"""format=flowed: lines that were broken only for the journey are joined again (RFC 3676)."""

from __future__ import annotations

import re

#: Characters of a text that is joined; what is longer was not written by a person and stays as it is.
_MAX_LENGTH = 4_000_000

_QUOTE_MARKS = re.compile(r">*")
_SIGNATURE_MARK = "-- "


def join(text: str, *, delete_space: bool) -> str:
    """`text`, with LF line ends, as one line a paragraph; `delete_space` is DelSp=yes.

    A line that ends with a space goes on in the next one of the same quote depth. Space-stuffing is taken off. The
    signature mark stays a separate line.
    """
    if len(text) > _MAX_LENGTH:
        return text
    joined: list[str] = []
    pieces: list[str] = []
    open_depth = -1
    for line in text.split("\n"):
        marks = _QUOTE_MARKS.match(line)
        depth = marks.end() if marks else 0
        content = line[depth:].removeprefix(" ")
        signature = content == _SIGNATURE_MARK
        if depth == open_depth and not signature:
            if delete_space:
                pieces[-1] = pieces[-1][:-1]
            pieces.append(content)
        else:
            if pieces:
                joined.append("".join(pieces))
            pieces = [">" * depth + (" " if depth and content else "") + content]
        open_depth = depth if content.endswith(" ") and not signature else -1
    joined.append("".join(pieces))
    return "\n".join(joined)
