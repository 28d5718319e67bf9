"""Two requests to end are told from one that arrives twice."""

from __future__ import annotations

import itertools
import signal

import pytest

from relay.process.termination import ENDING, KILL_GRACE, SAME_REQUEST, Termination
from tests.support.clock import Clock


@pytest.mark.parametrize(("first", "second"), list(itertools.product(sorted(ENDING), repeat=2)))
@pytest.mark.parametrize("seconds", [0.0, SAME_REQUEST - 0.1, SAME_REQUEST + 0.1])
def test_a_second_request(clock: Clock, first: int, second: int, seconds: float) -> None:
    """Ctrl-C reaches the master by itself, and a parent may pass it on as SIGTERM: that is one."""
    termination = Termination(25.0)
    assert not termination.asked
    termination.ask(first)
    assert termination.asked
    clock.now += seconds
    assert termination.is_another(second) is (first == second or seconds > SAME_REQUEST)


def test_the_deadline_is_that_of_the_first_request(clock: Clock) -> None:
    termination = Termination(25.0)
    termination.ask(signal.SIGTERM)
    clock.now += 10.0
    termination.is_another(signal.SIGINT)
    assert termination.deadline == 1000.0 + 25.0 + KILL_GRACE
