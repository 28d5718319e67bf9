"""How often a row is tried that Postgres does not let be changed, and how often it is said."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from relay.delivery import passed_over
from relay.delivery.passed_over import PassedOver
from tests.support.clock import Clock


def test_each_try_is_later_than_the_one_before(clock: Clock) -> None:
    rows = PassedOver("claim")
    pauses = []
    for _ in range(10):
        assert not rows.waits("id")
        pauses.append(rows.note("id"))
        clock.now += pauses[-1] - 0.01
        assert rows.waits("id")
        clock.now += 0.02
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    rows.forget("id")
    assert rows.note("id") == 0.5


def test_a_row_is_said_once_however_often_it_is_tried(clock: Clock) -> None:
    rows = PassedOver("claim")
    with capture_logs() as lines:
        for _ in range(1000):
            clock.now += rows.note("locked")
            rows.note("refused", "P0001")
        rows.note("late", "23514")
    assert [(line["email_id"], line["cause"][:5], line["count"]) for line in lines] == [
        ("refused", "P0001", 1),
        ("locked", "it is", 1),
        ("late", "23514", 1),
    ]


def test_many_rows_are_one_line_a_minute(clock: Clock) -> None:
    rows = PassedOver("claim")
    with capture_logs() as lines:
        for number in range(5000):
            rows.note(f"id-{number}", "42501")
        clock.now += 61
        rows.note("id-0", "42501")
    assert [line["count"] for line in lines] == [1, 4999]


def test_what_is_remembered_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed_over, "_MOST", 100)
    rows = PassedOver("claim")
    for number in range(250):
        rows.note(f"id-{number}")
    assert len(rows) == 100
    assert "id-249" in rows
    clock.now += 1000
    rows.note("another")
    assert len(rows) == 1
