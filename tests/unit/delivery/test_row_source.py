"""Whose turn it is to look, and how often an idle machine does."""

from __future__ import annotations

import itertools
import math

import gevent
import pytest
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from relay.delivery import row_source
from relay.delivery.row_source import RowSource, Turns
from relay.delivery.shares import Shares
from relay.postgres.waiting import Waiting


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 64])
def test_the_processes_of_a_machine_look_in_turns(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    now = 12345.678
    monkeypatch.setattr(row_source.time, "monotonic", lambda: now)
    looks = [Turns(index=index, processes=processes).next(0.3) for index in range(processes)]
    spread = sorted(look - now for look in looks)
    assert spread[0] > 0.0
    assert spread[-1] <= 0.3 * processes + 1e-6
    gaps = [after - before for before, after in itertools.pairwise(spread)]
    assert all(abs(gap - 0.3) < 1e-6 for gap in gaps)
    now = looks[0]
    assert Turns(index=0, processes=processes).next(0.3) == pytest.approx(now + 0.3 * processes)


def test_an_idle_machine_asks_less_than_four_times_a_second() -> None:
    assert 1 / RowSource.look_seconds + 2 / RowSource.scan_seconds < 4


@pytest.mark.parametrize(("paced", "works", "taken"), [(True, True, True), (False, True, False), (True, False, False)])
def test_a_young_row_is_not_left_to_its_job_while_mail_is_paced(paced: bool, works: bool, taken: bool) -> None:
    source = RowSource(
        None,  # type: ignore[arg-type]  # nothing is asked of Postgres here
        None,  # type: ignore[arg-type]
        lambda _: None,
        BoundedSemaphore(2),
        shares=Shares(2),
        left_behind=None,  # type: ignore[arg-type]
        queue_works=lambda: works,
        turns=Turns(),
        wait_for_leave=lambda: None,
        paced=lambda: paced,
    )
    row = Waiting("id", "user", created=0.0, due_in=0.0, retried=False, age=0.5, octets=1)
    source._add([row])
    assert len(source._backlog) == int(taken)


class Clock:
    """Moves by what a search takes to read, and by what a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Rows:
    """Stands in for Postgres: what waits is in one piece, and takes 0.01 s to read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.rows: list[Waiting] = []
        self.read_at: list[float] = []

    def walk(self, status: str) -> None:
        """There is only one piece."""

    def oldest(self, status: str, most: int) -> list[Waiting]:
        self.read_at.append(self._clock.now)
        self._clock.now += 0.01
        return self.rows


def waiting(email_id: str, user: str) -> Waiting:
    return Waiting(email_id, user, created=float(len(email_id)), due_in=0.0, retried=False, age=1.0, octets=1)


def test_searches_for_other_users_come_less_often_while_they_bring_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(row_source, "time", clock)
    rows = Rows(clock)
    source = RowSource(
        None,  # type: ignore[arg-type]  # nothing is claimed here
        rows,  # type: ignore[arg-type]
        lambda _: None,
        BoundedSemaphore(2),
        shares=Shares(2),
        left_behind=None,  # type: ignore[arg-type]
        queue_works=None,
        turns=Turns(),
        wait_for_leave=lambda: None,
    )

    def gaps(seconds: float) -> list[float]:
        rows.read_at.clear()
        until = clock.now + seconds
        while clock.now < until:
            source._search()
            clock.now += 0.001
        return [after - before for before, after in itertools.pairwise(rows.read_at)]

    rows.rows = [waiting("a" * length, "one") for length in range(1, 20)]
    # With nothing at hand each search counts: it may be the only one that finds what may leave.
    source._search()
    source._backlog.take(20, 100, {}, 100)
    rows.rows = []
    assert max(gaps(5.0)) < 0.15
    rows.rows = [waiting("a" * length, "one") for length in range(1, 20)]
    alone = gaps(20.0)
    assert alone[0] < 0.25
    assert 1.9 < max(alone) < 2.2
    # Another user's row is found, and maybe there are more.
    rows.rows = [*rows.rows, waiting("b", "other")]
    found = gaps(5.0)
    assert min(found) < 0.25


def test_a_place_is_given_back_by_a_loop_that_is_ended_before_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain would wait for a mail that there is not."""
    waits = Event()
    monkeypatch.setattr(row_source, "await_idle", lambda: (waits.set(), gevent.sleep(60)))
    places = BoundedSemaphore(2)
    source = RowSource(
        None,  # type: ignore[arg-type]  # nothing is claimed here
        None,  # type: ignore[arg-type]
        lambda _: None,
        places,
        shares=Shares(2),
        left_behind=None,  # type: ignore[arg-type]
        queue_works=None,
        turns=Turns(),
        wait_for_leave=lambda: None,
    )
    source._backlog.add([waiting("a", "one")])
    source._next_look = math.inf
    claiming = gevent.spawn(source._claim_some)
    assert waits.wait(10)
    claiming.kill()
    assert places.counter == 2
