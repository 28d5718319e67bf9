"""Jobs of the queue, many of one user before one of another: moto's queue, Postgres, SES's double, the real worker."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.services import Delivery, Ses, Sqs
from tests.integration.delivery.test_waiting import insert

Query = Callable[..., list[tuple[Any, ...]]]
#: Seconds that SES takes for a mail of the user with many: another's mail must not wait for one of them.
SLOW = 12.0


def publish(sqs: Sqs, url: str, ids: list[str]) -> None:
    """The jobs of these rows, in this order."""
    client = sqs.client()
    for start in range(0, len(ids), 10):
        entries: list[dict[str, str]] = []
        for number, email_id in enumerate(ids[start : start + 10]):
            job = {"id": f"email.send:{email_id}", "type": "email.send", "source": "api", "emailId": email_id}
            group = {"MessageGroupId": "email.send", "MessageDeduplicationId": job["id"]}
            entries.append(
                {"Id": str(number), "MessageBody": json.dumps(job)} | (group if url.endswith(".fifo") else {})
            )
        client.send_message_batch(QueueUrl=url, Entries=entries)


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 90.0
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("suffix", ["", ".fifo"])
def test_a_users_long_queue_of_slow_mails_does_not_hold_up_another_users(
    add_email: Callable[..., str], query: Query, sqs: Sqs, ses: Ses, postgres_url: str, tmp_path: Path, suffix: str
) -> None:
    """Nine places of ten are the most that one has, whether the user's mails come by jobs or were found in Postgres."""
    ses.answer(*[{"seconds": SLOW}] * 9)
    insert(query, 60)
    url = sqs.create_queue(f"q{uuid.uuid4().hex}{suffix}")
    publish(sqs, url, [email_id for (email_id,) in query("SELECT id::text FROM emails")])
    settings = {
        **ses.client_environment,
        "DATABASE_URL": postgres_url,
        "AWS_ENDPOINT_URL_SQS": sqs.endpoint,
        "AWS_REGION": sqs.region,
        "BACKGROUND_JOBS_QUEUE_URL": url,
        "SMTP_RELAY_DELIVERY_CONCURRENCY": "10",
    }
    with Delivery(tmp_path / "delivery", settings) as worker:
        until(lambda: query("SELECT count(*) FROM emails WHERE status = 'processing'") == [(9,)])
        mine = add_email(user_id="few")
        publish(sqs, url, [mine])
        until(lambda: query("SELECT status FROM emails WHERE id = %s", mine) == [("sent",)])
        # None of the other's had left when this one did, and none began in the tenth place.
        assert [taken.email_id for taken in ses.taken()] == [mine]
        query("UPDATE emails SET status = 'canceled' WHERE status = 'queued'")
        log = worker.log_path.read_text()
    assert "greenlet_failed" not in log
