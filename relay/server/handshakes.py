"""TLS handshakes take turns, because each is milliseconds of CPU that a client asks for before it has logged in.

One step of one handshake is computed at a time, and after it the worker does something else for as long: a client that
has logged in keeps half of the CPU, and waits for one step at most. Turns go round the addresses that wait for one, so
an address with many clients holds up its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import gevent
from gevent.event import Event

#: The least pause between two turns, in which other connections are read; seconds.
_LEAST_PAUSE: Final = 1e-6


class HandshakeTurns:
    """Hands out turns to the greenlets of one worker."""

    def __init__(self) -> None:
        #: The waiting greenlets by origin; the origin whose turn is next stands first.
        self._waiting: OrderedDict[bytes, deque[Event]] = OrderedDict()
        #: A greenlet has a turn, or the pause after one is not over.
        self._taken = False
        self._timer: object = None

    @contextmanager
    def turn(self, origin: bytes) -> Iterator[None]:
        """Waits for a turn and holds it for the block, which must not switch to other greenlets."""
        if self._taken:
            self._wait(origin)
        self._taken = True
        began = time.thread_time()
        try:
            yield
        finally:
            self._pause(time.thread_time() - began)

    def _wait(self, origin: bytes) -> None:
        event = Event()
        self._waiting.setdefault(origin, deque()).append(event)
        try:
            event.wait()
        except BaseException:
            if event.is_set():
                # The turn came at the moment at which the time for the handshake was over.
                self._pause(0.0)
            else:
                self._leave(origin, event)
            raise

    def _leave(self, origin: bytes, event: Event) -> None:
        queue = self._waiting[origin]
        queue.remove(event)
        if not queue:
            del self._waiting[origin]

    def _pause(self, seconds: float) -> None:
        # Held, or it would be collected before it fires.
        self._timer = gevent.get_hub().loop.timer(max(seconds, _LEAST_PAUSE))
        self._timer.start(self._next)

    def _next(self) -> None:
        # Called in the hub.
        if not self._waiting:
            self._taken = False
            return
        origin, queue = self._waiting.popitem(last=False)
        event = queue.popleft()
        if queue:
            self._waiting[origin] = queue
        event.set()
