"""Whose turn it is to look, and how often an idle machine does."""

from __future__ import annotations

import itertools

import pytest
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
