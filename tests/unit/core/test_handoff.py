"""A value or an error from one greenlet to another, whichever comes first."""

from __future__ import annotations

import gevent
import pytest

from relay.core.handoff import Handoff


def test_a_value_arrives_where_it_is_waited_for() -> None:
    handoff: Handoff[str] = Handoff()
    waiting = gevent.spawn(handoff.get)
    gevent.sleep(0)
    assert not handoff.settled
    handoff.set("value")
    assert handoff.settled
    assert waiting.get(timeout=10) == "value"


def test_a_value_that_came_first_waits() -> None:
    handoff: Handoff[str] = Handoff()
    handoff.set("value")
    assert gevent.spawn(handoff.get).get(timeout=10) == "value"


@pytest.mark.parametrize("first", [True, False])
def test_an_error_is_raised_where_it_is_waited_for(first: bool) -> None:
    handoff: Handoff[str] = Handoff()
    if first:
        handoff.fail(KeyError("x"))
    waiting = gevent.spawn(handoff.get)
    gevent.sleep(0)
    if not first:
        handoff.fail(KeyError("x"))
    assert handoff.settled
    with pytest.raises(KeyError):
        waiting.get(timeout=10)


def test_who_settles_goes_on_and_does_not_switch() -> None:
    handoff: Handoff[str] = Handoff()
    order: list[str] = []
    waiting = gevent.spawn(lambda: order.append(handoff.get()))
    gevent.sleep(0)
    handoff.set("waited")
    order.append("settled")
    waiting.join(timeout=10)
    assert order == ["settled", "waited"]


def test_a_greenlet_that_was_killed_ends_no_other() -> None:
    handoff: Handoff[str] = Handoff()
    waiting = gevent.spawn(handoff.get)
    gevent.sleep(0)
    waiting.kill()
    handoff.set("nobody waits")
    gevent.sleep(0)
    assert handoff.settled
