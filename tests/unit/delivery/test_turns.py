"""Who gets the next permit: users in turn, one that had nothing to send first, and none is forgotten."""

from __future__ import annotations

import itertools
import math

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.allowance import FAR
from relay.delivery.permit import Lag, Permit, Rest
from relay.delivery.turns import Turns, WaitingMail
from tests.support.clock import Clock

PERMIT = Permit(0.0, math.inf, Lag())
REST = Rest(1.0, FAR)


@pytest.fixture
def turns() -> Turns:
    return Turns()


def add(turns: Turns, *users: str, ready: bool = False, recipients: int = 1) -> list[WaitingMail]:
    mails = [WaitingMail(user, recipients, ready=ready) for user in users]
    for mail in mails:
        turns.add(mail)
    return mails


def test_users_are_served_in_turn(turns: Turns) -> None:
    add(turns, *"aaabbc")
    before = [mail.user_id for mail in turns.in_turn(50)]
    assert before == list("bacbaa")  # b was the first that had nothing to send
    assert turns.in_turn(2) == turns.in_turn(50)[:2]
    served = []
    while turns.waiting:
        (mail,) = turns.in_turn(1)
        turns.settle(mail, PERMIT)
        served.append(mail.user_id)
    assert served == before


def test_one_that_had_nothing_to_send_comes_next_with_every_second_permit_at_most(turns: Turns) -> None:
    """While two of them wait at any time, each with one mail."""
    add(turns, *"a" * 10)
    newcomers = (f"newcomer {number}" for number in itertools.count(1))
    add(turns, next(newcomers), next(newcomers))
    served: list[str | None] = []
    while served.count("a") < 10:
        assert len(served) < 50, served
        (mail,) = turns.in_turn(1)
        turns.settle(mail, PERMIT)
        served.append(mail.user_id)
        if mail.user_id != "a":
            add(turns, next(newcomers))
    assert served[0] == "newcomer 1"


def test_a_mail_whose_connection_waits_comes_before_the_others_of_its_user(turns: Turns) -> None:
    add(turns, "a", "a")
    (ready,) = add(turns, "a", ready=True)
    assert turns.in_turn(1) == [ready]


def test_a_permit_is_for_a_mail_to_as_many_recipients(turns: Turns) -> None:
    add(turns, "a", recipients=3)
    (second,) = add(turns, "b", recipients=2)
    add(turns, "b", recipients=5)
    assert turns.first_to(2) is second
    assert turns.first_to(5) is None  # it is not its turn


def test_mails_that_have_waited_for_too_long_are_put_back(turns: Turns, clock: Clock) -> None:
    old = add(turns, "a", "b")
    clock.now += 10.0
    (ready,) = add(turns, "a", ready=True)
    young = add(turns, "a", "b", "c")
    turns.put_back(clock.now - 1.0, REST)
    assert [mail.done.settled for mail in (*old, ready, *young)] == [True, True, False, False, False, False]
    assert [mail.done.get() for mail in old] == [REST, REST]
    assert set(turns.in_turn(50)) == {ready, *young}


def test_one_that_waits_no_more_gets_no_permit(turns: Turns) -> None:
    first, second, other = add(turns, "a", "a", "b")
    turns.forget(first)
    turns.forget(first)
    turns.settle(first, PERMIT)
    assert set(turns.in_turn(50)) == {second, other}
    turns.forget(second)
    assert turns.in_turn(50) == [other]
    turns.settle(other, PERMIT)
    turns.settle(other, PERMIT)
    turns.forget(other)
    assert not turns.waiting


def test_at_the_end_all_have_their_answer(turns: Turns) -> None:
    mails = add(turns, *"aabc")
    waits = [gevent.spawn(mail.done.get) for mail in mails]
    gevent.sleep(0)
    turns.release(REST)
    gevent.joinall(waits)
    assert {wait.value for wait in waits} == {REST}
    assert not turns.waiting


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "ready", "settle", "forget"]), st.sampled_from("abc"), st.integers(0, 9)),
        max_size=60,
    )
)
def test_whatever_happens_in_whatever_order_no_mail_is_forgotten(steps: list[tuple[str, str, int]]) -> None:
    turns = Turns()
    waiting: list[WaitingMail] = []
    for step, user, number in steps:
        if step in ("add", "ready"):
            waiting += add(turns, user, ready=step == "ready")
        elif waiting:
            mail = waiting.pop(number % len(waiting))
            if step == "settle":
                turns.settle(mail, PERMIT)
            else:
                turns.forget(mail)
            assert mail.done.settled
        assert set(turns.in_turn(100)) == set(waiting)
        assert turns.waiting == bool(waiting)
        assert not any(mail.done.settled for mail in waiting)
