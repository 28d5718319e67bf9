"""Many deliveries of one webhook, and leases that end: on a real Postgres. The endpoint is a stand-in that counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import gevent
import pytest
from gevent.event import Event

from relay.delivery import webhooks as webhooks_module
from relay.delivery.outbound_http import Outbound
from relay.delivery.row_source import Turns
from relay.delivery.webhook_attempts import CALL_SECONDS, WebhookAttempts
from relay.delivery.webhook_secrets import WebhookSecrets
from relay.delivery.webhooks import LOOK_MOST, Webhooks
from relay.postgres import webhook_deliveries
from relay.postgres.database import Database
from relay.postgres.webhook_deliveries import WebhookDeliveries, WebhookResult
from tests.support.webhook_rows import MATERIAL, add_delivery, add_event, add_webhook

Query = Callable[..., list[tuple[Any, ...]]]
_MANY = "SELECT gen_random_uuid(), %s, %s, 0, 'pending', now() - interval '1 hour' FROM generate_series(1, %s)"


class Endpoint(Outbound):
    """Answers 200 to all, once `answers` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.answers = Event()
        self.answers.set()

    def request(self, *_: Any, **__: Any) -> int:
        self.calls += 1
        self.answers.wait()
        return 200


def attempts(deliveries: WebhookDeliveries, endpoint: Endpoint) -> WebhookAttempts:
    return WebhookAttempts(deliveries, WebhookSecrets(MATERIAL), endpoint)


def add_many(query: Query, postgres_url: str, count: int) -> str:
    webhook = add_webhook(postgres_url, "https://hooks.example.com/")
    columns = "id, webhook_id, event_id, attempt, status, created_at"
    event = add_event(postgres_url)
    query(f"INSERT INTO webhook_deliveries ({columns}) {_MANY}", webhook, event, count)
    return webhook


def test_one_look_names_as_many_of_one_webhook_as_it_names_at_all(
    database: Database, query: Query, postgres_url: str
) -> None:
    """A look takes the longer the more is due, and looks have a fixed part of the time. Were the names of one webhook
    few, it would get the fewer deliveries the more are due."""
    add_many(query, postgres_url, LOOK_MOST + 100)
    other = add_delivery(postgres_url, add_webhook(postgres_url, "https://other.example.com/"), add_event(postgres_url))
    found = WebhookDeliveries(database).look(LOOK_MOST)
    assert len({due.delivery_id for due in found}) == LOOK_MOST
    # The other one is in turn, however many are older.
    assert other in {due.delivery_id for due in found[:2]}


def test_a_backlog_of_one_webhook_is_delivered_from_one_look(
    database: Database, query: Query, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "_LOOK_SHARE", 1e-6)  # the next look is hours away
    add_many(query, postgres_url, 450)
    deliveries, endpoint = WebhookDeliveries(database), Endpoint()
    webhooks = Webhooks(deliveries, attempts(deliveries, endpoint), Turns())
    webhooks.start()
    try:
        limit = time.monotonic() + 60
        while query("SELECT count(*) FROM webhook_deliveries WHERE status = 'success'") != [(450,)]:
            assert time.monotonic() < limit, f"{endpoint.calls} calls"
            gevent.sleep(0.1)
    finally:
        webhooks.drain(5.0)
    assert endpoint.calls == 450


def test_the_next_look_comes_as_soon_as_what_the_last_one_named_is_delivered(
    database: Database, query: Query, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "LOOK_MOST", 20)
    monkeypatch.setattr(webhooks_module, "LOOK_SECONDS", 3600.0)  # the usual one is an hour away
    add_many(query, postgres_url, 50)
    add_many(query, postgres_url, 30)
    deliveries, endpoint = WebhookDeliveries(database), Endpoint()
    webhooks = Webhooks(deliveries, attempts(deliveries, endpoint), Turns())
    webhooks.start()
    try:
        limit = time.monotonic() + 60
        while query("SELECT count(*) FROM webhook_deliveries WHERE status = 'success'") != [(80,)]:
            assert time.monotonic() < limit, f"{endpoint.calls} calls"
            gevent.sleep(0.1)
    finally:
        webhooks.drain(5.0)
    assert endpoint.calls == 80


@pytest.mark.parametrize("octets", [10, 100_000])
def test_no_call_begins_that_would_outlast_its_lease(database: Database, postgres_url: str, octets: int) -> None:
    """Another worker has the delivery after that, and the endpoint would have it twice."""
    event = add_event(postgres_url, payload={"a": "x" * octets})
    delivery = add_delivery(postgres_url, add_webhook(postgres_url, "https://hooks.example.com/"), event)
    deliveries, endpoint = WebhookDeliveries(database), Endpoint()
    (claimed,) = deliveries.claim([delivery])
    maker = attempts(deliveries, endpoint)
    assert maker.make(claimed, until=time.monotonic() + CALL_SECONDS - 0.1) is None
    assert endpoint.calls == 0
    made = maker.make(claimed, until=time.monotonic() + CALL_SECONDS + 60)
    assert made is not None
    assert (made[0].status, endpoint.calls) == ("success", 1)


def test_a_large_payload_whose_turn_comes_too_late_is_not_sent(database: Database, postgres_url: str) -> None:
    event = add_event(postgres_url, payload={"a": "x" * 100_000})
    webhook = add_webhook(postgres_url, "https://hooks.example.com/")
    deliveries, endpoint = WebhookDeliveries(database), Endpoint()
    claimed = deliveries.claim([add_delivery(postgres_url, webhook, event) for _ in range(5)])
    maker = attempts(deliveries, endpoint)
    endpoint.answers.clear()
    first = [gevent.spawn(maker.make, each, until=time.monotonic() + 600) for each in claimed[:4]]
    limit = time.monotonic() + 30
    while endpoint.calls < 4:
        assert time.monotonic() < limit
        gevent.sleep(0.01)
    assert maker.make(claimed[4], until=time.monotonic() + CALL_SECONDS + 0.1) is None
    endpoint.answers.set()
    assert all(greenlet.get(timeout=30) is not None for greenlet in first)
    assert endpoint.calls == 4
    # Its turn was given back.
    assert maker.make(claimed[4], until=time.monotonic() + CALL_SECONDS + 15) is not None


def test_a_result_counts_after_the_lease_unless_it_was_claimed_again(
    database: Database, query: Query, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres may have been away for longer than a lease, and then no other worker could claim."""
    monkeypatch.setattr(webhook_deliveries, "LEASE_SECONDS", 0.0)
    webhook, event = add_webhook(postgres_url, "https://hooks.example.com/"), add_event(postgres_url)
    deliveries = WebhookDeliveries(database)
    kept, lost = (add_delivery(postgres_url, webhook, event) for _ in range(2))
    first = deliveries.claim([kept, lost])
    deliveries.claim([lost])
    results = [
        WebhookResult(
            delivery=claimed,
            status="pending",
            attempt=1,
            attempted_at=datetime.now(UTC),
            status_code=503,
            response_body="",
            seconds=300.0,
        )
        for claimed in first
    ]
    assert deliveries.record(results) == {kept, lost}
    rows = dict(query("SELECT id::text, attempt FROM webhook_deliveries"))
    assert rows == {kept: 1, lost: 0}
