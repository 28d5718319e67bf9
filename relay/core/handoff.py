"""What one greenlet waits for and another one settles."""

from __future__ import annotations

from typing import Generic, TypeVar

from gevent.hub import Waiter, get_hub

_T = TypeVar("_T")


class Handoff(Generic[_T]):
    """For one greenlet to wait for, once. gevent's AsyncResult, which any number may wait for, costs twice as much."""

    __slots__ = ("_waiter", "settled")

    def __init__(self) -> None:
        self._waiter: Waiter[_T] = Waiter()
        #: Whether the other side has done its part.
        self.settled = False

    def get(self) -> _T:
        """The value that was set; raises the error of `fail`. Nothing is lost if the greenlet is killed."""
        value: _T = self._waiter.get()
        return value

    def set(self, value: _T) -> None:
        """Lets the greenlet go on with this value."""
        self.settled = True
        get_hub().loop.run_callback(self._waiter.switch, value)

    def fail(self, error: Exception) -> None:
        """Has this raised where it is waited for."""
        self.settled = True
        get_hub().loop.run_callback(self._waiter.throw, error)
