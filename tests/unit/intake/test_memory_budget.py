"""Octets for messages: in the order in which they were asked for, and all of them given back."""

from __future__ import annotations

import gevent
import gevent.event
import pytest

from relay.intake.memory_budget import MemoryBudget


class Message:
    """A greenlet that wants octets, and keeps them until it is told to go on."""

    def __init__(self, budget: MemoryBudget, octets: int, seconds: float = 60.0) -> None:
        self.granted: bool | None = None
        self._may_end = gevent.event.Event()
        self.greenlet = gevent.spawn(self._run, budget, octets, seconds)
        gevent.sleep(0)

    def _run(self, budget: MemoryBudget, octets: int, seconds: float) -> None:
        with budget.part(octets, seconds) as part:
            self.part = part
            self.granted = part.granted
            self._may_end.wait()

    def wait(self) -> None:
        """Until it knows whether it has what it wants."""
        while self.granted is None:
            gevent.sleep(0.001)

    def end(self) -> None:
        self._may_end.set()
        self.greenlet.join()
        gevent.sleep(0)


def test_as_many_as_fit_at_the_same_time() -> None:
    budget = MemoryBudget(100)
    messages = [Message(budget, 50), Message(budget, 50), Message(budget, 1)]
    assert [message.granted for message in messages] == [True, True, None]
    messages[0].end()
    assert messages[2].granted


def test_memory_is_granted_in_order() -> None:
    budget = MemoryBudget(100)
    first, large, small = Message(budget, 60), Message(budget, 90), Message(budget, 10)
    assert (first.granted, large.granted, small.granted) == (True, None, None)
    first.end()
    assert large.granted
    assert small.granted, "there is room beside the large one"


def test_more_than_there_is_has_its_turn_alone() -> None:
    budget = MemoryBudget(100)
    small, huge = Message(budget, 1), Message(budget, 1000)
    assert huge.granted is None
    small.end()
    assert huge.granted
    other = Message(budget, 1)
    assert other.granted is None
    huge.end()
    assert other.granted


def test_who_waits_too_long_goes_away_and_lets_others_pass() -> None:
    budget = MemoryBudget(100)
    first, impatient, small = Message(budget, 60), Message(budget, 90, seconds=0.01), Message(budget, 40)
    assert small.granted is None
    impatient.wait()
    assert impatient.granted is False
    impatient.end()
    assert small.granted
    first.end()
    small.end()
    assert Message(budget, 100).granted, "everything was given back"


@pytest.mark.parametrize("granted", [True, False])
def test_a_greenlet_that_is_killed_gives_back_what_it_had(granted: bool) -> None:
    budget = MemoryBudget(100)
    first = Message(budget, 100)
    victim = first if granted else Message(budget, 50)
    last = Message(budget, 100)
    victim.greenlet.kill()
    gevent.sleep(0)
    assert last.granted is (True if granted else None)
    first.end()
    gevent.sleep(0)
    assert last.granted


def test_what_is_not_needed_any_more_is_given_back_at_once_and_only_once() -> None:
    budget = MemoryBudget(100)
    first, second, third = Message(budget, 100), Message(budget, 30), Message(budget, 50)
    first.part.shrink(40)
    gevent.sleep(0)
    assert (second.granted, third.granted) == (True, None)
    first.part.shrink(60)
    gevent.sleep(0)
    assert third.granted is None, "nobody gets more than it had"
    first.part.shrink(20)
    gevent.sleep(0)
    assert third.granted
    for message in (first, second, third):
        message.end()
    assert Message(budget, 100).granted, "everything was given back"


def test_who_has_nothing_gives_nothing_back() -> None:
    budget = MemoryBudget(100)
    first, impatient = Message(budget, 60), Message(budget, 60, seconds=0.01)
    impatient.wait()
    assert impatient.granted is False
    impatient.part.shrink(10)
    impatient.end()
    assert Message(budget, 41).granted is None
    first.end()


def test_what_is_taken_at_once_never_passes_one_that_waits() -> None:
    budget = MemoryBudget(100)
    first = Message(budget, 60)
    assert budget.has(40)
    assert not budget.has(41)
    assert budget.take(30)
    assert not budget.take(20)
    waiting = Message(budget, 50)
    assert not budget.take(1), "somebody waits"
    budget.give_back(30)
    assert waiting.granted is None
    first.end()
    assert waiting.granted


def test_it_counts_those_that_were_given_something_and_do_not_run_yet() -> None:
    budget = MemoryBudget(100)
    first, second = Message(budget, 100), Message(budget, 100)
    assert budget.resuming == 0
    first.part.shrink(0)
    assert budget.resuming == 1
    gevent.sleep(0)
    gevent.sleep(0)
    assert second.granted
    assert budget.resuming == 0
