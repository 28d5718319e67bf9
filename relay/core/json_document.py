"""JSON that others have written, and JSON for Postgres."""

from __future__ import annotations

import json
import re
from typing import Final, TypeAlias

import orjson

#: A value of JSON (RFC 8259 section 3).
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
_ESCAPES: Final = re.compile(rb"\\(u0000|.)", re.DOTALL)


def loads(text: bytes | str) -> Json:
    """What is in a document. Raises ValueError, and nothing else.

    JavaScript and Postgres take numbers beyond those of a float, half of a surrogate pair, and a deeper nesting than
    orjson does: what it refuses, the standard library reads.
    """
    try:
        fast: Json = orjson.loads(text)
        return fast
    except orjson.JSONDecodeError:
        pass
    try:
        slow: Json = json.loads(text)
        return slow
    except RecursionError:
        raise ValueError("too deep") from None


def without_nul(document: bytes) -> bytes:
    """A document without NUL characters, of which jsonb takes none."""
    if b"\\u0000" not in document:
        return document
    # An escaped backslash may stand before `u0000`.
    return _ESCAPES.sub(lambda match: b"" if match[1] == b"u0000" else match[0], document)
