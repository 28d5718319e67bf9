"""How many things of one owner may be in progress: slow work of one user must not take every place from the others."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from gevent.lock import BoundedSemaphore

from relay.core.deadlines import seconds_left


class OwnerLimit:
    """At most `each` at a time for one owner; any number of owners. One that has nothing in progress costs nothing.

    Work that comes when all places of an owner are taken waits for one, in turn, and holds nothing meanwhile.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        #: The places of each owner, and how many have one or wait for one.
        self._places: dict[Hashable, tuple[BoundedSemaphore, int]] = {}

    @contextmanager
    def place(self, owner: Hashable, deadline: float) -> Iterator[bool]:
        """Has a place while the block runs: True. False: there was none by `deadline` (time.monotonic())."""
        places, users = self._places.get(owner) or (BoundedSemaphore(self._each), 0)
        self._places[owner] = places, users + 1
        granted = False
        try:
            granted = places.acquire(timeout=seconds_left(deadline))
            yield granted
        finally:
            if granted:
                places.release()
            _, users = self._places[owner]
            if users > 1:
                self._places[owner] = places, users - 1
            else:
                del self._places[owner]

    def busy(self, owner: Hashable) -> bool:
        """Whether this owner has anything in progress, or waiting."""
        return owner in self._places
