"""One moment by which everything has to be answered: what is asked last has what is left."""

from __future__ import annotations

import math
import time

import gevent
import pytest

from relay.core import deadlines


@pytest.fixture(autouse=True)
def _the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)


def test_without_a_common_end_each_question_has_its_own_time() -> None:
    assert deadlines.after(4.5) == 1004.5
    assert deadlines.after(math.inf) == math.inf


def test_no_question_lasts_longer_than_all_together_may() -> None:
    end = deadlines.begin(3.0)
    assert [deadlines.after(seconds) for seconds in (1.0, 4.5, math.inf)] == [1001.0, 1003.0, 1003.0]
    end()
    assert deadlines.after(4.5) == 1004.5


def test_each_greenlet_has_its_own_end() -> None:
    def asks(seconds: float) -> float:
        deadlines.begin(seconds)
        gevent.sleep(0)
        return deadlines.after(60.0)

    greenlets = [gevent.spawn(asks, seconds) for seconds in (1.0, 2.0)]
    gevent.joinall(greenlets, raise_error=True)
    assert [greenlet.value for greenlet in greenlets] == [1001.0, 1002.0]
    assert deadlines.after(60.0) == 1060.0


def test_time_that_is_over_is_nothing_and_never_negative() -> None:
    assert (deadlines.seconds_left(1002.5), deadlines.seconds_left(999.0)) == (2.5, 0.0)
