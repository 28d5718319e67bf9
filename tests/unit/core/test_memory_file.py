"""Octets under a path, in memory: whole, for this process alone, and gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.core.memory_file import memory_file

OCTETS = os.urandom(200_000)
needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd_create")


@needs_memfd
def test_the_octets_are_read_whole_and_more_than_once() -> None:
    with memory_file(OCTETS) as path:
        assert Path(path).read_bytes() == Path(path).read_bytes() == OCTETS
    assert not Path(path).exists()


@needs_memfd
def test_an_error_in_the_block_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(ValueError, match="library"), memory_file(OCTETS):
            raise ValueError("library")
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_memfd_a_pipe_holds_what_a_pipe_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with memory_file(OCTETS[:16_384]) as path:
        assert Path(path).read_bytes() == OCTETS[:16_384]
    with pytest.raises(OSError, match="more than a pipe"), memory_file(OCTETS[:16_385]):
        pass
