"""Deadlines of connections that wait for their clients: one timer for all, instead of one for each read.

To start and stop a timer for every line is a sixth of the CPU of a small mail. To look at all waits a few times a
second is next to nothing, even with thousands of them, and nobody minds a deadline that is kept a moment late.
"""

from __future__ import annotations

import time
from typing import Any, Final

import gevent


class Overdue(BaseException):
    """Thrown into a greenlet whose wait took too long; no Exception, so that nothing takes it for an error."""


class Waits:
    """Which greenlets wait, and until when."""

    #: Seconds between two looks: so much later than promised a wait may end.
    interval = 0.1

    def __init__(self) -> None:
        #: Moments of time.monotonic(). A greenlet has its own here exactly as long as it waits: `Overdue` may reach it
        #: nowhere else.
        self.until: dict[Any, float] = {}
        self._timer: Any = None

    def watch(self) -> None:
        """Sees to it that the waits of this process are looked at. Not before a fork."""
        if self._timer is None:
            self._timer = gevent.get_hub().loop.timer(self.interval, repeat=self.interval, ref=False)
            self._timer.start(self._look)

    def _look(self) -> None:
        # Called in the hub, while every greenlet stands still.
        now = time.monotonic()
        for greenlet in [greenlet for greenlet, moment in self.until.items() if moment <= now]:
            # What one does when it is woken may have moved another.
            if self.until.get(greenlet, now + 1) <= now:
                greenlet.throw(Overdue)


#: Those of this process.
WAITS: Final = Waits()
