"""Mails wait for their permits: real Valkey, the users of a process in a circle, trouble of the account for all.

What is looked at are orders and counts, never times.
"""

from __future__ import annotations

import gevent

from relay.core.allowance import FAR, HORIZON, LATEST, MARGIN
from relay.delivery.account import Account
from relay.delivery.permit import Permit, Rest
from tests.support.paces import Asked, MakePace


def test_a_newsletter_does_not_hold_up_another_users_receipt(make_pace: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=100.0, left=-1, off="")
    pace = make_pace()
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
    behind = 100 * MARGIN * (HORIZON + LATEST)
    assert max(order.index("receipt"), order.index("other")) <= before + behind + 3
    assert pace.full()


def test_a_mail_of_a_user_that_had_none_gets_the_next_permit_although_it_was_asked_for_another(
    make_pace: MakePace, asked: Asked
) -> None:
    """At a slow account's rate a further one would take as long again."""
    asked.says = Account(rate=0.5, left=-1, off="")
    pace, other = make_pace(), make_pace()
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


def test_users_that_had_none_do_not_keep_the_turn_from_one_that_has_many(make_pace: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=50.0, left=-1, off="")
    pace = make_pace()
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


def test_the_accounts_trouble_is_a_rest_and_no_permit(make_pace: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=1000.0, left=-1, off="suspended")
    rest = make_pace().wait("r", "user", 1, 1000)
    assert isinstance(rest, Rest)
    assert rest.kind == "suspended"
    asked.says = Account(rate=1000.0, left=0, off="")
    rest = make_pace().wait("other", "user", 1, 1000)
    assert isinstance(rest, Rest)
    assert rest.kind == "quota"


def test_what_one_process_finds_out_all_keep_to(make_pace: MakePace) -> None:
    one, other = make_pace(), make_pace()
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


def test_the_end_of_the_process_ends_all_waits(make_pace: MakePace, asked: Asked) -> None:
    asked.says = Account(rate=0.2, left=-1, off="")
    pace = make_pace()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    waits = [gevent.spawn(pace.wait, "r", "user", 1, 1000) for _ in range(5)]
    gevent.sleep(0.2)
    pace.close()
    gevent.joinall(waits, timeout=10)
    for wait in waits:
        assert isinstance(wait.value, Rest)
        assert wait.value.kind == FAR
    assert isinstance(pace.wait("r", "user", 1, 1000), Rest)
