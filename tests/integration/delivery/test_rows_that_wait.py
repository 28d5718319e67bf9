"""Rows that wait in Postgres, found by the worker itself: in both modes, in a long backlog, whatever goes wrong."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.lock
import psycopg2
import pytest

from relay.core.errors import PostgresUnavailable
from relay.core.supervision import Supervised
from relay.delivery.row_source import RowSource, Turns
from relay.delivery.shares import Shares
from relay.delivery.unclear import LeftBehind
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER, WaitingRows, Walk
from relay.redis.claim_states import ClaimStates
from scripts.database import apply_schema, create_database
from scripts.services import Delivery, Postgres, Ses, Sqs, processes
from tests.integration.delivery.test_waiting import insert

Query = Callable[..., list[tuple[Any, ...]]]
#: More than one piece of a scan, so that what is wanted lies behind others.
MANY = 1500
FEW = 400


@pytest.fixture
def worker(postgres_url: str, ses: Ses, sqs: Sqs, tmp_path: Path) -> Iterator[Callable[..., Delivery]]:
    """Starts a delivery worker: `worker(mode, **settings)`, `mode` queue or postgres."""
    started: list[Delivery] = []

    def start(mode: str, **settings: str) -> Delivery:
        queue = {
            "AWS_ENDPOINT_URL_SQS": sqs.endpoint,
            "AWS_REGION": sqs.region,
            "BACKGROUND_JOBS_QUEUE_URL": sqs.create_queue(f"q{uuid.uuid4().hex}"),
        }
        environment = {**ses.client_environment, "DATABASE_URL": postgres_url} | (queue if mode == "queue" else {})
        delivery = Delivery(tmp_path / f"delivery-{len(started)}", environment | settings)
        started.append(delivery)
        delivery.start()
        return delivery

    yield start
    for delivery in started:
        log = delivery.log_path.read_text()
        delivery.stop()
        assert "greenlet_failed" not in log
        assert "greenlet_ended" not in log


def until(done: Callable[[], bool], seconds: float = 90.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["queue", "postgres"])
def test_what_no_job_comes_for_is_found_behind_all_that_waits_for_something(
    worker: Callable[..., Delivery], add_email: Callable[..., str], query: Query, ses: Ses, mode: str
) -> None:
    """Rows that are not due, scheduled for later or claimed by others lie before and behind those that may leave."""
    at = ", created_at"
    day = "now() - interval '1 day' + n * interval '1 s'"
    hour = "now() + interval '1 hour'"
    insert(query, MANY, columns=f"{at}, provider_next_retry_at", values=f", {day}, {hour}")
    insert(query, MANY, columns=f"{at}, status, scheduled_at", values=f", {day}, 'scheduled', {hour}")
    insert(query, MANY, columns=f"{at}, status", values=f", {day}, 'processing'")
    old = "2020-01-01T00:00:00Z"
    moment = "now() - interval '20 hours'"
    wanted = {
        "due retry": add_email(provider_next_retry_at=old, provider_retry_count=1),
        "due scheduled": add_email(status="scheduled", scheduled_at=old),
        "lost job": add_email(),
        "abandoned claim": add_email(status="processing", provider_last_attempted_at=old),
        "retry that gets due": add_email(),
        "scheduled that gets due": add_email(status="scheduled"),
    }
    query(f"UPDATE emails SET created_at = {moment} WHERE id = ANY (%s::uuid[])", [*wanted.values()])
    query(
        "UPDATE emails SET provider_next_retry_at = now() + interval '8 s' WHERE id = %s", wanted["retry that gets due"]
    )
    query("UPDATE emails SET scheduled_at = now() + interval '8 s' WHERE id = %s", wanted["scheduled that gets due"])
    worker(mode)
    # SES has a mail before its row says so.
    until(lambda: query("SELECT count(*) FROM emails WHERE status = 'sent'") == [(len(wanted),)])
    assert {taken.email_id for taken in ses.taken()} >= set(wanted.values())
    assert len(ses.taken()) == len(wanted)


def test_another_users_row_passes_a_long_backlog_of_which_nothing_else_is_due(
    worker: Callable[..., Delivery], add_email: Callable[..., str], query: Query, ses: Ses
) -> None:
    insert(query, 3 * MANY, columns=", provider_next_retry_at", values=", now() + interval '1 hour'")
    worker("postgres")
    mine = add_email(user_id="few")
    until(lambda: [taken.email_id for taken in ses.taken()] == [mine])


def test_a_user_with_slow_mail_leaves_places_to_others(
    worker: Callable[..., Delivery], add_email: Callable[..., str], query: Query, ses: Ses
) -> None:
    """The provider takes minutes for each mail of the one: another's still leaves."""
    ses.answer(*[{"seconds": 8.0}] * 9)
    insert(query, 100)
    worker("postgres", SMTP_RELAY_DELIVERY_CONCURRENCY="10")
    until(lambda: query("SELECT count(*) FROM emails WHERE status = 'processing'") == [(9,)])
    mine = add_email(user_id="few")
    until(lambda: query("SELECT status FROM emails WHERE id = %s", mine) == [("sent",)])
    taken = [taken.email_id for taken in ses.taken()]
    assert taken == [mine]
    query("UPDATE emails SET status = 'canceled' WHERE status = 'queued'")


def test_postgres_dies_and_comes_back_and_all_mail_leaves(ses: Ses, tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres") as postgres:
        url = create_database(postgres.url(), "dies")
        apply_schema(url)

        def run(statement: str, *values: Any) -> list[Any]:
            with psycopg2.connect(url) as connection, connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []

        settings = {**ses.client_environment, "DATABASE_URL": url, "SMTP_RELAY_DELIVERY_PROCESSES": "2"}
        with Delivery(tmp_path / "delivery", settings) as worker:
            for _ in range(2):
                insert(run, 100)
                postgres.kill()
                time.sleep(2.0)
                postgres.start()
            insert(run, 100)
            # A claim whose answer got lost is given up when it is old; the others leave by themselves.
            run("SELECT 1")
            until(lambda: run("SELECT count(*) FROM emails WHERE status = 'queued'") == [(0,)])
            run("UPDATE emails SET provider_last_attempted_at = '2020-01-01' WHERE status = 'processing'")
            until(lambda: run("SELECT count(*) FROM emails WHERE status <> 'sent'") == [(0,)])
            log = worker.log_path.read_text()
        assert "greenlet_failed" not in log
        assert "Traceback" not in log


def test_an_idle_worker_does_next_to_nothing(
    worker: Callable[..., Delivery], query: Query, add_email: Callable[..., str], postgres_url: str
) -> None:
    """In processor time: with rows that wait, and one that is locked, which can't be claimed."""
    insert(query, MANY, columns=", provider_next_retry_at", values=", now() + interval '1 hour'")
    insert(query, MANY, columns=", status, scheduled_at", values=", 'scheduled', now() + interval '1 hour'")
    held = add_email()
    connection = psycopg2.connect(postgres_url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM emails WHERE id = %s FOR UPDATE", (held,))
        started = worker("postgres")
        time.sleep(3.0)
        family = processes.family(started.pid)
        before = sum(sum(each.cpu_times()[:2]) for each in family)
        time.sleep(10.0)
        assert sum(sum(each.cpu_times()[:2]) for each in family) - before < 1.5
    connection.close()
    until(lambda: query("SELECT status FROM emails WHERE id = %s", held) == [("sent",)])


class Struck(Exception):
    """An unforeseen error."""


@pytest.mark.parametrize("seed", range(2))
def test_whatever_error_strikes_each_row_is_delivered_once_and_every_place_comes_back(
    postgres_url: str,
    outgoing: Outgoing,
    without_redis: ClaimStates,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Errors strike every call to Postgres, before it or behind it, and the delivery itself."""
    generator = random.Random(seed)
    striking = True

    def strike(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def struck(*arguments: Any, **named: Any) -> Any:
            fate = generator.random() if striking else 1.0
            if fate < 0.1:
                raise Struck(name)
            if fate < 0.2:
                raise PostgresUnavailable()
            result = real(*arguments, **named)
            if fate < 0.25 and name != "claim":
                raise Struck(name)
            return result

        monkeypatch.setattr(owner, name, struck)

    for owner, names in (
        (WaitingRows, ("newest", "oldest", "processing")),
        (Walk, ("read",)),
        (Outgoing, ("claim",)),
        (LeftRows, ("put_back",)),
    ):
        for name in names:
            strike(owner, name)
    monkeypatch.setattr(Supervised, "first_pause", 0.001)
    monkeypatch.setattr(Supervised, "well_after", 0.0)  # or the pauses grow, as they should
    monkeypatch.setattr(RowSource, "look_seconds", 0.02)
    monkeypatch.setattr(RowSource, "scan_seconds", 0.1)
    rests = gevent.sleep
    monkeypatch.setattr("relay.delivery.row_source.gevent.sleep", lambda seconds: rests(min(seconds, 0.01)))
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=4, switched_off=PLANNER)
    insert(query, FEW)
    insert(query, FEW, columns=", status, scheduled_at", values=", 'scheduled', now()", user="other")
    insert(query, 20, columns=", status, provider_last_attempted_at", values=", 'processing', '2020-01-01'", user="x")
    delivered: Counter[str] = Counter()
    places = gevent.lock.BoundedSemaphore(7)

    def deliver(row: tuple[Any, ...]) -> None:
        delivered[str(row[0])] += 1
        outgoing.sent(str(row[0]), None)
        if striking and generator.random() < 0.05:
            raise Struck("deliver")

    shares = Shares(7)
    source = RowSource(
        outgoing,
        WaitingRows(database),
        deliver,
        places,
        shares=shares,
        left_behind=LeftBehind(LeftRows(database), without_redis),
        queue_works=None,
        turns=Turns(),
        wait_for_leave=lambda: None,
    )
    loops = source.start()
    limit = time.monotonic() + 120.0
    while len(delivered) < 2 * FEW + 20:
        assert time.monotonic() < limit, len(delivered)
        rests(0.05)
        striking = len(delivered) < 1.8 * FEW
    for loop in loops:
        loop.stop()
    while places.counter < 7:
        assert time.monotonic() < limit
        rests(0.01)
    assert set(delivered.values()) == {1}
    assert source._on_the_way == {}
    assert shares.counts == {}
    assert shares.room == 6
    with contextlib.suppress(PostgresUnavailable):
        database.close()
