"""Mails wait for their permits: real Valkey, the users of a process in a circle, trouble of the account for all.

What is looked at are orders and counts, never times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import gevent
import pytest
import redis

from relay.core import metrics
from relay.core.allowance import FAR, LATEST, MARGIN, Grant
from relay.core.errors import TooLate
from relay.delivery import pace as module
from relay.delivery.account import UNTOLD, Account
from relay.delivery.pace import Pace, Rest
from relay.delivery.permit import Lag, Permit
from relay.redis.link import RedisLink
from scripts.services import free_port

MakePace = Callable[..., Pace]


class Asked:
    """An account that says what a test wants it to. A stand-in for the call to SES."""

    def __init__(self) -> None:
        self.says: Account | None = Account(rate=1000.0, left=-1, off="")
        self.times = 0

    def __call__(self, _: str) -> Account | None:
        self.times += 1
        return self.says


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def make(redis_url: str, asked: Asked) -> Iterator[MakePace]:
    links: list[RedisLink] = []

    def make(url: str | None = redis_url, *, shares: int = 1, fallback: float = 2.0) -> Pace:
        link = None
        if url is not None:
            link = RedisLink(url, verify_tls=True, timeout=1.0, pause=0.05)
            links.append(link)
        return Pace(link, "ses", asked, fallback=fallback, shares=shares)

    yield make
    for link in links:
        link.close()


def scripts_called(url: str) -> int:
    with redis.Redis.from_url(url) as server:
        return sum(int(stats["calls"]) for name, stats in server.info("commandstats").items() if "eval" in name)


def test_a_newsletter_does_not_hold_up_another_users_receipt(make: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=100.0, left=-1, off="")
    pace = make()
    order: list[str] = []

    def send(user: str) -> None:
        assert isinstance(pace.wait("r", user, 1, 1000), Permit)
        order.append(user)

    newsletter = [gevent.spawn(send, "newsletter") for _ in range(30)]
    while len(order) < 5:
        gevent.sleep(0.001)
    before = len(order)
    receipts = [gevent.spawn(send, user) for user in ("receipt", "other")]
    gevent.joinall(newsletter + receipts)
    # What has its permit already goes first: those of a moment. Then each user in turn.
    behind = 100 * MARGIN * (module.HORIZON + LATEST)
    assert max(order.index("receipt"), order.index("other")) <= before + behind + 3
    assert pace.full()


def test_a_mail_of_a_user_that_had_none_gets_the_next_permit_although_it_was_asked_for_another(
    make: MakePace, asked: Asked
) -> None:
    """At a slow account's rate a further one would take as long again."""
    asked.says = Account(rate=0.5, left=-1, off="")
    pace, other = make(), make()
    order: list[str] = []

    def send(user: str) -> None:
        assert isinstance(pace.wait("r", user, 1, 1000), Permit)
        order.append(user)

    newsletter = [gevent.spawn(send, "newsletter") for _ in range(2)]
    while not order:
        gevent.sleep(0.001)
    # By the time of the other process's permit, the one behind it has been asked for.
    other.wait("r", "user", 1, 1000)
    receipt = gevent.spawn(send, "receipt")
    receipt.join()
    assert order == ["newsletter", "receipt"]
    pace.close()
    gevent.killall(newsletter)


def test_users_that_had_none_do_not_keep_the_turn_from_one_that_has_many(make: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=50.0, left=-1, off="")
    pace = make()
    order: list[str] = []

    def send(user: str) -> None:
        assert isinstance(pace.wait("r", user, 1, 1000), Permit)
        order.append(user)

    waits = [gevent.spawn(send, "newsletter") for _ in range(10)]
    number = 0
    while order.count("newsletter") < 10:
        assert len(order) < 400, order
        if number - len(order) < 3:
            waits.append(gevent.spawn(send, f"user {number}"))
            number += 1
        gevent.sleep(0.001)
    gevent.joinall(waits)


def test_mails_that_wait_behind_many_others_are_put_back_before_their_claims_are_too_old_for_a_permit(
    make: MakePace, asked: Asked
) -> None:
    """Where all wait for longer than a claim lasts, no permit would be of use, and none of them would ever leave."""
    asked.says = Account(rate=10.0, left=-1, off="")
    pace = make()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    account = pace._of("r")
    account._spare.clear()
    account._serving = True  # until all of them wait
    waits = [gevent.spawn(pace.wait, "r", user, 1, 1000) for user in ("many", "many", "many", "one", "one")]
    gevent.sleep(0)
    for mail in (*list(account._users["many"])[:2], account._users["one"][0]):
        mail.since -= module.FARTHEST + 1.0
    gevent.spawn(account._serve)
    gevent.joinall(waits)
    assert [wait.value if isinstance(wait.value, Rest) else type(wait.value) for wait in waits] == [
        *([Rest(module._SOON, FAR)] * 2),
        Permit,
        Rest(module._SOON, FAR),
        Permit,
    ]


def test_a_mail_whose_connection_waits_gets_its_further_permit_at_once(make: MakePace) -> None:
    """However long others take until they leave: where connections are few, each waits for one."""
    pace = make()
    pace.wait("r", "user", 1, 1000)
    account = pace._of("r")
    for _ in range(100):
        account._lag.add(1.0)
    leads: list[float] = []
    reserve = account._reserve
    account._reserve = lambda now, weights, lead: leads.append(lead) or reserve(now, weights, lead)  # type: ignore[method-assign]
    late = gevent.spawn(account.renewed, "user", 1, time.monotonic() + 60)
    waits = [late, *(gevent.spawn(pace.wait, "r", "user", 2, 1) for _ in range(3))]
    gevent.joinall(waits)
    assert leads[0] < 0.5 < leads[-1] or len(leads) == 1
    assert all(isinstance(wait.value, Permit) for wait in waits)


def test_the_first_permits_after_redis_clock_was_put_forward_are_void(make: MakePace) -> None:
    """The server takes the permits that others hold for past ones."""
    pace = make()
    pace.wait("r", "user", 1, 1000)
    account = pace._of("r")
    account._spare.clear()
    permits: list[list[Permit]] = []
    given = account._permits
    account._permits = lambda *arguments: permits.append(given(*arguments)) or permits[-1]  # type: ignore[method-assign, func-returns-value]
    account._clock._offset -= 7200.0
    assert isinstance(pace.wait("r", "user", 2, 1000), Permit)
    assert all(permit.latest < time.monotonic() - 60 for permit in permits[0])
    assert len(permits) > 1


def test_a_mail_that_is_late_does_not_wait_for_a_further_permit_for_long(make: MakePace, asked: Asked) -> None:
    """Its connection would be closed meanwhile, its call over, or its claim: the mail is put back, and asks no more."""
    asked.says = Account(rate=0.1, left=-1, off="")
    pace = make()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    account = pace._of("r")
    with pytest.raises(TooLate):
        account.renewed("user", 1, time.monotonic() + 0.1)
    assert not account._users
    # One that it gets at once, and whose moment is later.
    account._asked = lambda *_, **__: Permit(time.monotonic() + 9.0, math.inf, Lag())  # type: ignore[method-assign]
    with pytest.raises(TooLate):
        account.renewed("user", 1, time.monotonic() + 0.1)


def test_a_mail_that_comes_back_while_permits_are_asked_for_is_not_forgotten(make: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=100.0, left=-1, off="")
    pace = make()
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


def test_most_mails_of_a_busy_process_cost_no_request(make: MakePace, asked: Asked, redis_url: str) -> None:
    asked.says = Account(rate=50_000.0, left=-1, off="")
    pace = make()
    pace.wait("r", "user", 1, 1000)
    before = scripts_called(redis_url)
    for _ in range(100):
        assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert scripts_called(redis_url) - before <= 50
    before = scripts_called(redis_url)
    gevent.joinall([gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(100)])
    assert scripts_called(redis_url) - before <= 30


def test_one_process_of_all_asks_the_account(make: MakePace, asked: Asked) -> None:
    paces = [make() for _ in range(3)]
    gevent.joinall([gevent.spawn(pace.wait, "r", "user", 1, 1000) for pace in paces for _ in range(5)])
    assert asked.times == 1


def test_while_the_moment_of_a_permit_is_waited_for_the_account_is_asked_and_mail_counts_as_waiting(
    make: MakePace, asked: Asked
) -> None:
    pace = make()
    account = pace._of("r")
    far = Grant(0.0, (20.0,), again=20.0, ask=True, rate=1.0, lowered=False, left=-1)
    account._reserve = lambda *_: replace(far, now=time.monotonic())  # type: ignore[method-assign]
    waits = [gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(2)]
    with gevent.Timeout(10):
        while not asked.times:
            gevent.sleep(0.01)
    assert pace.full()
    pace.close()
    gevent.joinall(waits, timeout=10)
    assert all(isinstance(wait.value, Rest) for wait in waits)


def test_an_account_that_may_not_be_asked_has_the_rate_of_the_setting(make: MakePace, asked: Asked) -> None:
    asked.says = UNTOLD
    pace = make(fallback=50.0)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    pace.wait("r", "user", 1, 1000)
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(50.0 * MARGIN)


def test_a_permit_that_comes_too_late_is_void(make: MakePace, redis_url: str) -> None:
    pace = make()
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


def test_the_accounts_trouble_is_a_rest_and_no_permit(make: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=1000.0, left=-1, off="suspended")
    rest = make().wait("r", "user", 1, 1000)
    assert isinstance(rest, Rest)
    assert rest.kind == "suspended"
    asked.says = Account(rate=1000.0, left=0, off="")
    rest = make().wait("other", "user", 1, 1000)
    assert isinstance(rest, Rest)
    assert rest.kind == "quota"


def test_what_one_process_finds_out_all_keep_to(make: MakePace) -> None:
    one, other = make(), make()
    assert isinstance(one.wait("r", "user", 1, 1000), Permit)
    assert one.rest("r", "paused", 60.0, 300.0) == 60.0
    rest = other.wait("r", "user", 1, 1000)
    assert isinstance(rest, Rest)
    assert rest.kind == "paused"
    assert 50 < rest.seconds <= 72
    assert isinstance(other.wait("well", "user", 1, 1000), Permit)
    one.resume("r")
    gevent.sleep(0.2)
    assert isinstance(other.wait("r", "user", 1, 1000), Permit)


@pytest.mark.parametrize("away", [False, True])
def test_without_redis_each_process_has_its_share(make: MakePace, away: bool) -> None:
    pace = make(f"redis://127.0.0.1:{free_port()}/0" if away else None, shares=4)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(1000.0 * MARGIN / 4)


def test_redis_goes_and_comes_back(make: MakePace, asked: Asked, redis_url: str) -> None:
    pace = make(shares=4)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    account = pace._of("r")
    shared, account._shared = account._shared, make(f"redis://127.0.0.1:{free_port()}/0")._of("r")._shared
    account._spare.clear()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(1000.0 * MARGIN / 4)
    account._shared = shared
    account._spare.clear()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)  # for a moment all keep to their shares still
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(1000.0 * MARGIN / 4)


def test_the_end_of_the_process_ends_all_waits(make: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=0.2, left=-1, off="")
    pace = make()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    waits = [gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(5)]
    gevent.sleep(0.2)
    pace.close()
    gevent.joinall(waits, timeout=10)
    for wait in waits:
        assert isinstance(wait.value, Rest)
        assert wait.value.kind == FAR
    assert isinstance(pace.wait("r", "user", 1, 1000), Rest)


def test_an_error_ends_the_wait_of_all_callers(make: MakePace, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = make()
    pace.wait("r", "user", 1, 1000)
    account = pace._of("r")

    def fails(_: object) -> None:
        raise ValueError

    monkeypatch.setattr(type(account), "_reserve", fails)
    rest = pace.wait("r", "user", 2, 1000)
    assert isinstance(rest, Rest)
    monkeypatch.undo()
    assert isinstance(pace.wait("r", "user", 2, 1000), Permit)
