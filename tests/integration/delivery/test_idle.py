"""What a machine without work asks of Postgres, as Postgres itself has counted it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from scripts.database import apply_schema, create_database
from scripts.services import Delivery, Postgres, Ses, Sqs

#: Seconds that are counted: several scans of each process.
SECONDS = 25.0


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[str]:
    """A database on a separate server that counts statements."""
    settings = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on"}
    with Postgres(tmp_path / "postgres", durable=False, settings=settings) as server:
        url = create_database(server.url(), "counting")
        apply_schema(url)
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE EXTENSION pg_stat_statements")
        yield url


@pytest.mark.parametrize("mode", ["postgres", "queue"])
def test_an_idle_machine_asks_five_cheap_questions_a_second_at_most(
    counting: str, ses: Ses, sqs: Sqs, tmp_path: Path, mode: str
) -> None:
    """However many processes it has. Some rows are there that wait for something: they are no work either."""
    with psycopg2.connect(counting) as connection, connection.cursor() as cursor:
        for status, column in (("scheduled", "scheduled_at"), ("queued", "provider_next_retry_at")):
            cursor.execute(
                f'INSERT INTO emails (id, "from", "to", subject, status, {column})'
                " SELECT gen_random_uuid(), 'a@example.com', '[\"to@x.example\"]', 's', %s, now() + interval '1 day'"
                " FROM generate_series(1, 100)",
                (status,),
            )
    settings: dict[str, str | None] = {
        **ses.client_environment,
        "DATABASE_URL": counting,
        "SMTP_RELAY_DELIVERY_PROCESSES": "3",
    }
    if mode == "queue":
        settings |= {
            "AWS_ENDPOINT_URL_SQS": sqs.endpoint,
            "AWS_REGION": sqs.region,
            "BACKGROUND_JOBS_QUEUE_URL": sqs.create_queue(f"idle-{time.time_ns()}"),
        }
    with Delivery(tmp_path / "delivery", settings) as worker:
        _until(lambda: worker.log_path.read_text().count('"delivery_ready"') == 3)
        time.sleep(3.0)
        connection = psycopg2.connect(counting)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_statements_reset()")
            cursor.execute("SELECT clock_timestamp()")
            began = cursor.fetchone()
            time.sleep(SECONDS)
            cursor.execute(
                "SELECT sum(calls), extract(epoch FROM clock_timestamp() - %s), max(shared_blks_hit / calls)::int"
                " FROM pg_stat_statements WHERE query NOT LIKE '%%pg_stat_statements%%'"
                " AND query NOT LIKE 'SELECT clock_timestamp%%' AND toplevel",
                began,
            )
            row: Any = cursor.fetchone()
        connection.close()
    calls, seconds, pages = float(row[0] or 0), float(row[1]), row[2]
    assert 0 < calls / seconds <= 5.0
    # Rows that wait lie in some pages; more than these are no cheap question.
    assert pages <= 250


def _until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60.0
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.1)
