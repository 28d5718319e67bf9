"""Memory in which every worker shows the master that it still serves.

A worker whose hub turns adds to its counter each second. The master looks once a second whether it has: it compares no
clocks, and a look that comes late (the machine was frozen, the master was stopped) begins the count anew, because the
workers may have stood still for as long. Nothing but the standard library: the master imports this.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from typing import Final

#: Seconds between two beats of a worker, and between two looks of the master.
BEAT_SECONDS: Final = 1.0
#: Looks without a beat after which a worker that has served counts as hung: so many seconds at least.
SILENT_LOOKS: Final = 10
#: The same for one that has not served yet: it loads nothing, but the machine may be busy.
STARTING_LOOKS: Final = 60
#: A look that comes so much later than the one before begins the count anew; seconds.
_GAP_SECONDS: Final = 2.5

#: Process id, beats. In the machine's own form: each number is written at once.
_SLOT: Final = struct.Struct("@II")


class Heartbeats:
    """A slot for each worker, shared by all processes that are forked after it was made."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, workers * _SLOT.size)

    def begin(self, index: int) -> None:
        """This process is the worker now; it has not served yet."""
        self._write(index, os.getpid(), 0)

    def beat(self, index: int) -> None:
        """This process serves. Its successor's slot is not touched by a process that was taken for ended."""
        pid, beats = self.read(index)
        if pid == os.getpid():
            # From 2^32 it would be as if it had not served; 0 is left out when it begins again.
            self._write(index, pid, beats % 0xFFFFFFFF + 1)

    def read(self, index: int) -> tuple[int, int]:
        """The process id of the worker, and how often it has beaten: 0, if it does not serve yet."""
        pid, beats = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        return pid, beats

    def _write(self, index: int, pid: int, beats: int) -> None:
        _SLOT.pack_into(self._memory, index * _SLOT.size, pid, beats)


class Watch:
    """What the master has seen of one worker."""

    def __init__(self, heartbeats: Heartbeats, index: int, pid: int) -> None:
        self._heartbeats = heartbeats
        self._index = index
        self._pid = pid
        self._beats = 0
        #: Looks in a row that found no new beat.
        self.silent_looks = 0
        self._last_look = time.monotonic()

    @property
    def served(self) -> bool:
        """Whether it has begun to serve."""
        pid, beats = self._heartbeats.read(self._index)
        return pid == self._pid and beats > 0

    def look(self) -> bool:
        """Looks for a new beat; to be called every BEAT_SECONDS. Whether the worker counts as hung."""
        now = time.monotonic()
        late = now - self._last_look > _GAP_SECONDS
        self._last_look = now
        pid, beats = self._heartbeats.read(self._index)
        if late or (pid == self._pid and beats != self._beats):
            self._beats = beats
            self.silent_looks = 0
            return False
        self.silent_looks += 1
        return self.silent_looks >= (SILENT_LOOKS if self._beats else STARTING_LOOKS)
