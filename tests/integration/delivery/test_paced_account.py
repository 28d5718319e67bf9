"""Permits of one account are handed out: none is used late, none kept from a mail that may use it, few requests ask.

What is looked at are orders and counts, never times.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import gevent
import pytest

from relay.core.allowance import FAR, FARTHEST, Grant
from relay.core.errors import TooLate
from relay.delivery import paced_account
from relay.delivery.account import Account
from relay.delivery.permit import Lag, Permit, Rest
from tests.support.paces import Asked, MakePace, scripts_called


def test_mails_that_wait_behind_many_others_are_put_back_before_their_claims_are_too_old_for_a_permit(
    make_pace: MakePace, asked: Asked
) -> None:
    """Where all wait for longer than a claim lasts, no permit would be of use, and none of them would ever leave."""
    asked.says = Account(rate=10.0, left=-1, off="")
    pace = make_pace()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    account = pace._of("r")
    account._spare.clear()
    account._serving = True  # until all of them wait
    waits = [gevent.spawn(pace.wait, "r", user, 1, 1000) for user in ("many", "many", "many", "one", "one")]
    gevent.sleep(0)
    for mail in (*list(account._turns._users["many"])[:2], account._turns._users["one"][0]):
        mail.since -= FARTHEST + 1.0
    gevent.spawn(account._serve)
    gevent.joinall(waits)
    assert [wait.value if isinstance(wait.value, Rest) else type(wait.value) for wait in waits] == [
        *([Rest(paced_account._SOON, FAR)] * 2),
        Permit,
        Rest(paced_account._SOON, FAR),
        Permit,
    ]


def test_a_mail_whose_connection_waits_gets_its_further_permit_at_once(make_pace: MakePace) -> None:
    """However long others take until they leave: where connections are few, each waits for one."""
    pace = make_pace()
    pace.wait("r", "user", 1, 1000)
    account = pace._of("r")
    for _ in range(100):
        account._lag.add(1.0)
    leads: list[float] = []
    reserve = account._allowance.reserve
    account._allowance.reserve = lambda now, weights, lead: leads.append(lead) or reserve(now, weights, lead)  # type: ignore[method-assign]
    late = gevent.spawn(account.renewed, "user", 1, time.monotonic() + 60)
    waits = [late, *(gevent.spawn(pace.wait, "r", "user", 2, 1) for _ in range(3))]
    gevent.joinall(waits)
    assert leads[0] < 0.5 < leads[-1] or len(leads) == 1
    assert all(isinstance(wait.value, Permit) for wait in waits)


def test_a_mail_that_is_late_does_not_wait_for_a_further_permit_for_long(make_pace: MakePace, asked: Asked) -> None:
    """Its connection would be closed meanwhile, its call over, or its claim: the mail is put back, and asks no more."""
    asked.says = Account(rate=0.1, left=-1, off="")
    pace = make_pace()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    account = pace._of("r")
    with pytest.raises(TooLate):
        account.renewed("user", 1, time.monotonic() + 0.1)
    assert not account._turns._users
    # One that it gets at once, and whose moment is later.
    account._asked = lambda *_, **__: Permit(time.monotonic() + 9.0, math.inf, Lag())  # type: ignore[method-assign]
    with pytest.raises(TooLate):
        account.renewed("user", 1, time.monotonic() + 0.1)


def test_a_mail_that_comes_back_while_permits_are_asked_for_is_not_forgotten(make_pace: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=100.0, left=-1, off="")
    pace = make_pace()
    pace.wait("r", "user", 1, 1000)
    account = pace._of("r")
    waits = []
    for _ in range(10):
        waits += [gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(3)]
        gevent.sleep(0)
        waits.append(gevent.spawn(account.renewed, "user", 1, time.monotonic() + 60))
        gevent.sleep(0.001)
    gevent.joinall(waits, timeout=30)
    assert all(isinstance(wait.value, Permit) for wait in waits)


def test_most_mails_of_a_busy_process_cost_no_request(make_pace: MakePace, asked: Asked, redis_url: str) -> None:
    asked.says = Account(rate=50_000.0, left=-1, off="")
    pace = make_pace()
    pace.wait("r", "user", 1, 1000)
    before = scripts_called(redis_url)
    for _ in range(100):
        assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert scripts_called(redis_url) - before <= 50
    before = scripts_called(redis_url)
    gevent.joinall([gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(100)])
    assert scripts_called(redis_url) - before <= 30


def test_while_the_moment_of_a_permit_is_waited_for_the_account_is_asked_and_mail_counts_as_waiting(
    make_pace: MakePace, asked: Asked
) -> None:
    pace = make_pace()
    account = pace._of("r")
    far = Grant(0.0, (20.0,), again=20.0, ask=True, rate=1.0, lowered=False, left=-1)
    account._allowance.reserve = lambda *_: replace(far, now=time.monotonic())  # type: ignore[method-assign]
    waits = [gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(2)]
    with gevent.Timeout(10):
        while not asked.times:
            gevent.sleep(0.01)
    assert pace.full()
    pace.close()
    gevent.joinall(waits, timeout=10)
    assert all(isinstance(wait.value, Rest) for wait in waits)


def test_a_permit_that_comes_too_late_is_void(make_pace: MakePace, redis_url: str) -> None:
    pace = make_pace()
    pace.wait("r", "user", 1, 1000)
    before = scripts_called(redis_url)
    waits = [gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(20)]
    while scripts_called(redis_url) == before:
        gevent.sleep(0)
    time.sleep(0.3)  # the process stands still, with permits on their way to it
    asked_by_then = scripts_called(redis_url)
    gevent.joinall(waits)
    assert scripts_called(redis_url) > asked_by_then
    assert all(isinstance(wait.value, Permit) for wait in waits)


def test_an_error_ends_the_wait_of_all_callers(make_pace: MakePace, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = make_pace()
    pace.wait("r", "user", 1, 1000)
    account = pace._of("r")

    def fails(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(account._allowance, "reserve", fails)
    rest = pace.wait("r", "user", 2, 1000)
    assert isinstance(rest, Rest)
    monkeypatch.undo()
    assert isinstance(pace.wait("r", "user", 2, 1000), Permit)
