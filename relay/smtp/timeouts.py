"""Deadlines of connections that wait for their clients: one timer for all, instead of one for each read.

To start and stop a timer for every line is a sixth of the CPU of a small mail. To look at all waits a few times a
second is next to nothing, even with thousands of them, and a deadline may be kept a moment late.
"""

from __future__ import annotations

import math
import time
from typing import Final

import gevent

#: The deadline of one that does not wait.
NEVER: Final = math.inf


class Overdue(BaseException):
    """Thrown into a greenlet whose wait took too long; no Exception, so that nothing takes it for an error."""


class Waiter:
    """The greenlet that made it, and the moment of time.monotonic() until which it waits.

    `until` is NEVER at all times but while the greenlet waits: `Overdue` may reach it nowhere else.
    """

    __slots__ = ("greenlet", "until")

    def __init__(self) -> None:
        self.greenlet = gevent.getcurrent()
        self.until = NEVER


class Waits:
    """The greenlets that may be waiting, each woken when that takes too long."""

    #: Seconds between two looks: a wait may end so much after its deadline.
    interval = 0.1

    def __init__(self) -> None:
        self._waiters: set[Waiter] = set()
        self._timer: object = None

    def add(self, waiter: Waiter) -> None:
        """Looks at this one from now on. Not before a fork."""
        self._waiters.add(waiter)
        if self._timer is None:
            self._timer = gevent.get_hub().loop.timer(self.interval, repeat=self.interval, ref=False)
            self._timer.start(self._look)

    def remove(self, waiter: Waiter) -> None:
        """Looks at this one no more."""
        self._waiters.discard(waiter)

    def _look(self) -> None:
        # Called in the hub, while every greenlet stands still.
        now = time.monotonic()
        for waiter in [waiter for waiter in self._waiters if waiter.until <= now]:
            # What one does when it is woken may have moved another.
            if waiter.until > now:
                continue
            if waiter.greenlet.dead:  # thrown here, it would end this look, and each one after it
                self._waiters.discard(waiter)
            else:
                waiter.greenlet.throw(Overdue)


#: Those of this process.
WAITS: Final = Waits()
