"""Where a process keeps the octets of a large message, and how it gives the memory back.

glibc maps each large piece of memory by itself, and the kernel fills it a page of 4 KB at a time: for a message of
10 MB that is as much work as all the rest. In one piece, with pages of 2 MB where the kernel has them, it is little.
But what is freed leaves gaps there, so that a message takes more memory. Nothing of this changes what a program does.
It is left out where the C library is another one.

# perf: for a message of 10 MB all of its child's work takes 110 ms by pieces, 80 ms in one: ./scripts/bench --only cost
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
#: More than any piece of memory here: all of them come from the heap, and it shrinks only in `Heap.trim`.
_NEVER: Final = 1 << 30
#: From how many octets on a piece of memory is mapped by itself, and unmapped when it is freed.
_MAPPED_FROM: Final = 1 << 20
#: Of madvise(2).
_MADV_HUGEPAGE: Final = 14
_LARGE_PAGE: Final = 1 << 21


class Heap:
    """glibc's heap of this process. One per process."""

    def __init__(self) -> None:
        self._libc: ctypes.CDLL | None = None
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
            libc.malloc.argtypes = libc.malloc_trim.argtypes = [ctypes.c_size_t]
            libc.sbrk.argtypes = [ctypes.c_ssize_t]
            libc.free.argtypes = [ctypes.c_void_p]
            libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
            self._libc = libc

    def by_pieces(self) -> None:
        """From now on each large piece of memory is mapped by itself, and goes back to the kernel when it is freed."""
        if self._libc is not None:
            self._libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)

    def in_one_piece(self, octets: int) -> None:
        """From now on all memory is the heap's, which has room for so many octets more.

        They count as used only when something is written to them.
        """
        libc = self._libc
        if libc is None:
            return
        libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
        before = libc.sbrk(0)
        libc.free(libc.malloc(octets))
        start = -(-before // _LARGE_PAGE) * _LARGE_PAGE
        grown = libc.sbrk(0) - start
        if grown > 0:
            # Without such pages everything works as well, and more slowly.
            libc.madvise(start, grown, _MADV_HUGEPAGE)

    def trim(self) -> None:
        """Gives the kernel back what is free."""
        if self._libc is not None:
            self._libc.malloc_trim(0)
