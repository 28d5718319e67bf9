"""What becomes of jobs for webhook deliveries where the queue fails; see `queue_double`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import cast

import gevent
import pytest

from relay.aws.sqs import Queue
from relay.core import metrics
from relay.jobs import dispatches as dispatches_module
from relay.jobs.dispatches import Dispatches
from relay.jobs.sender import JobSender
from tests.support.queue_double import LOST, REFUSED, QueueDouble


class World:
    def __init__(self) -> None:
        self.queue = QueueDouble()
        self.sender = JobSender(cast(Queue, self.queue))
        self.sender.first_pause = self.sender.longest_pause = self.sender.longest_lost_pause = 0.001
        self.sender._pause = self.sender.last_pause = 0.001
        self.dispatches = Dispatches(self.sender)
        self._before = self._counted()

    @staticmethod
    def _counted() -> dict[str, float]:
        return {word: metrics.WEBHOOK_JOBS.labels(word).value for word in ("published", "refused", "dropped")}

    def counted(self) -> dict[str, float]:
        """What has become of jobs since the beginning."""
        return {word: value - self._before[word] for word, value in self._counted().items()}

    def wait_until_idle(self) -> None:
        with gevent.Timeout(30):
            self.dispatches._idle.wait()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    if world.dispatches._loop is not None:
        world.dispatches._loop.stop()


def test_what_waits_for_the_queue_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatches_module, "_MOST_WAITING", 20)
    for first in range(0, 100, 7):
        world.dispatches.publish(str(number) for number in range(first, min(100, first + 7)))
        assert len(world.dispatches._waiting) <= 20
    assert world.counted() == {"published": 0, "refused": 0, "dropped": 80}
    # The first ones were kept, and each of them has its job.
    world.dispatches.start()
    world.wait_until_idle()
    assert world.queue.taken == {str(number): 1 for number in range(20)}
    assert world.counted() == {"published": 20, "refused": 0, "dropped": 80}


def test_a_job_that_is_of_no_use_any_more_is_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.queue.answers = [REFUSED]
    world.sender._pause = world.sender.longest_pause = 3600.0
    world.dispatches.publish(["a"])
    world.dispatches.start()
    world.wait_until_idle()  # "a" is dropped with its call; from now on the queue fails for long
    monkeypatch.setattr(dispatches_module, "_USEFUL_SECONDS", -1.0)
    world.dispatches.publish(["b", "c"])
    world.wait_until_idle()
    assert world.queue.calls == [("a",)]
    assert world.counted() == {"published": 0, "refused": 0, "dropped": 3}


@pytest.mark.parametrize("seed", range(6))
def test_each_delivery_is_published_refused_or_dropped_once_whatever_the_queue_does(world: World, seed: int) -> None:
    chance = random.Random(seed)
    ids = [f"{seed}-{number}" for number in range(60)]
    world.queue.answers = [chance.choice([None, None, REFUSED, LOST, ValueError("a bug")]) for _ in range(12)]
    world.queue.probe_answers = [chance.choice([None, REFUSED, LOST]) for _ in range(10)]
    world.queue.refuses = set(chance.sample(ids, 10))
    world.dispatches.start()
    left = list(ids)
    while left:
        count = chance.randint(1, 15)
        world.dispatches.publish(left[:count])
        del left[:count]
        if chance.random() < 0.5:
            gevent.sleep(0)
    world.wait_until_idle()
    assert sum(world.counted().values()) == len(ids)
    # None is sent twice: the next look of a worker finds what was dropped.
    assert all(count == 1 for count in world.queue.taken.values())
    assert world.counted()["published"] <= len(world.queue.taken) <= len(ids) - world.counted()["refused"]
    assert not world.queue.refuses & world.queue.taken.keys()
