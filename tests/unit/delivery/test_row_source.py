"""When claims count as left behind, and whose turn it is to look."""

from __future__ import annotations

import itertools

import pytest

from relay.delivery import abandoned as abandoned_module
from relay.delivery import row_source
from relay.delivery.abandoned import Abandoned
from relay.delivery.row_source import RowSource, Turns
from relay.postgres.waiting import Processing


def claim(
    number: int, version: str = "1", *, ours: bool = False, expired: bool = False, recent: bool = True
) -> Processing:
    return Processing(str(number), version, ours, expired, recent, float(number))


def test_a_claim_without_a_time_is_given_up_when_it_was_the_same_for_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(abandoned_module.time, "monotonic", lambda: now)
    abandoned = Abandoned()
    for _ in range(89):  # every ten seconds, for a little less than 15 minutes
        changing = claim(2, str(now))
        assert abandoned.among([claim(1), changing, claim(3, recent=False)]) == []
        assert abandoned.among([claim(4)] if now != 500.0 else []) == []  # it was sent meanwhile, and is claimed anew
        abandoned.end_round()
        now += 10.0
    now += 20.0
    assert abandoned.among([claim(1), claim(2, "new"), claim(3, recent=False), claim(4)]) == [claim(1)]


def test_a_claim_of_ours_is_given_up_by_its_own_time() -> None:
    abandoned = Abandoned()
    old = claim(1, ours=True, expired=True, recent=False)
    assert abandoned.among([old, claim(2, ours=True), claim(3, expired=True)]) == [old]


def test_what_is_remembered_of_claims_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abandoned_module, "MOST", 10)
    abandoned = Abandoned()
    abandoned.among(claim(number) for number in range(100))
    assert len(abandoned._seen) == len(abandoned._in_this_round) == 10
    abandoned.end_round()
    abandoned.end_round()
    assert not abandoned._seen


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 64])
def test_the_processes_of_a_machine_look_in_turns(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    now = 12345.678
    monkeypatch.setattr(row_source.time, "monotonic", lambda: now)
    looks = [Turns(index, processes).next(0.3) for index in range(processes)]
    spread = sorted(look - now for look in looks)
    assert spread[0] > 0.0
    assert spread[-1] <= 0.3 * processes + 1e-6
    gaps = [after - before for before, after in itertools.pairwise(spread)]
    assert all(abs(gap - 0.3) < 1e-6 for gap in gaps)
    now = looks[0]
    assert Turns(0, processes).next(0.3) == pytest.approx(now + 0.3 * processes)


def test_an_idle_machine_asks_less_than_four_times_a_second() -> None:
    assert 1 / RowSource.look_seconds + 2 / RowSource.scan_seconds < 4
