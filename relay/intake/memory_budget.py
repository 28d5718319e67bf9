"""A number of octets that several messages may use parts of, in the order in which they ask."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event


class Part:
    """What one greenlet asked for."""

    __slots__ = ("_budget", "_event", "octets")

    def __init__(self, budget: MemoryBudget, octets: int) -> None:
        self._budget = budget
        #: How many it has, or waits for.
        self.octets = octets
        self._event = Event()

    @property
    def granted(self) -> bool:
        """Whether it has them."""
        return self._event.is_set()

    def shrink(self, octets: int) -> None:
        """Gives back all but so many. What was given back can't be had again: two that need more might wait for each
        other."""
        if self.granted and octets < self.octets:
            surplus, self.octets = self.octets - octets, octets
            self._budget.give_back(surplus)


class MemoryBudget:
    """Octets of memory, handed out to greenlets in the order in which they asked.

    None overtakes: small requests would otherwise keep a large one waiting for ever.
    """

    def __init__(self, octets: int) -> None:
        self._octets = octets
        self._free = octets
        self._waiting: deque[Part] = deque()
        #: Greenlets that have been given what they wait for, and have not gone on yet.
        self.resuming = 0

    @contextmanager
    def part(self, octets: int, seconds: float) -> Iterator[Part]:
        """Waits at most so long for so many octets, and has them while the context lasts, unless they did not come.

        A request for more than there is gets everything, and is alone then.
        """
        part = Part(self, min(octets, self._octets))
        self._waiting.append(part)
        try:
            self._grant()
            try:
                part._event.wait(seconds)
            finally:
                self.resuming -= part.granted
            yield part
        finally:
            if part.granted:
                self._free += part.octets
            else:
                self._waiting.remove(part)
            # Either way, the next one may have its turn.
            self._grant()

    def has(self, octets: int) -> bool:
        """Whether so many could be had without waiting."""
        return not self._waiting and octets <= self._free

    def take(self, octets: int) -> bool:
        """Takes so many, for the caller to give back, if no other has to wait for that; whether it did."""
        if not self.has(octets):
            return False
        self._free -= octets
        return True

    def give_back(self, octets: int) -> None:
        """Some of what was handed out is not needed any more."""
        self._free += octets
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0].octets <= self._free:
            part = self._waiting.popleft()
            self._free -= part.octets
            self.resuming += 1
            part._event.set()
