"""How a delivery worker hears of the webhook deliveries that an event has made: by a word in Redis, and by a job."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from relay.delivery.queue_jobs import DISPATCH, job_of
from relay.jobs.job import DispatchJob
from relay.redis import keys
from scripts.services import Sqs, Web
from scripts.services.sns_double import SnsDouble, ses_message
from tests.integration.web.conftest import Stage, settings_of
from tests.support.service_process import eventually

TO = "to@x.example"


@pytest.fixture
def queue_url(sqs: Sqs) -> str:
    return sqs.create_queue(f"jobs-{uuid.uuid4().hex}")


@pytest.fixture
def own_stage(
    sns: SnsDouble, sqs: Sqs, queue_url: str, postgres_url: str, redis_url: str, tmp_path: Path
) -> Iterator[Stage]:
    settings = settings_of(postgres_url, redis_url) | sqs.client_environment | {"BACKGROUND_JOBS_QUEUE_URL": queue_url}
    with Web(tmp_path / "web", settings, sns=(str(sns.cafile), sns.port)) as web:
        yield Stage(web, postgres_url, sns)
    assert "Traceback" not in web.log, web.log


def jobs(sqs: Sqs, queue_url: str) -> list[dict[str, Any]]:
    """What the queue has, taken from it."""
    answer = sqs.client().receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
    found: list[dict[str, Any]] = answer.get("Messages", [])
    for message in found:
        sqs.client().delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
    return found


def test_each_delivery_has_a_word_in_redis_and_a_job(
    own_stage: Stage, sqs: Sqs, queue_url: str, redis_url: str
) -> None:
    email_id, domain_id = own_stage.add_email(), own_stage.add_domain()
    delivery = own_stage.sns.notification(ses_message("Delivery", email_id, [TO]))
    click = f"/api/track/click/{own_stage.token(emailId=email_id, domainId=domain_id)}"
    with redis.Redis.from_url(redis_url) as client:

        def words() -> int:
            return int(client.llen(keys.WEBHOOK_WAKES_KEY))

        # No webhook wants it: nothing to tell.
        assert own_stage.post(own_stage.sns.notification(ses_message("Send", email_id, [TO]))).status == 200
        assert words() == 0
        for _ in range(2):
            own_stage.add_webhook("email.delivered", "email.clicked")
        for _ in range(2):  # the repeat does nothing
            assert own_stage.post(delivery).status == 200
        assert own_stage.get(click).status == 302
        eventually("a word for each event", lambda: words() == 2)
    found: list[dict[str, Any]] = []

    def all_there() -> bool:
        found.extend(jobs(sqs, queue_url))
        return len(found) >= 4

    eventually("a job for each delivery", all_there)
    ids = {row[0] for row in own_stage.query("SELECT id::text FROM webhook_deliveries WHERE status = 'pending'")}
    assert {checked(message) for message in found} == ids
    assert len(found) == len(ids) == 4
    # Without the queue webhooks are later, and all else is as it was.
    sqs.client().delete_queue(QueueUrl=queue_url)
    email_id = own_stage.add_email()
    assert own_stage.post(own_stage.sns.notification(ses_message("Delivery", email_id, [TO]))).status == 200
    assert [kind for kind, _ in own_stage.events(email_id)] == ["delivered"]
    eventually("noticed", lambda: '"queue_unavailable"' in own_stage.web.log)
    assert own_stage.get(click).status == 302


def checked(message: dict[str, Any]) -> str:
    """The delivery that a job of the contract's form is about, section 5."""
    document = json.loads(message["Body"])
    delivery_id = str(document["deliveryId"])
    assert document.pop("requestedAt")[-5:].endswith("Z")
    trace = document.pop("trace")
    assert trace["correlationId"] == delivery_id
    assert document == {
        "id": f"webhook.dispatch:{delivery_id}",
        "type": "webhook.dispatch",
        "source": "ses-ingest",
        "deliveryId": delivery_id,
    }
    assert {name: value["StringValue"] for name, value in message["MessageAttributes"].items()} == {
        "jobId": document["id"],
        "jobType": "webhook.dispatch",
        "source": "ses-ingest",
        "correlationId": delivery_id,
        "traceparent": trace["traceparent"],
    }
    job = job_of(message["Body"])
    assert job is not None
    assert (job.kind, job.manual, job.requested is not None) == (DISPATCH, False, True)
    return delivery_id


def test_jobs_of_a_fifo_queue_have_a_group_and_are_one_a_delivery() -> None:
    entries = [DispatchJob("d", 0.0).entry(position, fifo=True) for position in range(2)]
    assert [entry["Id"] for entry in entries] == ["0_d", "1_d"]
    for entry in entries:
        assert (entry["MessageGroupId"], entry["MessageDeduplicationId"]) == ("webhook.dispatch", "webhook.dispatch:d")
    assert "MessageGroupId" not in DispatchJob("d", 0.0).entry(0, fifo=False)
