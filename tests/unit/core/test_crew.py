"""Greenlets that stay for the next work: none of it is lost, whatever ends them."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from typing import Any

import gevent
import pytest

from relay.core import metrics
from relay.core.supervision import Crew


class Unforeseen(BaseException):
    """No Exception: nothing that catches errors knows it."""


class Work:
    """What is to be done, in a few turns of the loop."""

    def __init__(self) -> None:
        self.done: Counter[int] = Counter()
        self.greenlets: set[Any] = set()

    def run(self, number: int, turns: int = 0) -> None:
        self.greenlets.add(gevent.getcurrent())
        for _ in range(turns):
            gevent.sleep(0)
        self.done[number] += 1


def test_greenlets_are_as_many_as_there_was_work_at_a_time() -> None:
    crew, work = Crew("test_crew"), Work()
    for first in range(0, 100, 5):
        for number in range(first, first + 5):
            crew.run(work.run, number, 3)
        gevent.sleep(0.0)
        while len(work.done) < first + 5:
            gevent.sleep(0)
    assert work.done == Counter(range(100))
    assert len(work.greenlets) == 5


def test_an_error_ends_the_work_that_raised_it_alone() -> None:
    crew, work = Crew("test_crew"), Work()
    before = metrics.GREENLET_FAILURES.labels("test_crew").value

    def fail() -> None:
        raise Unforeseen

    for number in range(3):
        crew.run(fail)
        crew.run(work.run, number)
        gevent.sleep(0.01)
    assert work.done == Counter(range(3))
    assert metrics.GREENLET_FAILURES.labels("test_crew").value == before + 3


@pytest.mark.parametrize("seed", range(5))
def test_work_is_done_once_whatever_strikes_greenlets_that_wait_for_some(seed: int) -> None:
    chance = random.Random(seed)
    crew, work = Crew("test_crew"), Work()
    for number in range(200):
        crew.run(work.run, number, chance.randrange(3))
        struck = chance.sample(sorted(work.greenlets, key=id), min(2, len(work.greenlets)))
        for greenlet in struck:
            # Those that are at work at this moment would lose it, as any greenlet would.
            if not greenlet.dead and any(idle._given._waiter.greenlet is greenlet for idle in crew._idle):
                chance.choice((lambda g: g.kill(block=False), lambda g: g.kill(Unforeseen, block=False)))(greenlet)
        if chance.random() < 0.5:
            gevent.sleep(0)
    while any(not greenlet.dead for greenlet in work.greenlets) and len(work.done) < 200:
        gevent.sleep(0)
    gevent.sleep(0.01)
    assert work.done == Counter(range(200))
    assert all(idle.task is None for idle in crew._idle)


def test_nothing_of_what_is_done_stays_in_memory() -> None:
    class Mail:
        """Large."""

    crew = Crew("test_crew")
    mail = Mail()
    seen = weakref.ref(mail)
    crew.run(lambda given: None, mail)
    del mail
    gevent.sleep(0.01)
    assert seen() is None
