"""Who is forked when, and who has hung: decided without a process (the master's tests have real ones)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from relay.process.heartbeat import SILENT_LOOKS, Heartbeats
from relay.process.roster import DUMP_SECONDS, DUMP_SIGNAL, HOPELESS_AFTER, LONGEST_PAUSE, Roster


class World:
    """Three workers with process ids of no process, a clock, and the signals that were sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.signals: list[tuple[int, signal.Signals]] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr("os.kill", lambda pid, number: self.signals.append((pid, signal.Signals(number))))
        self.heartbeats = Heartbeats(3)
        self.roster = Roster(self.heartbeats, 3)

    def fork(self, index: int, pid: int) -> None:
        self.heartbeats._write(index, pid, 0)
        self.roster.begin(index, pid)

    def look(self, *silent: int) -> list[int]:
        """A second later: all have beaten but these."""
        self.now += 1.0
        for worker in self.roster.workers.values():
            if worker.pid not in silent:
                _, beats = self.heartbeats.read(worker.index)
                self.heartbeats._write(worker.index, worker.pid, beats + 1)
        found = self.roster.look(self.now)
        return [found.pid] if found else []

    def die(self, pid: int, *, at_once: bool = False) -> float | None:
        return self.roster.died(self.roster.workers.pop(pid), at_once=at_once)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_all_are_due_at_first_and_each_is_taken_once(world: World) -> None:
    assert world.roster.take_due(world.now) == [0, 1, 2]
    assert world.roster.take_due(world.now) == []
    world.roster.due[1] = world.now + 5
    assert (world.roster.take_due(world.now + 4), world.roster.take_due(world.now + 5)) == ([], [1])


def test_pauses_double_with_each_quick_death_and_have_an_end(world: World) -> None:
    world.fork(0, 100)
    world.now += 60
    pauses = []
    for _ in range(12):
        world.fork(1, 101)
        pauses.append(world.die(101))
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert pauses[-1] == LONGEST_PAUSE
    world.fork(1, 101)
    world.now += 60
    assert world.die(101) == 0.1, "one that had lived is replaced soon"


def test_where_none_has_ever_started_some_quick_deaths_are_the_end(world: World) -> None:
    outcomes = []
    for _ in range(HOPELESS_AFTER):
        world.fork(0, 100)
        outcomes.append(world.die(100) is None)
    assert outcomes == [False] * (HOPELESS_AFTER - 1) + [True]


@pytest.mark.parametrize("another_lives", [True, False])
def test_one_that_refuses_to_start_is_the_end_only_where_no_other_serves(world: World, another_lives: bool) -> None:
    if another_lives:
        world.fork(1, 101)
        world.now += 60
    world.fork(0, 100)
    assert (world.die(100, at_once=True) is None) is not another_lives


def hang(world: World, *pids: int) -> Callable[[], list[int]]:
    for index, pid in enumerate(pids):
        world.fork(index, pid)
    world.look()
    return lambda: world.look(*pids)


def test_a_hung_worker_shows_where_it_hangs_and_is_killed_a_second_later(world: World) -> None:
    look = hang(world, 100)
    assert [look() for _ in range(SILENT_LOOKS - 1)] == [[]] * (SILENT_LOOKS - 1)
    assert look() == [100]
    assert world.signals == [(100, DUMP_SIGNAL)]
    assert DUMP_SECONDS >= 1.0
    look()
    assert world.signals[1:] == [(100, signal.SIGKILL)]


def test_of_several_that_hang_one_is_replaced_at_a_time(world: World) -> None:
    look = hang(world, 100, 101, 102)
    for _ in range(SILENT_LOOKS + 5):
        look()
    (first,) = {pid for pid, _ in world.signals}
    index = world.roster.workers[first].index
    world.die(first)
    world.fork(index, 200)
    for _ in range(5):
        world.look(*{100, 101, 102} - {first}, 200)
    assert {pid for pid, _ in world.signals} == {first}, "its successor does not serve yet"
    for _ in range(3):
        world.look(*{100, 101, 102} - {first})
    assert len({pid for pid, _ in world.signals}) == 2


def test_signals_reach_all(world: World) -> None:
    for index in range(3):
        world.fork(index, 100 + index)
    world.roster.signal_all(signal.SIGHUP)
    assert world.signals == [(100 + index, signal.SIGHUP) for index in range(3)]
