"""How many of one owner may be at it: no more, in turn, and nothing is kept of owners who are done."""

from __future__ import annotations

import time
from collections import Counter

import gevent
import pytest

from relay.postgres.owner_limit import OwnerLimit

FAR = time.monotonic() + 3600.0


def test_of_one_owner_so_many_and_of_others_too() -> None:
    limit = OwnerLimit(2)
    inside: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def work(owner: str) -> None:
        with limit.place(owner, FAR) as granted:
            assert granted
            inside[owner] += 1
            most[owner] = max(most[owner], inside[owner])
            gevent.sleep(0)
            inside[owner] -= 1

    gevent.joinall([gevent.spawn(work, owner) for owner in "aaaaaabbbbbbc"], raise_error=True, timeout=60)
    assert most == {"a": 2, "b": 2, "c": 1}
    assert not any(limit.busy(owner) for owner in "abc")
    assert not limit._places


def test_a_waiting_owner_holds_up_no_other_and_gets_the_next_place() -> None:
    limit = OwnerLimit(1)
    order = []

    def work(name: str) -> None:
        with limit.place("slow", FAR):
            order.append(name)

    with limit.place("slow", FAR):
        waiting = [gevent.spawn(work, name) for name in "123"]
        gevent.sleep(0)
        with limit.place("other", FAR) as granted:
            assert granted
        assert order == []
    gevent.joinall(waiting, raise_error=True, timeout=60)
    assert order == ["1", "2", "3"]


def test_a_caller_without_a_place_in_time_gets_an_error_and_takes_none() -> None:
    limit = OwnerLimit(1)
    with limit.place("a", FAR):
        with limit.place("a", time.monotonic()) as granted:
            assert granted is False
        assert limit.busy("a")
        with limit.place("a", time.monotonic()) as granted:
            assert granted is False, "the one who was not granted gave back what was not his"
    with limit.place("a", FAR) as granted:
        assert granted


def test_an_error_or_a_kill_gives_the_place_back() -> None:
    limit = OwnerLimit(1)
    with pytest.raises(KeyError), limit.place("a", FAR):
        raise KeyError
    with limit.place("a", FAR):
        waiting = gevent.spawn(lambda: limit.place("a", FAR).__enter__())
        gevent.sleep(0)
        waiting.kill()
    with limit.place("a", time.monotonic()) as granted:
        assert granted
    assert not limit._places
