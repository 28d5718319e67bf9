"""The rows of webhook deliveries: who gets one, for how long, and what is recorded of it. On a real Postgres."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from relay.core.errors import PostgresRefused
from relay.delivery.outbound_http import LONGEST_URL, RefusedUrlError, checked
from relay.postgres.database import Database
from relay.postgres.webhook_deliveries import (
    HELD_CHARACTERS,
    LEASE_SECONDS,
    ClaimedDelivery,
    WebhookDeliveries,
    WebhookResult,
)
from tests.support.webhook_rows import add_delivery, add_event, add_webhook

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def deliveries(database: Database) -> WebhookDeliveries:
    return WebhookDeliveries(database)


@pytest.fixture
def add(postgres_url: str) -> Callable[..., str]:
    webhook = add_webhook(postgres_url, "https://hooks.example.com/")
    event = add_event(postgres_url)
    return lambda **columns: add_delivery(postgres_url, columns.pop("webhook", webhook), event, **columns)


def result(claimed: ClaimedDelivery, status: str = "success", seconds: float | None = None) -> WebhookResult:
    return WebhookResult(
        delivery=claimed,
        status=status,
        attempt=claimed.attempt + 1,
        attempted_at=datetime.now(UTC),
        status_code=200,
        response_body="ok",
        seconds=seconds,
    )


def row(query: Query, delivery_id: str) -> tuple[Any, ...]:
    return query("SELECT status, attempt, next_retry_at FROM webhook_deliveries WHERE id = %s", delivery_id)[0]


def test_a_claim_changes_the_time_alone_and_no_other_process_gets_it(
    deliveries: WebhookDeliveries, add: Callable[..., str], query: Query
) -> None:
    delivery = add()
    (claimed,) = deliveries.claim([delivery])
    assert deliveries.claim([delivery]) == []
    assert deliveries.look(5) == deliveries.look_at([delivery]) == []
    status, attempt, until = row(query, delivery)
    assert (status, attempt, until) == ("pending", 0, claimed.mark)
    assert LEASE_SECONDS - 15 < (until - datetime.now(UTC)).total_seconds() <= LEASE_SECONDS + 1
    assert (claimed.attempt, claimed.url, claimed.event_type) == (0, "https://hooks.example.com/", "sent")
    # The lease is over: the same attempt is made by another.
    query("UPDATE webhook_deliveries SET next_retry_at = now() - interval '1 s'")
    (again,) = deliveries.claim([delivery])
    assert again.attempt == 0
    assert again.mark != claimed.mark


def test_what_somebody_holds_locked_is_passed_over(
    deliveries: WebhookDeliveries, add: Callable[..., str], postgres_url: str
) -> None:
    ids = [add() for _ in range(3)]
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM webhook_deliveries WHERE id = %s FOR UPDATE", (ids[1],))
        assert {claimed.id for claimed in deliveries.claim(ids)} == {ids[0], ids[2]}
        connection.rollback()


def test_one_that_is_refused_keeps_no_other_from_being_claimed(
    deliveries: WebhookDeliveries, add: Callable[..., str], query: Query
) -> None:
    ids = [add() for _ in range(9)]
    query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
        " CREATE TRIGGER refuse BEFORE UPDATE ON webhook_deliveries FOR EACH ROW"
        f" WHEN (NEW.id = '{ids[4]}') EXECUTE FUNCTION refuse()"
    )
    assert {claimed.id for claimed in deliveries.claim(ids)} == {*ids} - {ids[4]}
    with pytest.raises(PostgresRefused):
        deliveries.claim(ids)


@pytest.mark.parametrize("status", ["success", "failed", "dead_letter", "unheard_of"])
def test_what_is_not_pending_or_not_due_is_never_claimed(
    deliveries: WebhookDeliveries, add: Callable[..., str], status: str
) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    ids = [add(status=status), add(next_retry_at=later), add(status=status, next_retry_at=later - timedelta(hours=2))]
    assert deliveries.claim(ids) == []
    assert deliveries.look(5) == []


def test_new_ones_come_first_by_their_age_and_webhooks_in_turn(
    deliveries: WebhookDeliveries, add: Callable[..., str], postgres_url: str
) -> None:
    now = datetime.now(UTC)
    other = add_webhook(postgres_url, "https://other.example.com/", user="other")
    retried = add(attempt=3, created_at=now - timedelta(hours=9))
    new = [add(created_at=now - timedelta(minutes=minutes)) for minutes in (1, 3, 2)]
    others = add(webhook=other, created_at=now)
    found = deliveries.look(4)
    assert [each.delivery_id for each in found] == [new[1], others, new[2], new[0]]
    assert [each.user_id for each in found] == ["user", "other", "user", "user"]
    assert [each.delivery_id for each in deliveries.look(10)][-1] == retried
    assert len(deliveries.look(2)) == 2


def test_a_result_counts_as_long_as_the_claim_does(
    deliveries: WebhookDeliveries, add: Callable[..., str], query: Query
) -> None:
    first, second = add(), add()
    (early,) = deliveries.claim([first])
    query("UPDATE webhook_deliveries SET next_retry_at = now() - interval '1 s' WHERE id = %s", first)
    (late,) = deliveries.claim([first])
    (other,) = deliveries.claim([second])
    deliveries.record([result(early, "pending", 300.0), result(other, "pending", 300.0)])
    assert row(query, first) == ("pending", 0, late.mark)
    status, attempt, due = row(query, second)
    assert (status, attempt) == ("pending", 1)
    assert 280 < (due - datetime.now(UTC)).total_seconds() <= 301
    # A success is one, whichever worker has the delivery by now; and what has ended does not change any more.
    deliveries.record([result(early)])
    assert row(query, first) == ("success", 1, None)
    deliveries.record([result(late, "pending", 1.0)])
    assert row(query, first) == ("success", 1, None)


def test_a_manual_repeat_of_a_delivery_is_due_once(
    deliveries: WebhookDeliveries, add: Callable[..., str], query: Query
) -> None:
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    ended = [add(status=status, attempt=8, attempted_at=now - hour) for status in ("dead_letter", "failed", "success")]
    waits = add(attempt=3, attempted_at=now, next_retry_at=now + hour)
    being_made = add(next_retry_at=now + timedelta(seconds=LEASE_SECONDS - 5))
    for delivery in (*ended, waits, being_made):
        deliveries.retry(delivery, now - 2 * hour if delivery in ended else now)
    assert {row(query, delivery)[0] for delivery in ended} == {"dead_letter", "failed", "success"}
    assert row(query, waits) == ("pending", 3, None)
    assert row(query, being_made)[2] is not None
    deliveries.retry(ended[2], None)
    assert row(query, ended[2])[0] == "success"
    for delivery in ended:
        deliveries.retry(delivery, now)
        assert row(query, delivery) == ("pending", 8, None)
    (claimed,) = deliveries.claim([ended[0]])
    deliveries.record([result(claimed, "dead_letter")])
    deliveries.retry(ended[0], now - timedelta(seconds=1))
    assert row(query, ended[0])[:2] == ("dead_letter", 9)


def test_large_payloads_are_read_by_themselves(deliveries: WebhookDeliveries, postgres_url: str) -> None:
    event = add_event(postgres_url, payload={"a": "x" * 100_000})
    delivery = add_delivery(postgres_url, add_webhook(postgres_url, "https://hooks.example.com/"), event)
    (claimed,) = deliveries.claim([delivery])
    assert claimed.payload is None
    assert claimed.payload_octets > 100_000
    assert deliveries.payload(claimed.event_id) == '{"a": "' + "x" * 100_000 + '"}'


def test_a_claim_holds_no_more_of_a_url_and_a_secret_than_may_be_of_use(
    deliveries: WebhookDeliveries, postgres_url: str, query: Query
) -> None:
    """A customer writes the URL, and the column has no bound."""
    webhook = add_webhook(postgres_url, "https://hooks.example.com/" + "a" * 1_000_000)
    query("UPDATE webhooks SET signing_secret_enc = repeat('s', 1000000)")
    (claimed,) = deliveries.claim([add_delivery(postgres_url, webhook, add_event(postgres_url))])
    assert claimed.url is not None
    assert claimed.secret is not None
    assert LONGEST_URL < len(claimed.url) == len(claimed.secret) == HELD_CHARACTERS
    with pytest.raises(RefusedUrlError):
        checked(claimed.url)
