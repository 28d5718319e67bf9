"""Deadlines: the one moment by which an answer is due, for everything that is asked on the way to it.

Each question to Postgres has a separate time limit; but a message may need several, and a client that waits for a reply
counts them together. So the accept path says once how long it may take, and no question that it asks lasts longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Final, TypeVar

import gevent

_T = TypeVar("_T")

#: Seconds for an answer that has come by the end of its time and is not read: this process may have stood still, by
#: SIGSTOP or with its machine.
AT_HAND_SECONDS: Final = 0.1
_END: Final[ContextVar[float]] = ContextVar("end", default=math.inf)


def begin(seconds: float) -> Callable[[], None]:
    """From now on all that this greenlet asks is to be answered by then, until the returned function is called.

    No context manager: one made of a generator takes five times as long, for each mail.
    """
    return partial(_END.reset, _END.set(time.monotonic() + seconds))


def after(seconds: float) -> float:
    """The moment of time.monotonic() by which a question that may take so long has to be answered."""
    return min(time.monotonic() + seconds, _END.get())


def seconds_left(deadline: float) -> float:
    """Until a moment of time.monotonic(), never negative."""
    return max(0.0, deadline - time.monotonic())


def with_what_is_at_hand(read: Callable[[float], _T], deadline: float, limit: gevent.Timeout) -> _T:
    """What `read(deadline)` returns. Where its time is over it goes on for AT_HAND_SECONDS, which ends in TimeoutError.

    `limit`: the time limit around it, which does not count from then on.
    """
    try:
        return read(deadline)
    except (TimeoutError, gevent.Timeout) as late:
        if isinstance(late, gevent.Timeout) and late is not limit:
            raise
        limit.cancel()
        return read(time.monotonic() + AT_HAND_SECONDS)
