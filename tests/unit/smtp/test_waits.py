"""Deadlines of waiting greenlets: kept for each of them, and for none that does not wait."""

from __future__ import annotations

import time

import gevent
import gevent.event
import pytest

from relay.smtp.waits import Overdue, Waits


@pytest.fixture
def waits() -> Waits:
    waits = Waits()
    waits.interval = 0.01
    waits.watch()
    return waits


def wait(waits: Waits, seconds: float, event: gevent.event.Event) -> str:
    greenlet = gevent.getcurrent()
    waits.until[greenlet] = time.monotonic() + seconds
    try:
        event.wait()
        return "in time"
    except Overdue:
        return "overdue"
    finally:
        del waits.until[greenlet]


def test_each_deadline_ends_the_wait_that_it_belongs_to(waits: Waits) -> None:
    event = gevent.event.Event()
    patient, impatient = (gevent.spawn(wait, waits, seconds, event) for seconds in (60.0, 0.02))
    impatient.join(10)
    assert impatient.value == "overdue"
    assert not patient.dead
    event.set()
    patient.join(10)
    assert patient.value == "in time"
    assert waits.until == {}


def test_one_that_has_gone_on_is_left_alone(waits: Waits) -> None:
    def late() -> str:
        wait(waits, 0.02, done)
        gevent.sleep(0.1)
        return "well"

    done = gevent.event.Event()
    done.set()
    greenlet = gevent.spawn(late)
    greenlet.join(10)
    assert greenlet.value == "well"


def test_what_one_does_when_it_is_woken_may_spare_another(waits: Waits) -> None:
    event = gevent.event.Event()

    def first() -> str:
        outcome = wait(waits, 0.02, gevent.event.Event())
        # Both were overdue at the same look; the second one's wait ends before its turn.
        waits.until[second] = time.monotonic() + 60.0
        event.set()
        return outcome

    one = gevent.spawn(first)
    second = gevent.spawn(wait, waits, 0.02, event)
    gevent.joinall([one, second], timeout=10)
    assert (one.value, second.value) == ("overdue", "in time")
