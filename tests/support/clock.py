"""A clock that a test sets (the fixture `clock` of tests/unit)."""

from __future__ import annotations


class Clock:
    """`now` is what time.monotonic() gives; seconds."""

    now = 1000.0
