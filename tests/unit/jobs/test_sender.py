"""What the sender asks of a queue that fails, call by call, with a clock that the test moves.

The queue is a double: no real one fails at a chosen call, or loses the answer to it. What becomes of jobs with real
queues and lost answers: tests/faults/test_queue_outages.py.
"""

from __future__ import annotations

import random
import time
from typing import cast

import gevent
import pytest
from gevent.event import Event

from relay.aws.sqs import Queue
from relay.core.errors import QueueUnavailable
from relay.jobs.job import BATCH_SIZE, Job
from relay.jobs.sender import JobSender
from tests.support.queue_double import LOST, REFUSED, QueueDouble


class World:
    """A sender, its queue and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(random, "uniform", lambda low, high: high)
        self.queue = QueueDouble()
        self.sender = JobSender(cast(Queue, self.queue))

    def send(self, *ids: str) -> str:
        """When it may: what came of it."""
        self.now += self.sender.wait
        assert len(ids) <= self.sender.most
        try:
            refused = self.sender.send([Job.of(email_id) for email_id in ids])
        except QueueUnavailable as error:
            return "unclear" if error.unclear else "not taken"
        return f"refused {[job.email_id for job in refused]}" if refused else "taken"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_while_all_is_well_there_are_whole_batches_and_no_pauses(world: World) -> None:
    for _ in range(3):
        assert (world.sender.most, world.sender.wait, world.sender.failing) == (BATCH_SIZE, 0.0, False)
        assert world.send(*map(str, range(BATCH_SIZE))) == "taken"
    assert "probe" not in world.queue.calls


def test_what_the_queue_refuses_alone_is_named_and_is_no_failure(world: World) -> None:
    world.queue.refuses = {"b"}
    assert world.send("a", "b", "c") == "refused ['b']"
    assert not world.sender.failing


def test_a_queue_that_fails_gets_one_job_a_call_and_whole_batches_when_it_is_back(world: World) -> None:
    world.queue.answers = [REFUSED, REFUSED, None]
    assert world.send("a", "b") == "not taken"
    assert world.sender.most == 1
    assert [world.send("a"), world.send("a")] == ["not taken", "taken"]
    assert (world.sender.most, world.sender.wait, world.sender.failing) == (BATCH_SIZE, 0.0, False)
    assert world.queue.taken == {"a": 1}


def test_no_call_is_made_before_its_time(world: World) -> None:
    world.queue.answers = [REFUSED]
    world.send("a")
    assert world.sender.wait == world.sender.first_pause
    with pytest.raises(QueueUnavailable) as failure:
        world.sender.send([Job.of("a")])
    assert not failure.value.unclear
    assert len(world.queue.calls) == 1


@pytest.mark.parametrize(
    ("answer", "longest"), [(REFUSED, JobSender.longest_pause), (LOST, JobSender.longest_lost_pause)]
)
def test_pauses_double_up_to_a_bound_and_begin_anew(world: World, answer: QueueUnavailable, longest: float) -> None:
    world.queue.answers = [answer] * 12
    pauses = []
    for _ in range(12):
        world.send("a")
        pauses.append(world.sender.wait)
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == longest
    assert world.send("a") == "taken"
    world.queue.answers = [REFUSED]
    world.send("a")
    assert world.sender.wait == world.sender.first_pause


def test_one_waiting_job_whose_answers_are_lost_is_sent_twice_and_no_more(world: World) -> None:
    """The queue takes it each time. While no answer comes to a call without jobs, it is not sent."""
    world.queue.answers = [LOST]
    world.queue.probe_answers = [LOST] * 9
    assert world.send("a") == "unclear"
    for _ in range(9):
        assert world.send("a") == "not taken", "nothing was asked of it that could be unclear"
    assert world.send("a") == "taken"
    assert world.queue.calls == [("a",), *["probe"] * 10, ("a",)]
    assert world.queue.taken == {"a": 2}
    assert world.send("b") == "taken"
    assert world.queue.calls[-1] == ("b",), "no further probes once it is well"
    assert LOST.unclear, "what the sender notes on an error would be the answer of the tests that follow"


def test_a_failure_without_a_doubt_needs_no_probe(world: World) -> None:
    world.queue.answers = [REFUSED, REFUSED]
    world.send("a")
    world.send("a")
    assert world.send("a") == "taken"
    assert "probe" not in world.queue.calls


def test_a_doubt_is_kept_until_the_queue_is_well(world: World) -> None:
    world.queue.answers = [LOST, REFUSED, None]
    world.send("a")
    for _ in range(2):
        world.send("a")
    assert world.queue.calls == [("a",), "probe", ("a",), "probe", ("a",)]


def test_one_call_at_a_time_finds_out(world: World) -> None:
    world.queue.answers = [REFUSED]
    world.send("a")
    world.now += world.sender.wait
    world.queue.gate = Event()
    finding_out = gevent.spawn(world.send, "a")
    gevent.sleep(0)
    assert world.queue.calls == [("a",), ("a",)]
    world.now += 60.0
    assert world.sender.wait > 0
    with pytest.raises(QueueUnavailable):
        world.sender.send([Job.of("b")])
    world.queue.gate.set()
    assert finding_out.get(timeout=10) == "taken"
    world.queue.gate = None
    assert world.send("b") == "taken"
    assert world.queue.calls == [("a",), ("a",), ("b",)]


def test_calls_that_fail_together_are_one_failure(world: World) -> None:
    world.queue.gate = Event()
    world.queue.answers = [REFUSED] * 4
    together = [gevent.spawn(world.send, str(number)) for number in range(4)]
    gevent.sleep(0)
    world.queue.gate.set()
    gevent.joinall(together, raise_error=True, timeout=10)
    assert world.sender.wait == world.sender.first_pause


def test_an_unforeseen_error_is_a_pause_too_and_a_doubt(world: World) -> None:
    world.queue.answers = [ZeroDivisionError()]
    assert world.send("a") == "unclear"
    assert world.sender.wait == world.sender.first_pause
    world.queue.probe_answers = [ZeroDivisionError()]
    assert world.send("a") == "not taken", "a probe that fails has sent nothing"
    assert world.send("a") == "taken"


def test_in_a_hurry_the_next_call_comes_at_once_and_the_others_soon(world: World) -> None:
    world.queue.answers = [REFUSED] * 8
    for _ in range(6):
        world.send("a")
    assert world.sender.wait > 1.0
    world.sender.hurry()
    assert world.sender.wait == 0.0
    world.send("a")
    assert world.sender.wait == pytest.approx(world.sender.last_pause)
