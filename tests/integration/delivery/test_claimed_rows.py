"""Claims that were left behind, on real Postgres: which of them, and what another has done meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import psycopg2
import pytest

from relay.delivery.abandoned import Abandoned
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER, WaitingRows
from tests.support.ended import failed_row

Query = Callable[..., list[tuple[Any, ...]]]
#: The claim of OpenSend's worker, which stores no time (contract section 6).
OPENSEND = (
    "UPDATE emails SET status = 'processing' WHERE id = %s AND status = 'queued'"
    " AND (scheduled_at IS NULL OR scheduled_at <= now())"
    " AND (provider_next_retry_at IS NULL OR provider_next_retry_at <= now()) RETURNING id::text"
)


@pytest.fixture
def waiting(postgres_url: str, outgoing: Outgoing) -> Iterator[WaitingRows]:
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=2, switched_off=PLANNER)
    yield WaitingRows(database)
    database.close()


def age(query: Query, minutes: int) -> None:
    """As if that much time had passed since everything that is in the rows."""
    query(
        "UPDATE emails SET provider_last_attempted_at = provider_last_attempted_at - make_interval(mins => %s),"
        " provider_next_retry_at = provider_next_retry_at - make_interval(mins => %s)",
        minutes,
        minutes,
    )


def left_behind(waiting: WaitingRows) -> set[str]:
    return {row.email_id for row in Abandoned().among(waiting.processing(100))}


@pytest.mark.parametrize(("minutes", "expected"), [(14, False), (16, True)])
def test_a_claim_of_ours_is_given_up_after_fifteen_minutes(
    add_email: Callable[..., str], outgoing: Outgoing, waiting: WaitingRows, query: Query, minutes: int, expected: bool
) -> None:
    fresh, tried, put_back = add_email(), add_email(), add_email()
    assert len(outgoing.claim([fresh, tried, put_back])) == 3
    outgoing.ended(failed_row(outgoing, tried, seconds=0.0))
    outgoing.put_back([put_back], 0.0)
    assert len(outgoing.claim([tried, put_back])) == 2
    assert left_behind(waiting) == set()
    age(query, minutes)
    assert left_behind(waiting) == ({fresh, tried, put_back} if expected else set())


@pytest.mark.parametrize("before", ["tried", "put back", "abandoned", "nothing"])
def test_opensends_claim_is_not_taken_for_an_old_one_of_ours(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    left: LeftRows,
    waiting: WaitingRows,
    query: Query,
    before: str,
) -> None:
    """It leaves the time that an earlier claim of ours has written, which may be long ago."""
    email_id = add_email()
    if before != "nothing":
        outgoing.claim([email_id])
    if before == "tried":
        outgoing.ended(failed_row(outgoing, email_id, seconds=4.0))
    elif before == "put back":
        outgoing.put_back([email_id], 0.0)
    elif before == "abandoned":
        age(query, 16)
        assert left.put_back(Abandoned().among(waiting.processing(10))) == {email_id}
    age(query, 60)
    assert query(OPENSEND, email_id) == [(email_id,)]
    assert left_behind(waiting) == set()


def test_a_row_that_has_changed_since_it_was_looked_at_is_not_put_back(
    add_email: Callable[..., str], outgoing: Outgoing, left: LeftRows, waiting: WaitingRows, query: Query
) -> None:
    """Another process was first, and the row has been claimed anew: put back once more it would be sent twice."""
    ids = {name: add_email() for name in ("claimed by ours", "claimed by OpenSend", "sent", "canceled", "left")}
    assert len(outgoing.claim(ids.values())) == 5
    age(query, 60)
    rows = Abandoned().among(waiting.processing(10))
    assert len(rows) == 5
    query("UPDATE emails SET status = 'queued' WHERE id = ANY (%s::uuid[])", [*ids.values()][:2])
    assert outgoing.claim([ids["claimed by ours"]])
    assert query(OPENSEND, ids["claimed by OpenSend"])
    outgoing.sent(ids["sent"], None)
    query("UPDATE emails SET status = 'canceled' WHERE id = %s", ids["canceled"])
    assert left.put_back(rows) == {ids["left"]}
    assert left.put_back(rows) == set()
    assert {status: email_id for email_id, status in query("SELECT id::text, status FROM emails")} | {
        "processing": ""
    } == {"processing": "", "sent": ids["sent"], "canceled": ids["canceled"], "queued": ids["left"]}


def test_rows_that_others_hold_are_passed_over_where_they_will_be_found_again(
    add_email: Callable[..., str], outgoing: Outgoing, postgres_url: str
) -> None:
    """There is no wait: neither for another claim, nor for a transaction that cancels a row and takes long."""
    held, free = add_email(), add_email()
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE emails SET status = 'canceled' WHERE id = %s", (held,))
        assert [str(row[0]) for row in outgoing.claim([held, free], skip_locked=True)] == [free]
    assert outgoing.claim([held, free]) == []


def test_a_job_waits_for_a_row_that_is_being_made_ready(
    add_email: Callable[..., str], outgoing: Outgoing, postgres_url: str
) -> None:
    """OpenSend publishes the job of a scheduled row, and then makes it `queued`. The job does not come again."""
    email_id = add_email(status="scheduled", scheduled_at="2020-01-01T00:00:00Z")
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE emails SET status = 'queued' WHERE id = %s", (email_id,))
        claim = gevent.spawn(outgoing.claim, [email_id])
        with psycopg2.connect(postgres_url) as watching, watching.cursor() as looking:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while looking.execute(waits) or looking.fetchone() == (0,):
                assert not claim.ready()
                watching.rollback()
                gevent.sleep(0.01)
    assert [str(row[0]) for row in claim.get(timeout=20)] == [email_id]
