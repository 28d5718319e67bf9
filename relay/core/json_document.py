"""JSON that others have written."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(text: bytes | str) -> Any:
    """What is in a document. Raises ValueError, and nothing else.

    JavaScript and Postgres take numbers beyond those of a float, half of a surrogate pair, and a deeper nesting than
    orjson does: what it refuses, the standard library reads.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too deep") from None
