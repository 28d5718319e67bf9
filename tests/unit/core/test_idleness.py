"""Waiting until nothing else of the process can go on, and no longer than that."""

from __future__ import annotations

import gevent
import pytest

from relay.core import idleness
from relay.core.idleness import await_idle


def test_what_can_go_on_does_so_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idleness, "LONGEST", 60.0)
    done: list[str] = []

    def turns(count: int) -> None:
        for _ in range(count):
            gevent.sleep(0)
        done.append(f"{count} turns")

    def last() -> None:
        await_idle()
        done.append("idle")

    greenlets = [gevent.spawn(last), *(gevent.spawn(turns, count) for count in (1, 5, 20))]
    gevent.joinall(greenlets, timeout=10, raise_error=True)
    assert done == ["1 turns", "5 turns", "20 turns", "idle"]


def test_it_ends_where_something_can_go_on_all_the_time() -> None:
    waiting = gevent.spawn(await_idle)

    def busy() -> None:
        while not waiting.dead:
            gevent.sleep(0)

    busy_greenlet = gevent.spawn(busy)
    gevent.joinall([waiting, busy_greenlet], timeout=10, raise_error=True)
    assert waiting.dead


def test_a_time_limit_of_the_caller_is_not_taken_for_the_one_of_the_wait() -> None:
    def wait_for_ever() -> None:
        while True:
            await_idle()

    def busy() -> None:
        while True:
            gevent.sleep(0)

    other = gevent.spawn(busy)
    try:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            wait_for_ever()
    finally:
        other.kill()
