"""What is in a statement of many, where Postgres refuses some of it: found by halving, the others stay together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import structlog

from relay.core.errors import PostgresRefused, PostgresUnavailable, Unstorable
from relay.postgres.database import ConnectionLost, Rejected

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")
log = structlog.get_logger(__name__)

#: Refusals after which what is left is not tried: far more than a few culprits need, and little beside what all of a
#: statement would take one by one. Four culprits among 200 are found with it.
MOST_REFUSALS: Final = 32
#: Seconds from the beginning after which what is left is not tried: others wait meanwhile.
_SECONDS: Final = 1.0


def in_halves(
    parts: Sequence[_Part],
    together: Callable[[Sequence[_Part]], Sequence[_Result]],
    *,
    refused: Callable[[_Part, Exception], None] = lambda _part, _error: None,
) -> list[_Result | None]:
    """The results of `together(parts)` in the same order. None: what is refused, and what was not tried in the end.

    `together` is a statement or several. What it raises is about what is in it, and half of it is tried next; but for
    ConnectionLost, and PostgresUnavailable that is no refusal, after which nothing else is tried. `refused`: gets each
    part that is refused by itself, and the error. One culprit among n takes about 2 log2(n) statements more.
    """
    results: list[_Result | None] = [None] * len(parts)
    until = time.monotonic() + _SECONDS
    refusals = 0
    # The largest first: where not all are tried, few are left out.
    waiting = deque([(0, len(parts))] if parts else [])
    while waiting and refusals < MOST_REFUSALS and (not refusals or time.monotonic() < until):
        begin, end = waiting.popleft()
        some = parts[begin:end]
        try:
            results[begin:end] = [result for _, result in zip(some, together(some), strict=True)]
        except Exception as error:
            refusal = isinstance(error, (Rejected, PostgresRefused, Unstorable))
            if not refusal and isinstance(error, (ConnectionLost, PostgresUnavailable)):
                break
            if not refusal and not refusals:  # one that can't be written, or a bug
                log.exception("unexpected_error")
            refusals += 1
            if len(some) == 1:
                refused(some[0], error)
            else:
                middle = (begin + end) // 2
                waiting.extend(((begin, middle), (middle, end)))
    return results


def cause_of(error: Exception) -> str:
    """Why something is refused: an SQLSTATE, or the name of the error."""
    return error.sqlstate if isinstance(error, Rejected) else type(error).__name__
