"""How many connections there are, in all and from one origin, over all workers of the service.

Each worker writes what it has open into its own part of a piece of memory that all of them share, and reads the other
parts. There is nothing to lock, and nothing to give back when a worker ends: its successor wipes its part clean.
"""

from __future__ import annotations

import heapq
import mmap
import os
import struct
import tempfile
from typing import Final

_HEAD: Final = struct.Struct("=II")
_SLOT_OCTETS: Final = 8
_NOBODY: Final = bytes(_SLOT_OCTETS)


def size(workers: int, capacity: int) -> int:
    """Octets of the shared memory. Untouched ones cost nothing."""
    return workers * _part_octets(capacity)


def _part_octets(capacity: int) -> int:
    return _HEAD.size + capacity * _SLOT_OCTETS


def share(workers: int, capacity: int) -> int:
    """A descriptor of memory for so many workers: made before they are forked, and inherited by them."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("smtp-relay-connections")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size(workers, capacity))
    return descriptor


class ConnectionTable:
    """One worker's view. Its own part: how many slots are taken, how many were ever in use, then the slots.

    Two workers may each take what was the last free connection: the limit can be exceeded by one a worker, for as long
    as those connections last.
    """

    def __init__(self, descriptor: int | None, index: int, workers: int, capacity: int) -> None:
        """`descriptor`: see `share`; None: a single process keeps its own count. `capacity`: connections in all."""
        octets = size(workers, capacity)
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, octets)
        self._part = _part_octets(capacity)
        self._own = index * self._part
        self._capacity = capacity
        self._free: list[int] = []
        self._used = self._high = 0
        _, left_high = _HEAD.unpack_from(self._memory, self._own)
        left = _HEAD.size + left_high * _SLOT_OCTETS
        self._memory[self._own : self._own + left] = bytes(left)

    def __len__(self) -> int:
        """Connections of all workers."""
        return sum(_HEAD.unpack_from(self._memory, part)[0] for part in self._parts())

    def enter(self) -> int | None:
        """Takes a slot for a connection, to be given to `leave`. None when there are as many as there may be."""
        if len(self) >= self._capacity:
            return None
        slot = heapq.heappop(self._free) if self._free else self._high
        self._high = max(self._high, slot + 1)
        self._used += 1
        self._write_head()
        return slot

    def name(self, slot: int, origin: bytes) -> int:
        """Says whose connection it is; how many that origin has now, with this one, over all workers.

        `origin` has 8 octets.
        """
        self._write_slot(slot, origin)
        count = 0
        for part in self._parts():
            _, high = _HEAD.unpack_from(self._memory, part)
            begin = part + _HEAD.size
            count += self._memory[begin : begin + high * _SLOT_OCTETS].count(origin)
        return count

    def leave(self, slot: int) -> None:
        """The connection is closed."""
        self._write_slot(slot, _NOBODY)
        self._used -= 1
        if self._used:
            heapq.heappush(self._free, slot)
        else:
            # What is looked through for an origin shrinks again after a rush.
            self._free.clear()
            self._high = 0
        self._write_head()

    def _parts(self) -> range:
        return range(0, len(self._memory), self._part)

    def _write_head(self) -> None:
        _HEAD.pack_into(self._memory, self._own, self._used, self._high)

    def _write_slot(self, slot: int, octets: bytes) -> None:
        begin = self._own + _HEAD.size + slot * _SLOT_OCTETS
        self._memory[begin : begin + _SLOT_OCTETS] = octets
