"""When a worker counts as hung: by looks of the master, never by a clock that may have stood still."""

from __future__ import annotations

import os
import time

import pytest

from relay.process.heartbeat import SILENT_LOOKS, STARTING_LOOKS, Heartbeats, Watch


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def looks(self, watch: Watch, count: int, *, apart: float = 1.0) -> list[bool]:
        found = []
        for _ in range(count):
            self.now += apart
            found.append(watch.look())
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def heartbeats() -> Heartbeats:
    heartbeats = Heartbeats(2)
    heartbeats.begin(1)
    return heartbeats


def test_who_beats_is_never_taken_for_hung(clock: Clock, heartbeats: Heartbeats) -> None:
    watch = Watch(heartbeats, 1, os.getpid())
    for _ in range(5 * STARTING_LOOKS):
        heartbeats.beat(1)
        assert clock.looks(watch, 3) == [False] * 3
    assert watch.served


def test_silence_after_a_beat(clock: Clock, heartbeats: Heartbeats) -> None:
    watch = Watch(heartbeats, 1, os.getpid())
    heartbeats.beat(1)
    assert clock.looks(watch, SILENT_LOOKS + 1) == [False] * SILENT_LOOKS + [True]


def test_silence_from_the_beginning(clock: Clock, heartbeats: Heartbeats) -> None:
    watch = Watch(heartbeats, 1, os.getpid())
    assert clock.looks(watch, STARTING_LOOKS) == [False] * (STARTING_LOOKS - 1) + [True]
    assert not watch.served


@pytest.mark.parametrize("gap", [3.0, 60.0, 1e6])
def test_a_look_that_comes_late_begins_the_count_anew(clock: Clock, heartbeats: Heartbeats, gap: float) -> None:
    watch = Watch(heartbeats, 1, os.getpid())
    heartbeats.beat(1)
    clock.looks(watch, SILENT_LOOKS)
    assert clock.looks(watch, 1, apart=gap) == [False]
    assert clock.looks(watch, SILENT_LOOKS) == [False] * (SILENT_LOOKS - 1) + [True]


def test_beats_of_an_unknown_process_are_ignored(clock: Clock, heartbeats: Heartbeats) -> None:
    """A worker that was taken for dead, and wakes, must not speak for its successor."""
    heartbeats.beat(1)
    successor = Watch(heartbeats, 1, os.getpid() + 1)
    assert not successor.served
    assert clock.looks(successor, STARTING_LOOKS)[-1]
    heartbeats._write(1, os.getpid() + 1, 7)
    heartbeats.beat(1)
    assert heartbeats.read(1) == (os.getpid() + 1, 7)
