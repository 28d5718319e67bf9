"""Permits are looked at right before a mail leaves; the clock of the test is moved by hand."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from relay.core.errors import TooLate
from relay.delivery import permit as module
from relay.delivery.permit import Lag, Permit, ServerClock


class Clock:
    """time and gevent.sleep of the module. A stand-in: the arithmetic is what is looked at."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "gevent", clock)
    return clock


def permit(moment: float, latest: float, renew: Callable[[float], Permit] | None = None) -> Permit:
    return Permit(moment, latest, Lag(), begun=100.0, renew=renew)


def test_a_mail_that_is_early_waits_for_its_moment(clock: Clock) -> None:
    permit(100.5, 100.52).use()
    assert clock.now == 100.5


def test_a_mail_that_is_late_gets_another_permit_where_it_is(clock: Clock) -> None:
    def renew(_: float) -> Permit:
        clock.now += 0.001
        return permit(clock.now + 0.2, clock.now + 0.22)

    clock.now = 100.6
    permit(100.5, 100.52, renew).use()
    assert clock.now == pytest.approx(100.801)


def test_a_process_that_is_late_for_each_permit_puts_its_mail_back(clock: Clock) -> None:
    renewed = []

    def renew(_: float) -> Permit:
        given = permit(clock.now, clock.now + 0.02)
        renewed.append(given)
        clock.now += 0.1
        return given

    clock.now = 100.6
    with pytest.raises(TooLate):
        permit(100.5, 100.52, renew).use()
    assert 1 < len(renewed) < 10


def test_all_further_permits_together_have_one_limit(clock: Clock) -> None:
    """A connection does not stay open for ever, nor does a claim."""
    limits: list[float] = []

    def renew(until: float) -> Permit:
        limits.append(until)
        clock.now += 3.0
        return permit(clock.now - 1.0, clock.now - 0.98)

    clock.now = 100.6
    with pytest.raises(TooLate):
        permit(100.5, 100.52, renew).use()
    assert len(limits) > 1
    assert limits == [pytest.approx(110.6)] * len(limits)


def test_where_there_is_no_other_permit_the_mail_is_put_back(clock: Clock) -> None:
    def renew(_: float) -> Permit:
        raise TooLate(30.0)

    clock.now = 100.6
    with pytest.raises(TooLate) as late:
        permit(100.5, 100.52, renew).use()
    assert late.value.seconds == 30.0
    with pytest.raises(TooLate):
        permit(100.5, 100.52).use()


def test_what_takes_long_as_a_rule_is_allowed_for_and_a_single_stop_is_not() -> None:
    lag = Lag()
    for _ in range(100):
        lag.add(0.002)
    assert lag.seconds == 0.0
    lag.add(3600.0)
    assert lag.seconds < 0.2
    for _ in range(100):
        lag.add(0.05)
    assert lag.seconds == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_the_servers_clock_is_known_however_late_answers_are_read(seed: int) -> None:
    """A process that stands still between question and answer takes no moment for another one."""
    chance = random.Random(seed)
    clock, offset, now = ServerClock(), chance.uniform(-1e9, 1e9), 100.0
    quickest = float("inf")
    for _ in range(300):
        asked = now
        there, back = chance.uniform(0.0001, 0.001), chance.uniform(0.0001, 0.001)
        if chance.random() < 0.5:
            there += chance.expovariate(20.0)
        if chance.random() < 0.5:
            back += chance.expovariate(20.0)
        moment, answered = asked + there, asked + there + back
        quickest = min(quickest + 1e-3 * (answered - now + 1.0), (answered - asked) / 2)
        found = clock.moment(moment + offset, asked, answered)
        assert abs(found - moment) <= quickest + 1e-4
        now = answered + chance.uniform(0.0, 1.0)


def test_a_clock_that_was_put_forward_or_back_is_followed_at_once() -> None:
    clock = ServerClock()
    assert clock.moment(5000.0, 100.0, 100.002) == pytest.approx(100.001)
    assert not clock.stepped
    for offset in (-3600.0, 0.0, 7200.0, -0.5):
        assert clock.moment(5001.0 + offset, 101.0, 101.1) == pytest.approx(101.05)
        assert clock.stepped
    clock.moment(5001.6 - 0.5, 101.6, 101.7)
    assert not clock.stepped


def test_a_clock_that_is_slewed_was_not_put_forward() -> None:
    clock = ServerClock()
    for second in range(100):
        asked = 100.0 + second
        found = clock.moment(5000.0 + second * 1.0005, asked, asked + 0.001)
        assert abs(found - asked) <= 0.002
        assert not clock.stepped
