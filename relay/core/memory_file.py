"""Octets as a file for libraries that want a path: in memory, and never on a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: What a pipe holds on every system without being read; octets.
_PIPE_OCTETS = 16_384


@contextmanager
def memory_file(octets: bytes) -> Iterator[str]:
    """A path under which this process can read the octets, from the beginning to the end, within the block.

    Where there is no `memfd_create` (macOS) a pipe stands in: it can be read once. Raises OSError, there also for more
    octets than a pipe holds.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("smtp-relay")
        try:
            _write(descriptor, octets)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    if len(octets) > _PIPE_OCTETS:
        raise OSError("more than a pipe holds")
    descriptor, writing = os.pipe()
    try:
        try:
            _write(writing, octets)
        finally:
            os.close(writing)
        yield f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _write(descriptor: int, octets: bytes) -> None:
    rest = memoryview(octets)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
