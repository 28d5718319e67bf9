"""Deadlines of waiting greenlets: kept for each of them, and for none that does not wait."""

from __future__ import annotations

import time

import gevent
import gevent.event
import pytest

from relay.smtp.timeouts import NEVER, Overdue, Waiter, Waits


@pytest.fixture
def waits() -> Waits:
    waits = Waits()
    waits.interval = 0.01
    return waits


class Patient:
    """A greenlet that waits for an event, so many seconds at most."""

    def __init__(self, waits: Waits, seconds: float, event: gevent.event.Event) -> None:
        self.waits = waits
        self.seconds = seconds
        self.event = event
        self.waiter: Waiter | None = None

    def __call__(self) -> str:
        self.waiter = Waiter()
        self.waits.add(self.waiter)
        self.waiter.until = time.monotonic() + self.seconds
        try:
            self.event.wait()
            return "in time"
        except Overdue:
            return "overdue"
        finally:
            self.waiter.until = NEVER


def test_each_deadline_ends_the_wait_that_it_belongs_to(waits: Waits) -> None:
    event = gevent.event.Event()
    patient, impatient = (gevent.spawn(Patient(waits, seconds, event)) for seconds in (60.0, 0.02))
    impatient.join(10)
    assert impatient.value == "overdue"
    assert not patient.dead
    event.set()
    patient.join(10)
    assert patient.value == "in time"


def test_one_that_has_gone_on_is_left_alone(waits: Waits) -> None:
    def late() -> str:
        Patient(waits, 0.02, done)()
        gevent.sleep(0.1)
        return "well"

    done = gevent.event.Event()
    done.set()
    greenlet = gevent.spawn(late)
    greenlet.join(10)
    assert greenlet.value == "well"


def test_one_that_was_removed_is_left_alone(waits: Waits) -> None:
    event = gevent.event.Event()
    patient = Patient(waits, 0.05, event)
    greenlet = gevent.spawn(patient)
    gevent.sleep(0)
    assert patient.waiter is not None
    waits.remove(patient.waiter)
    gevent.sleep(0.1)
    event.set()
    greenlet.join(10)
    assert greenlet.value == "in time"


def test_what_one_does_when_it_is_woken_may_spare_another(waits: Waits) -> None:
    event = gevent.event.Event()
    patients = [Patient(waits, 0.02, gevent.event.Event()), Patient(waits, 0.02, event)]

    def selfless(patient: Patient, other: Patient) -> str:
        outcome = patient()
        # Both were overdue at the same look; the other one's wait ends before its turn.
        if other.waiter is not None and outcome == "overdue":
            other.waiter.until = time.monotonic() + 60.0
            other.event.set()
        return outcome

    greenlets = [gevent.spawn(selfless, one, other) for one, other in (patients, patients[::-1])]
    gevent.joinall(greenlets, timeout=10)
    # The first one spares the other one.
    assert sorted(greenlet.value for greenlet in greenlets) == ["in time", "overdue"]
