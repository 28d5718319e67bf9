"""A number of octets that several messages may use parts of: who comes first is served first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event


class _Waiter:
    __slots__ = ("granted", "octets")

    def __init__(self, octets: int) -> None:
        self.octets = octets
        self.granted = Event()


class MemoryBudget:
    """Octets of memory, handed out to greenlets in the order in which they asked.

    Nobody overtakes: small wishes would otherwise keep a large one waiting for ever.
    """

    def __init__(self, octets: int) -> None:
        self._octets = octets
        self._free = octets
        self._waiting: deque[_Waiter] = deque()

    @contextmanager
    def part(self, octets: int, seconds: float) -> Iterator[bool]:
        """Waits at most so long for so many octets, and has them while the context lasts. False: they did not come.

        A wish for more than there is gets everything, and is alone then.
        """
        waiter = _Waiter(min(octets, self._octets))
        self._waiting.append(waiter)
        try:
            self._grant()
            yield waiter.granted.wait(seconds)
        finally:
            if waiter.granted.is_set():
                self._free += waiter.octets
            else:
                self._waiting.remove(waiter)
            # Either way, whoever was behind it may have their turn.
            self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0].octets <= self._free:
            waiter = self._waiting.popleft()
            self._free -= waiter.octets
            waiter.granted.set()
