"""How old the oldest row is that is due."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from relay.delivery.waiting_age import oldest_due
from relay.postgres import waiting
from relay.postgres.database import Database


@pytest.mark.usefixtures("outgoing")
def test_rows_that_are_not_due_do_not_count(
    postgres_url: str, add_email: Callable[..., str], query: Callable[..., list[tuple[object, ...]]]
) -> None:
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=1, switched_off=waiting.PLANNER)
    rows = waiting.WaitingRows(database, deadline=30.0)
    assert oldest_due(rows) == 0.0
    add_email(created_at="2020-01-01T00:00:00Z", provider_next_retry_at="2099-01-01T00:00:00Z")
    add_email(created_at="2020-01-01T00:00:00Z", status="scheduled", scheduled_at="2020-01-02T00:00:00Z")
    assert oldest_due(rows) == 0.0
    retried = add_email(created_at="2020-01-01T00:00:00Z")
    query("UPDATE emails SET provider_next_retry_at = now() - interval '1000 s' WHERE id = %s", retried)
    assert 999 < oldest_due(rows) < 1300
    lost = add_email()
    query("UPDATE emails SET created_at = now() - interval '5000 s' WHERE id = %s", lost)
    assert 4999 < oldest_due(rows) < 5300
    database.close()
