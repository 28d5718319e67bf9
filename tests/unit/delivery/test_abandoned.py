"""Which claims count as left behind."""

from __future__ import annotations

import pytest

from relay.delivery import abandoned as abandoned_module
from relay.delivery.abandoned import Abandoned
from relay.postgres.waiting import Processing


def claim(
    number: int, version: str = "1", *, ours: bool = False, expired: bool = False, recent: bool = True
) -> Processing:
    return Processing(str(number), version, ours, expired, recent, float(number), number)


def test_a_claim_without_a_time_is_given_up_when_it_was_the_same_for_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(abandoned_module.time, "monotonic", lambda: now)
    abandoned = Abandoned()
    for _ in range(89):  # every ten seconds, for a little less than 15 minutes
        changing = claim(2, str(now))
        assert abandoned.among([claim(1), changing]) == []
        assert abandoned.among([claim(4)] if now != 500.0 else []) == []  # it was sent meanwhile, and is claimed anew
        abandoned.end_round()
        now += 10.0
    now += 20.0
    assert abandoned.among([claim(1), claim(2, "new"), claim(4)]) == [claim(1)]


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
