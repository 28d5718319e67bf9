"""Header fields that are meant for OpenSend and not for the recipient: idempotency key and tags (contract section
3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from relay.mail import encoded_word
from relay.mail.message import Fault, Unusable

_KEY, _OPENSEND_KEY, _RESEND_KEY = "idempotency-key", "x-opensend-idempotency-key", "resend-idempotency-key"
_KEY_FIELDS: Final = (_KEY, _OPENSEND_KEY, _RESEND_KEY)
_TAG_FIELD: Final = "x-opensend-tag"
#: All of them.
FIELDS: Final = frozenset((*_KEY_FIELDS, _TAG_FIELD))
_MAX_KEY: Final = 256
_MAX_TAGS: Final = 75

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TAG_NAME = re.compile(r"[A-Za-z0-9_-]{1,256}\Z")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_-]{0,256}\Z")


def read(values: Mapping[str, list[str]]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The idempotency key and the tags in the values of a header block. Raises Unusable for bad ones.

    A library that folds lines may put a long one into encoded words: Python's does so with what has no blank.
    """
    # perf: nearly no message has any; one by one 0.1 µs, frozenset.isdisjoint 0.3 µs, which asks for each field of the
    # message: python -m timeit -s "v = dict.fromkeys('abcdefghi')" "'k' in v or 'l' in v or 'm' in v or 'n' in v"
    if not (_TAG_FIELD in values or _KEY in values or _OPENSEND_KEY in values or _RESEND_KEY in values):
        return None, ()
    return _idempotency_key(values), _tags(values)


def _idempotency_key(values: Mapping[str, list[str]]) -> str | None:
    """The key that the client gave, in the first of the three fields that is there; None without one.

    Raises Unusable for one that isn't 1 to 256 characters, holds a control character, or comes with another that
    differs.
    """
    keys = {encoded_word.decode(value) for name in _KEY_FIELDS for value in values.get(name, ())}
    if not keys:
        return None
    if len(keys) > 1:
        raise Unusable(Fault.BAD_IDEMPOTENCY_KEY, "idempotency keys differ")
    key = keys.pop()
    if not 1 <= len(key) <= _MAX_KEY:
        raise Unusable(Fault.BAD_IDEMPOTENCY_KEY, "idempotency key must have 1 to 256 characters")
    if _CONTROLS.search(key):
        raise Unusable(Fault.BAD_IDEMPOTENCY_KEY, "idempotency key holds a control character")
    return key


def _tags(values: Mapping[str, list[str]]) -> tuple[tuple[str, str], ...]:
    """The tags of all X-OpenSend-Tag fields, `name=value` each, in their order. Raises Unusable for a bad one."""
    fields = values.get(_TAG_FIELD, [])
    if len(fields) > _MAX_TAGS:
        raise Unusable(Fault.BAD_TAG, "more than 75 X-OpenSend-Tag headers")
    found = []
    for number, text in enumerate(fields, 1):
        name, separator, value = (each.strip(" \t") for each in encoded_word.decode(text).partition("="))
        if not separator:
            raise Unusable(Fault.BAD_TAG, f"X-OpenSend-Tag {number} is not name=value")
        if not _TAG_NAME.match(name):
            raise Unusable(Fault.BAD_TAG, f"X-OpenSend-Tag {number}: name must be 1 to 256 of A-Z a-z 0-9 _ -")
        if not _TAG_VALUE.match(value):
            raise Unusable(Fault.BAD_TAG, f"X-OpenSend-Tag {number}: value must be at most 256 of A-Z a-z 0-9 _ -")
        found.append((name, value))
    return tuple(found)
