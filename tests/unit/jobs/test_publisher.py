"""What the publisher does with jobs that a queue did not take, or may have taken; see `queue_double`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import gevent
import pytest

from relay.aws.sqs import Queue
from relay.core.errors import RedisUnavailable
from relay.jobs.intents import Intents
from relay.jobs.publisher import Publisher
from relay.jobs.sender import JobSender
from tests.support.queue_double import LOST, REFUSED, QueueDouble


class IntentsDouble:
    """Redis's list as a set; `away`: no answer."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.noted: list[str] = []
        self.away = False

    def drop(self, ids: Sequence[str]) -> None:
        self.dropped += ids

    def now_ms(self) -> int:
        if self.away:
            raise RedisUnavailable("down")
        return 0

    def note(self, ids: Sequence[str], _now: int) -> None:
        self.noted += ids

    def settle(self) -> None:
        if self.away:
            raise RedisUnavailable("down")


class World:
    def __init__(self) -> None:
        self.queue = QueueDouble()
        self.intents = IntentsDouble()
        sender = JobSender(cast(Queue, self.queue))
        sender.first_pause = sender.longest_pause = sender.longest_lost_pause = sender._pause = 0.001
        self.publisher = Publisher(sender, cast(Intents, self.intents))
        self.publisher.keep_seconds = 0.01

    def publish(self, *ids: str) -> None:
        for email_id in ids:
            self.publisher.publish(email_id)
        self.publisher.start()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with gevent.Timeout(30):
            while not condition():
                gevent.sleep(0.001)

    @property
    def sent(self) -> list[tuple[str, ...] | str]:
        """The calls that had jobs."""
        return [call for call in self.queue.calls if call != "probe"]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.publisher.stop(0.0)


def test_a_job_that_may_have_been_taken_goes_behind_the_others(world: World) -> None:
    """None is the one that is sent in doubt again and again."""
    world.queue.answers = [LOST] * 5
    world.publish("a", "b")
    world.wait_for(lambda: sorted(world.intents.dropped) == ["a", "b"])
    assert world.sent == [("a", "b"), ("a",), ("b",), ("a",), ("b",), ("a",), ("b",)]


def test_jobs_that_were_not_taken_keep_their_order(world: World) -> None:
    world.queue.answers = [REFUSED] * 3
    world.publish("a", "b", "c")
    world.wait_for(lambda: len(world.intents.dropped) == 3)
    assert world.sent[:4] == [("a", "b", "c"), ("a",), ("a",), ("a",)]
    assert world.queue.taken == {"a": 1, "b": 1, "c": 1}


def test_an_intent_goes_when_the_queue_has_the_job_and_not_before(world: World) -> None:
    world.queue.refuses = {"b"}
    world.publish("a", "b")
    world.wait_for(lambda: world.intents.dropped == ["a"])
    assert world.publisher.stop(0.0) == 1
    assert world.intents.dropped == ["a"]


def test_a_job_that_is_refused_alone_is_given_up_and_its_intent_stays(world: World) -> None:
    world.queue.refuses = {"a"}
    world.publisher.publish("a")
    for _ in range(4):
        world.publisher._send(world.publisher._take(1))
    assert world.sent == [("a",)] * 4
    assert not world.publisher._waiting
    assert world.intents.dropped == []


def test_jobs_that_wait_keep_their_intents_young_and_redis_may_be_away(world: World) -> None:
    world.queue.answers = [REFUSED] * 1_000_000
    world.intents.away = True
    world.publish("a", "b")
    gevent.sleep(0.1)
    assert world.intents.noted == []
    world.intents.away = False
    world.wait_for(lambda: {"a", "b"} <= set(world.intents.noted))
    world.queue.answers = []
    world.wait_for(lambda: sorted(world.intents.dropped) == ["a", "b"])


def test_the_end_waits_for_what_is_on_its_way_and_says_what_is_left(world: World) -> None:
    world.publish(*map(str, range(25)))
    assert world.publisher.stop(30.0) == 0
    assert sum(world.queue.taken.values()) == 25
    other = World()
    other.queue.answers = [REFUSED] * 1_000_000
    other.publish("a", "b", "c")
    assert other.publisher.stop(0.05) == 3
