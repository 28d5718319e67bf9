"""Turns of TLS handshakes: one at a time, round the addresses, and half of the time for all other work."""

from __future__ import annotations

import itertools
import time

import gevent
import pytest
from gevent import Timeout

from relay.server.handshakes import HandshakeTurns


def compute(seconds: float) -> None:
    """CPU time of this thread, whatever others do meanwhile."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def shake(turns: HandshakeTurns, origin: bytes, done: list[bytes], seconds: float = 0.001) -> None:
    with turns.turn(origin):
        done.append(origin)
        compute(seconds)


def test_turns_go_round_the_addresses() -> None:
    turns, done = HandshakeTurns(), []  # type: ignore[var-annotated]
    many = [gevent.spawn(shake, turns, b"many", done) for _ in range(30)]
    gevent.sleep(0)
    others = [gevent.spawn(shake, turns, b"%d" % number, done) for number in range(3)]
    gevent.joinall([*many, *others], raise_error=True)
    # A client that comes later waits for one of the many, and for the others that came with it.
    assert {b"0", b"1", b"2"} <= set(done[:8])
    assert len(done) == 33


def test_no_address_is_served_twice_while_another_waits() -> None:
    turns, done = HandshakeTurns(), []  # type: ignore[var-annotated]
    each = [gevent.spawn(shake, turns, origin, done) for origin in (b"a", b"b", b"c") for _ in range(10)]
    gevent.joinall(each, raise_error=True)
    # The first takes its turn before any waits.
    rounds = [done[begin : begin + 3] for begin in range(1, 28, 3)]
    assert all(sorted(round_) == [b"a", b"b", b"c"] for round_ in rounds)


def test_others_have_the_cpu_between_two_turns() -> None:
    """Not measured by the clock: between two turns, each greenlet that is ready has run."""
    turns, order = HandshakeTurns(), []  # type: ignore[var-annotated]

    def shakes() -> None:
        with turns.turn(b"here"):
            order.append("turn")
            compute(0.002)

    def works() -> None:
        while order.count("turn") < 20:
            order.append("work")
            gevent.sleep(0.0005)

    gevent.joinall([*(gevent.spawn(shakes) for _ in range(20)), gevent.spawn(works)], raise_error=True)
    assert order.count("turn") == 20
    assert not any(first == second == "turn" for first, second in itertools.pairwise(order[1:]))


def test_after_a_step_the_others_have_as_much_time_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    pause = HandshakeTurns._pause

    def noting(turns: HandshakeTurns, seconds: float) -> None:
        pauses.append(seconds)
        pause(turns, seconds)

    monkeypatch.setattr(HandshakeTurns, "_pause", noting)
    turns, done = HandshakeTurns(), []  # type: ignore[var-annotated]
    steps = [0.001, 0.004, 0.016]
    gevent.joinall([gevent.spawn(shake, turns, b"here", done, seconds) for seconds in steps], raise_error=True)
    assert len(pauses) == 3
    assert all(had >= took for had, took in zip(pauses, steps, strict=True))


def test_a_caller_that_gives_up_leaves_the_queue() -> None:
    turns, done = HandshakeTurns(), []  # type: ignore[var-annotated]

    def impatient() -> None:
        with Timeout(0.001, False):
            shake(turns, b"impatient", done)

    for _ in range(5):
        waiting = [gevent.spawn(impatient) for _ in range(20)]
        waiting += [gevent.spawn(shake, turns, b"patient", done, 0.002) for _ in range(5)]
        killed = [gevent.spawn(shake, turns, b"killed", done) for _ in range(5)]
        gevent.sleep(0.001)
        gevent.killall(killed)
        gevent.joinall(waiting, raise_error=True)
    assert done.count(b"patient") == 25
    shake(turns, b"last", done)
    assert done[-1] == b"last"


def test_an_error_in_a_turn_is_its_own_affair() -> None:
    turns, done = HandshakeTurns(), []  # type: ignore[var-annotated]
    try:
        with turns.turn(b"here"):
            raise ConnectionError
    except ConnectionError:
        pass
    shake(turns, b"next", done)
    assert done == [b"next"]
