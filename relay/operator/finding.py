"""One line of what a check has found."""

from __future__ import annotations

from typing import Final, NamedTuple

#: All is well; mail flows, but something is worse than it could be; mail could not flow, or would be sent twice.
OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "FAIL"


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 process`, `2 processes`. `plural`: where it is not the noun and an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


class Finding(NamedTuple):
    """One line of the result."""

    level: str
    part: str
    text: str
