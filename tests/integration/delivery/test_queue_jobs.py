"""What becomes of each message of the queue: queues of moto's over HTTP, a worker that notes its mails."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import gevent
import gevent.lock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.aws.sqs_receiver import QueueReceiver, Received
from relay.core.errors import PostgresUnavailable, QueueUnavailable
from relay.delivery import queue_jobs
from relay.delivery.queue_jobs import Job, QueueJobs, job_of
from relay.delivery.shares import Share, Shares
from relay.delivery.webhooks import Webhooks
from scripts.services import Sqs

EMAIL_ID = "0e0f7a3c-7d39-4c6e-9b3f-1a2b3c4d5e6f"


class Worker:
    """A consumer of one queue, and what it was asked to do."""

    def __init__(self, receiver: QueueReceiver, webhooks: Webhooks | None) -> None:
        self.delivered: list[str] = []
        self.scans = 0
        self.asked_postgres = 0
        #: Raised by the next deliveries, one after the other.
        self.errors: list[BaseException] = []
        self.postgres_away = 0
        self.slots = gevent.lock.BoundedSemaphore(5)
        self.jobs = QueueJobs(
            receiver,
            self.slots,
            Shares(100),
            deliver=self._deliver,
            scan=self._scan,
            wait_for_leave=lambda: None,
            ask_postgres=self._ask,
            webhooks=webhooks,
        )
        self.greenlet = gevent.spawn(self.jobs.receive)

    def _deliver(self, email_id: str, _: Share) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        self.delivered.append(email_id)
        return True

    def _scan(self) -> None:
        self.scans += 1

    def _ask(self) -> None:
        self.asked_postgres += 1
        if self.postgres_away:
            self.postgres_away -= 1
            raise PostgresUnavailable()


class Receiver(QueueReceiver):
    """Asks without waiting: nothing is patched in the tests' process, and a long poll would stop all greenlets."""

    def receive(self, most: int, *, visibility_seconds: int, wait_seconds: int = 0) -> list[Received]:
        gevent.sleep(0.02)
        return super().receive(most, visibility_seconds=visibility_seconds, wait_seconds=wait_seconds)


class DeniedReceiver(Receiver):
    """For a role that may not call GetQueueAttributes; a stand-in, since moto denies nothing."""

    def redrives(self) -> bool:
        raise QueueUnavailable("AccessDeniedException")


@pytest.fixture
def consume(sqs: Sqs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    for name, value in sqs.client_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(queue_jobs, "_AWAY", (0.05, 0.1))
    workers: list[tuple[Worker, QueueReceiver]] = []

    def start(url: str, kind: type[QueueReceiver] = Receiver, webhooks: Webhooks | None = None) -> Worker:
        receiver = kind(url, sqs.region)
        workers.append((Worker(receiver, webhooks), receiver))
        return workers[-1][0]

    yield start
    for worker, receiver in workers:
        worker.greenlet.kill()
        receiver.close()


def new_queue(sqs: Sqs, suffix: str, *, most_receives: int | None = None) -> tuple[str, str]:
    """A queue's URL, and that of the queue to which it puts what was received too often, or nothing."""
    attributes = {"FifoQueue": "true"} if suffix else {}
    client = sqs.client()
    dead = ""
    if most_receives is not None:
        dead = client.create_queue(QueueName=f"d{uuid.uuid4().hex}{suffix}", Attributes=attributes)["QueueUrl"]
        arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = {"deadLetterTargetArn": arn, "maxReceiveCount": most_receives}
        attributes = attributes | {"RedrivePolicy": json.dumps(policy)}
    return client.create_queue(QueueName=f"q{uuid.uuid4().hex}{suffix}", Attributes=attributes)["QueueUrl"], dead


def put(sqs: Sqs, url: str, *bodies: Any) -> None:
    for body in bodies:
        text = body if isinstance(body, str) else json.dumps(body)
        kind = body["type"] if isinstance(body, dict) else "email.send"
        more = {"MessageGroupId": kind, "MessageDeduplicationId": uuid.uuid4().hex} if url.endswith(".fifo") else {}
        sqs.client().send_message(QueueUrl=url, MessageBody=text, **more)


def left(sqs: Sqs, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs.client().get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit
        gevent.sleep(0.05)


def send(email_id: str = EMAIL_ID) -> dict[str, Any]:
    return {"id": f"email.send:{email_id}", "type": "email.send", "source": "api", "emailId": email_id}


def webhook() -> dict[str, Any]:
    delivery = str(uuid.uuid4())
    return {"id": f"webhook.dispatch:{delivery}", "type": "webhook.dispatch", "deliveryId": delivery}


@pytest.mark.parametrize("suffix", ["", ".fifo"])
def test_all_four_types(sqs: Sqs, consume: Callable[..., Worker], suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_jobs, "_LEFT_SECONDS", 0)
    url, _ = new_queue(sqs, suffix)
    put(sqs, url, webhook(), {"type": "webhook-delivery.scan"}, {"type": "scheduled-email.scan", "limit": 5}, send())
    worker = consume(url)
    until(lambda: left(sqs, url) == 0)
    assert worker.delivered == [EMAIL_ID]
    assert worker.scans == 1


def test_a_job_for_a_webhook_comes_to_another_consumer(sqs: Sqs, consume: Callable[..., Worker]) -> None:
    """One look does not take it away."""
    url, _ = new_queue(sqs, "")
    put(sqs, url, webhook())
    consume(url)
    attributes: dict[str, str] = {}
    limit = time.monotonic() + 60
    while attributes.get("ApproximateNumberOfMessagesNotVisible") != "1":
        assert time.monotonic() < limit
        gevent.sleep(0.05)
        attributes = sqs.client().get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    receiver = QueueReceiver(url, sqs.region)
    # It blocks this process, the first consumer with it.
    (received,) = receiver.receive(1, visibility_seconds=60, wait_seconds=20)
    receiver.close()
    job = job_of(received.body)
    assert job is not None
    assert (job.kind, received.count) == ("webhook.dispatch", 2)


class NotedWebhooks(Webhooks):
    """A stand-in that notes what jobs ask for: tests/integration/delivery/test_webhook_claims.py has the real rows."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.errors: list[PostgresUnavailable] = []

    def wake(self) -> None:
        self.asked.append(("wake",))

    def name(self, delivery_ids: Iterable[str]) -> None:
        self.asked.append(("name", *delivery_ids))

    def retry(self, delivery_id: str, requested: datetime | None) -> None:
        if self.errors:
            raise self.errors.pop()
        self.asked.append(("retry", delivery_id, requested))


@pytest.mark.parametrize("suffix", ["", ".fifo"])
def test_jobs_for_webhooks_are_done_and_deleted(
    sqs: Sqs, consume: Callable[..., Worker], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's wish for one more attempt waits for Postgres; what only says that a row is there need not."""
    monkeypatch.setattr(queue_jobs, "VISIBILITY_SECONDS", 1)
    url, _ = new_queue(sqs, suffix)
    named, wanted = webhook(), webhook() | {"source": "manual", "requestedAt": "2026-11-27T10:00:00.000Z"}
    put(sqs, url, named, {"type": "webhook-delivery.scan", "limit": 5}, wanted)
    webhooks = NotedWebhooks()
    webhooks.errors.append(PostgresUnavailable())
    worker = consume(url, webhooks=webhooks)
    until(lambda: left(sqs, url) == 0)
    assert sorted(webhooks.asked, key=str) == sorted(
        [
            ("name", named["deliveryId"]),
            ("wake",),
            ("retry", wanted["deliveryId"], datetime(2026, 11, 27, 10, tzinfo=UTC)),
        ],
        key=str,
    )
    assert (worker.delivered, worker.scans) == ([], 0)


@pytest.mark.parametrize("denied", [False, True])
@pytest.mark.parametrize("redrives", [False, True])
def test_poison_on_a_fifo_queue_never_stops_the_mail_behind_it(
    sqs: Sqs, consume: Callable[..., Worker], redrives: bool, denied: bool
) -> None:
    url, dead = new_queue(sqs, ".fifo", most_receives=2 if redrives else None)
    poison = ["no JSON", '{"type": "email.send", "emailId": "x"}', "[]", '{"type": "nobody.knows"}']
    put(sqs, url, *poison, send())
    worker = consume(url, DeniedReceiver if denied else Receiver)
    until(lambda: worker.delivered == [EMAIL_ID])
    until(lambda: left(sqs, url) == 0)
    assert (left(sqs, dead) if dead else 0) == (len(poison) if redrives and not denied else 0)


def test_poison_on_a_standard_queue_is_left_and_does_not_come_at_once(sqs: Sqs, consume: Callable[..., Worker]) -> None:
    url, _ = new_queue(sqs, "")
    put(sqs, url, "no JSON", send())
    worker = consume(url)
    until(lambda: worker.delivered == [EMAIL_ID])
    until(lambda: left(sqs, url) == 1)
    attributes = sqs.client().get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["ApproximateNumberOfMessagesNotVisible"] == "1"


@pytest.mark.parametrize("suffix", ["", ".fifo"])
def test_while_postgres_is_away_nothing_is_received(
    sqs: Sqs, consume: Callable[..., Worker], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each receive counts towards the redrive policy, which would put a good job aside."""
    monkeypatch.setattr(queue_jobs, "VISIBILITY_SECONDS", 2)
    url, dead = new_queue(sqs, suffix, most_receives=2)
    put(sqs, url, send())
    worker = consume(url)
    worker.errors.append(PostgresUnavailable())
    worker.postgres_away = 20
    until(lambda: worker.delivered == [EMAIL_ID])
    assert worker.asked_postgres == 21
    until(lambda: left(sqs, url) == 0)
    assert left(sqs, dead) == 0


def test_a_bug_does_not_stop_a_fifo_queue(sqs: Sqs, consume: Callable[..., Worker]) -> None:
    url, _ = new_queue(sqs, ".fifo")
    second = str(uuid.uuid4())
    put(sqs, url, send(), send(second))
    worker = consume(url)
    worker.errors.append(ZeroDivisionError())
    until(lambda: worker.delivered == [second])
    until(lambda: left(sqs, url) == 0)
    assert worker.slots.counter == 5


def test_what_was_received_and_not_begun_is_given_back_at_the_end(sqs: Sqs, consume: Callable[..., Worker]) -> None:
    url, _ = new_queue(sqs, "")
    put(sqs, url, *[send(str(uuid.uuid4())) for _ in range(5)])
    worker = consume(url)
    blocked = gevent.event.Event()
    worker.jobs._deliver = lambda *_: blocked.wait()  # type: ignore[assignment,return-value]
    worker.slots.acquire()
    worker.slots.acquire()
    worker.slots.acquire()
    worker.slots.acquire()  # one place is left, and a mail takes it while the others were received with it
    worker.jobs._receiver.receive = _all_at_once(worker.jobs._receiver)  # type: ignore[method-assign]
    until(lambda: worker.slots.counter == 0)
    worker.greenlet.kill()
    attributes = sqs.client().get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["ApproximateNumberOfMessages"] == "4"
    blocked.set()


def _all_at_once(receiver: QueueReceiver) -> Callable[..., Any]:
    original = receiver.receive

    def receive(_: int, **options: Any) -> Any:
        return original(10, **options)

    return receive


def test_a_message_stays_in_flight_while_its_mail_is_being_sent(
    sqs: Sqs, consume: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mail takes as long as the message is put off twice: longer than it would be out of sight otherwise."""
    monkeypatch.setattr(queue_jobs, "VISIBILITY_SECONDS", 2)
    extended: list[int] = []

    class Noting(Receiver):
        def extend(self, received: Received, seconds: int) -> None:
            extended.append(seconds)
            super().extend(received, seconds)

    url, _ = new_queue(sqs, "")
    worker = consume(url, Noting)

    def deliver(email_id: str, _: Share) -> bool:
        worker.delivered.append(email_id)
        until(lambda: len(extended) >= 2)
        return True

    monkeypatch.setattr(worker.jobs, "_deliver", deliver)
    put(sqs, url, send())
    until(lambda: left(sqs, url) == 0)
    assert set(extended) == {2}
    assert set(worker.delivered) == {EMAIL_ID}


def test_jobs() -> None:
    assert job_of(json.dumps(send())) == Job("email.send", EMAIL_ID)
    assert job_of('{"type": "scheduled-email.scan"}') == Job("scheduled-email.scan")
    assert job_of('{"type": "webhook-delivery.scan", "limit": 3}') == Job("webhook-delivery.scan")
    assert job_of('{"type": "webhook.dispatch", "deliveryId": "d"}') is None
    made = {"type": "webhook.dispatch", "deliveryId": EMAIL_ID, "source": "ses-ingest", "requestedAt": "yesterday"}
    assert job_of(json.dumps(made)) == Job("webhook.dispatch", EMAIL_ID)
    made |= {"source": "manual", "requestedAt": "2026-11-27T10:00:00"}  # a time without an offset is none
    assert job_of(json.dumps(made)) == Job("webhook.dispatch", EMAIL_ID, manual=True)
    for body in ("", "null", "3", "[" * 5000, '{"type": []}', '{"type": "webhook.dispatch"}', '{"type": "email.send"}'):
        assert job_of(body) is None


@given(st.text() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_no_text_raises(body: str) -> None:
    job_of(body)
