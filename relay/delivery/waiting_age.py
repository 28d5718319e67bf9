"""For how long the mail has waited that has waited longest, for the metrics."""

from __future__ import annotations

import time
from typing import Final

import gevent

from relay.core import metrics
from relay.core.errors import PostgresUnavailable
from relay.postgres.waiting import WaitingRows

#: Seconds from one look to the next, and rows that one reads: of a longer backlog the oldest ones.
_SECONDS: Final = 15.0
_ROWS: Final = 1000


def watch(waiting: WaitingRows) -> None:
    """Keeps the metric up to date; never returns. While Postgres is away the age goes on growing."""
    looked, age = time.monotonic(), 0.0
    while True:
        try:
            age = oldest_due(waiting)
            looked = time.monotonic()
        except PostgresUnavailable:
            pass
        metrics.DELIVERY_OLDEST_DUE.value = age + (time.monotonic() - looked if age else 0.0)
        gevent.sleep(_SECONDS)


def oldest_due(waiting: WaitingRows) -> float:
    """Seconds since the oldest queued row could have left; 0.0: none is due. Raises PostgresUnavailable."""
    now = time.time()
    ages = [
        -row.due_in if row.due_in < 0 else now - row.created
        for row in waiting.oldest("queued", _ROWS)
        if row.due_in <= 0
    ]
    return max(0.0, max(ages, default=0.0))
