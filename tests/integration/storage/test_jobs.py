"""Jobs: in the contract's form, once as a rule, and never none, whatever crashes or is away."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import gevent
import pytest
import redis

from relay.aws.sqs import Queue
from relay.core import metrics
from relay.core.records import EmailRow
from relay.jobs.intents import Intents
from relay.jobs.job import BATCH_SIZE, Job
from relay.jobs.publisher import Publisher
from relay.jobs.sender import JobSender
from relay.jobs.sweep import Sweep
from relay.postgres.store import Store
from relay.redis.cache import Cache
from scripts.services import Sqs, free_port

MakeRow = Callable[..., EmailRow]
Query = Callable[..., list[dict[str, Any]]]
INTENTS = "smtp-relay:jobs:intents"
REGION = "us-east-1"


@pytest.fixture(autouse=True)
def _aws(sqs: Sqs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in sqs.client_environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def start_publisher(store: Store, cache: Cache) -> Iterator[Callable[..., Publisher]]:
    started: list[tuple[Publisher, Sweep, JobSender]] = []

    def start(queue_url: str, **options: Any) -> Publisher:
        sender, intents = JobSender(Queue(queue_url, REGION)), Intents(cache.link)
        publisher, sweep = Publisher(sender, intents, **options), Sweep(sender, store, intents)
        started.append((publisher, sweep, sender))
        publisher.start()
        sweep.start()
        return publisher

    yield start
    for publisher, sweep, sender in started:
        sweep.stop()
        publisher.stop(0.1)
        sender.close()


def received(sqs: Sqs, queue_url: str, wanted: int, seconds: float = 20.0) -> list[dict[str, Any]]:
    """At least so many messages from the queue, or what there is when the time is up."""
    messages: list[dict[str, Any]] = []
    deadline = time.monotonic() + seconds
    client = sqs.client()
    while time.monotonic() < deadline:
        page = client.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["All"]
        ).get("Messages", [])
        messages += page
        for message in page:
            client.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
        if not page and len(messages) >= wanted:
            break
        gevent.sleep(0.05)
    return messages


def email_ids(messages: list[dict[str, Any]]) -> list[str]:
    return sorted(json.loads(message["Body"])["emailId"] for message in messages)


def stored_rows(store: Store, make_row: MakeRow, count: int) -> list[str]:
    rows = [make_row() for _ in range(count)]
    for row in rows:
        store.insert([row], [])
    return [row.id for row in rows]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        gevent.sleep(0.05)
    return True


def sweep(queue_url: str, store: Store, cache: Cache) -> Sweep:
    return Sweep(JobSender(Queue(queue_url, REGION)), store, Intents(cache.link))


def age(client: redis.Redis, seconds: float) -> None:
    """Makes every intent older."""
    for member, score in client.zrange(INTENTS, 0, -1, withscores=True):
        client.zadd(INTENTS, {member: score - seconds * 1000})


# Form.


def test_a_job_is_as_the_contract_has_it(start_publisher: Callable[..., Publisher], sqs: Sqs, queue_url: str) -> None:
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    email_id = str(uuid.uuid4())
    before = time.time()
    start_publisher(queue_url).publish(email_id, correlation_id="connection-7", traceparent=trace)
    (message,) = received(sqs, queue_url, 1)
    body = json.loads(message["Body"])
    requested_at = body.pop("requestedAt")
    assert body == {
        "id": f"email.send:{email_id}",
        "type": "email.send",
        "source": "api",
        "emailId": email_id,
        "trace": {"traceparent": trace, "correlationId": "connection-7"},
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", requested_at)
    assert requested_at[:16] in {time.strftime("%Y-%m-%dT%H:%M", time.gmtime(t)) for t in (before, time.time())}
    assert {
        name: (value["DataType"], value["StringValue"]) for name, value in message["MessageAttributes"].items()
    } == {
        "jobId": ("String", f"email.send:{email_id}"),
        "jobType": ("String", "email.send"),
        "source": ("String", "api"),
        "correlationId": ("String", "connection-7"),
        "traceparent": ("String", trace),
    }


def test_a_job_without_a_trace_gets_a_random_one() -> None:
    jobs = [Job.of("an-email-id") for _ in range(100)]
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", job.traceparent) for job in jobs)
    assert len({job.traceparent for job in jobs}) == 100
    assert {job.correlation_id for job in jobs} == {"an-email-id"}


def test_fifo_queues_get_group_and_deduplication_ids(
    start_publisher: Callable[..., Publisher], sqs: Sqs, fifo_queue_url: str
) -> None:
    publisher = start_publisher(fifo_queue_url)
    ids = [str(uuid.uuid4()) for _ in range(12)]
    for email_id in [*ids, ids[0]]:
        publisher.publish(email_id)
    assert publisher.stop(20.0) == 0
    # A group's messages come one batch after the other, as the ones before are deleted.
    messages = received(sqs, fifo_queue_url, 12)
    assert email_ids(messages) == sorted(ids)
    for message in messages:
        attributes = message["Attributes"]
        assert attributes["MessageGroupId"] == "email.send"
        assert attributes["MessageDeduplicationId"] == json.loads(message["Body"])["id"]


# Batches and trouble, on an endpoint of our own: moto takes whatever it is given.


class Endpoint(ThreadingHTTPServer):
    """Takes SendMessageBatch; refuses the entries, or answers with the errors, that a test asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.batches: list[list[str]] = []
        self.refuse: Callable[[str], bool] = lambda email_id: False
        self.status = 200
        self.error = ""
        self.delay = 0.0
        self.at_once = self.most_at_once = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def taken(self) -> Counter[str]:
        return Counter(email_id for batch in self.batches for email_id in batch)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        server = self.server
        server.at_once += 1
        server.most_at_once = max(server.most_at_once, server.at_once)
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(server.delay)
        answer: dict[str, Any] = {"__type": f"com.amazonaws.sqs#{server.error}"}
        if server.status == 200:
            answer = {"Successful": [], "Failed": []}
            taken = []
            for entry in document["Entries"]:
                email_id = json.loads(entry["MessageBody"])["emailId"]
                if server.refuse(email_id):
                    answer["Failed"].append({"Id": entry["Id"], "Code": "InternalError", "SenderFault": False})
                else:
                    answer["Successful"].append({"Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": "x"})
                    taken.append(email_id)
            server.batches.append(taken)
        server.at_once -= 1
        content = json.dumps(answer).encode()
        self.send_response(server.status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' output."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def own_queue_url(endpoint: Endpoint) -> str:
    return f"{endpoint.url}/000000000000/jobs"


def test_jobs_that_come_together_go_together(
    start_publisher: Callable[..., Publisher], endpoint: Endpoint, own_queue_url: str
) -> None:
    publisher = start_publisher(own_queue_url)
    published = metrics.JOBS.labels("published").value
    ids = [f"id-{number}" for number in range(95)]
    for email_id in ids:
        publisher.publish(email_id)
    assert metrics.JOBS_PENDING.value == 95
    assert publisher.stop(20.0) == 0
    assert (metrics.JOBS.labels("published").value, metrics.JOBS_PENDING.value) == (published + 95, 0)
    assert endpoint.taken == Counter(ids)
    assert [len(batch) for batch in endpoint.batches] == [BATCH_SIZE] * 9 + [5]
    assert endpoint.most_at_once <= Publisher.senders


def test_what_the_queue_refuses_alone_is_tried_again_alone(
    start_publisher: Callable[..., Publisher],
    endpoint: Endpoint,
    own_queue_url: str,
    client: redis.Redis,
) -> None:
    refused: Counter[str] = Counter()

    def refuse(email_id: str) -> bool:
        refused[email_id] += email_id in {"id-3", "id-7"}
        return email_id == "id-7" or (email_id == "id-3" and refused[email_id] < 3)

    endpoint.refuse = refuse
    counted = metrics.JOBS.labels("refused").value
    client.zadd(INTENTS, {f"id-{number}": 1 for number in range(10)})
    publisher = start_publisher(own_queue_url)
    for number in range(10):
        publisher.publish(f"id-{number}")
    assert wait_until(lambda: client.zcard(INTENTS) == 1)
    assert client.zrange(INTENTS, 0, -1) == [b"id-7"], "what was refused for good is left to the sweep"
    assert endpoint.taken == Counter(f"id-{number}" for number in range(10) if number != 7)
    assert refused["id-3"] == 3
    assert wait_until(lambda: publisher.stop(0.5) == 0)
    assert metrics.JOBS.labels("refused").value == counted + 2 + refused["id-7"]
    assert refused["id-7"] < 10


def test_a_queue_that_is_away_gets_everything_once_and_soon_when_it_is_back(
    start_publisher: Callable[..., Publisher],
    endpoint: Endpoint,
    own_queue_url: str,
    store: Store,
    cache: Cache,
    client: redis.Redis,
    make_row: MakeRow,
) -> None:
    """The jobs wait in memory, and their intents are kept too young for a sweep, however long it takes."""
    endpoint.status, endpoint.error = 503, "ServiceUnavailable"
    publisher = start_publisher(own_queue_url)
    publisher.keep_seconds = 0.1
    ids = stored_rows(store, make_row, 60)
    client.zadd(INTENTS, dict.fromkeys(ids, time.time() * 1000))
    for email_id in ids:
        publisher.publish(email_id)
    for _ in range(3):
        age(client, 31)
        publisher._note_anew()
        assert wait_until(lambda: not client.zcount(INTENTS, "-inf", (time.time() - 20) * 1000))
        assert sweep(own_queue_url, store, cache).publish_forgotten() == 0
        gevent.sleep(0.2)
    assert endpoint.batches == []
    endpoint.status = 200
    assert wait_until(lambda: client.zcard(INTENTS) == 0)
    assert endpoint.taken == Counter(ids)
    assert publisher.stop(5.0) == 0


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, "QueueDoesNotExist"), (403, "AccessDeniedException"), (500, "InternalFailure")],
)
def test_an_error_of_the_queue_heals_without_a_restart(
    start_publisher: Callable[..., Publisher], endpoint: Endpoint, own_queue_url: str, status: int, error: str
) -> None:
    endpoint.status, endpoint.error = status, error
    publisher = start_publisher(own_queue_url)
    publisher.publish("id-1")
    gevent.sleep(0.3)
    assert endpoint.batches == []
    endpoint.status = 200
    assert wait_until(lambda: endpoint.taken == Counter({"id-1": 1}))


def test_memory_is_bounded_while_the_queue_and_redis_are_away(endpoint: Endpoint, own_queue_url: str) -> None:
    endpoint.status = 503
    cache = Cache(f"redis://127.0.0.1:{free_port()}")
    publisher = Publisher(JobSender(Queue(own_queue_url, REGION)), Intents(cache.link), max_waiting=100)
    publisher.start()
    for number in range(1000):
        publisher.publish(f"id-{number}")
        if number % 100 == 0:
            gevent.sleep(0.05)
    assert len(publisher._waiting) <= 100 + BATCH_SIZE * publisher.senders
    publisher.stop(0.1)
    cache.close()


def test_stop_says_how_many_are_left(
    start_publisher: Callable[..., Publisher], endpoint: Endpoint, own_queue_url: str
) -> None:
    endpoint.status = 503
    publisher = start_publisher(own_queue_url)
    for number in range(25):
        publisher.publish(f"id-{number}")
    assert publisher.stop(0.5) == 25


def test_without_credentials_mail_is_accepted_and_published_later(
    start_publisher: Callable[..., Publisher],
    endpoint: Endpoint,
    own_queue_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", "/nonexistent")
    publisher = start_publisher(own_queue_url)
    publisher.publish("id-1")
    gevent.sleep(0.1)
    assert endpoint.batches == []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    assert wait_until(lambda: endpoint.taken == Counter({"id-1": 1}))


def test_a_slow_queue_does_not_hold_up_who_publishes(
    start_publisher: Callable[..., Publisher], endpoint: Endpoint, own_queue_url: str
) -> None:
    endpoint.delay = 0.2
    publisher = start_publisher(own_queue_url)
    started = time.monotonic()
    for number in range(1000):
        publisher.publish(f"id-{number}")
    assert time.monotonic() - started < 2.0
    assert len(publisher._waiting) == 1000


# The sweep.


def test_a_crash_between_commit_and_publishing_costs_a_delay(
    sqs: Sqs, queue_url: str, store: Store, cache: Cache, client: redis.Redis, make_row: MakeRow
) -> None:
    """Rows and intents are there, the process is not. The sweep publishes each once, and not before its time."""
    ids = stored_rows(store, make_row, 25)
    client.zadd(INTENTS, dict.fromkeys(ids, time.time() * 1000))
    sweeps = [sweep(queue_url, store, cache) for _ in range(3)]
    swept = metrics.JOBS.labels("swept").value
    assert [each.publish_forgotten() for each in sweeps] == [0, 0, 0]
    age(client, 31)
    assert sum(each.publish_forgotten() for each in sweeps) == 25
    assert metrics.JOBS.labels("swept").value == swept + 25
    assert cache.ping()
    assert client.zcard(INTENTS) == 0
    assert sum(each.publish_forgotten() for each in sweeps) == 0
    assert email_ids(received(sqs, queue_url, 25)) == sorted(ids)


def test_only_one_process_sweeps(
    queue_url: str, store: Store, cache: Cache, client: redis.Redis, make_row: MakeRow
) -> None:
    client.zadd(INTENTS, dict.fromkeys(stored_rows(store, make_row, 3), time.time() * 1000 - 40_000))
    one, two = sweep(queue_url, store, cache), sweep(queue_url, store, cache)
    assert Intents(cache.link).hold_lock(b"smtp-relay:jobs:sweep", one._token, 30)
    assert two.publish_forgotten() == 0
    assert one.publish_forgotten() == 3
    client.zadd(INTENTS, dict.fromkeys(stored_rows(store, make_row, 3), time.time() * 1000 - 40_000))
    assert two.publish_forgotten() == 3


def test_intents_without_a_row_that_waits_are_dropped(
    queue_url: str, store: Store, cache: Cache, client: redis.Redis, make_row: MakeRow, query: Query
) -> None:
    sent, queued = stored_rows(store, make_row, 2)
    query("UPDATE emails SET status = 'sent' WHERE id = %s", sent)
    now = time.time() * 1000
    never, not_yet = str(uuid.uuid4()), str(uuid.uuid4())
    client.zadd(INTENTS, {sent: now - 40_000, queued: now - 40_000, never: now - 700_000, not_yet: now - 40_000})
    assert sweep(queue_url, store, cache).publish_forgotten() == 1
    assert cache.ping()
    assert client.zrange(INTENTS, 0, -1) == [not_yet.encode()], "its message may still be on its way"


def test_a_long_list_is_swept_page_by_page(
    queue_url: str, store: Store, cache: Cache, client: redis.Redis, query: Query
) -> None:
    query(
        'INSERT INTO emails (id, "from", "to", subject)'
        " SELECT gen_random_uuid(), 'a@x', '[]', 's' FROM generate_series(1, 450)"
    )
    ids = [row["id"] for row in query("SELECT id FROM emails")]
    kept = [str(uuid.uuid4()) for _ in range(50)]
    client.zadd(INTENTS, dict.fromkeys(kept, time.time() * 1000 - 60_000))
    client.zadd(INTENTS, dict.fromkeys(ids, time.time() * 1000 - 40_000))
    assert sweep(queue_url, store, cache).publish_forgotten() == 450
    assert cache.ping()
    assert {member.decode() for member in client.zrange(INTENTS, 0, -1)} == set(kept)


def test_overdue_rows_get_one_more_job_in_six_hours(
    sqs: Sqs, queue_url: str, store: Store, cache: Cache, client: redis.Redis, make_row: MakeRow, query: Query
) -> None:
    """Redis has lost the intents: only Postgres knows."""
    ids = stored_rows(store, make_row, 5)
    one, two = sweep(queue_url, store, cache), sweep(queue_url, store, cache)
    one.reminders_per_second = two.reminders_per_second = 1000.0
    assert one.remind() == 0
    query("UPDATE emails SET created_at = now() - interval '16 minutes'")
    assert one.remind() == 5
    assert two.remind() == 0, "another process knows what the first one did"
    assert email_ids(received(sqs, queue_url, 5)) == sorted(ids)
    client.zadd("smtp-relay:jobs:reminded", dict.fromkeys(ids, (time.time() - 6 * 3600 - 1) * 1000))
    assert two.remind() == 5


def test_overdue_rows_are_marked_in_memory_without_redis(
    queue_url: str, store: Store, make_row: MakeRow, query: Query
) -> None:
    stored_rows(store, make_row, 3)
    query("UPDATE emails SET created_at = now() - interval '16 minutes'")
    cache = Cache(None)
    alone = sweep(queue_url, store, cache)
    alone.reminders_per_second = 1000.0
    assert [alone.remind(), alone.remind()] == [3, 0]


def test_the_sweep_runs_by_itself(
    start_publisher: Callable[..., Publisher],
    sqs: Sqs,
    queue_url: str,
    store: Store,
    client: redis.Redis,
    make_row: MakeRow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sweep, "interval", 0.1)
    ids = stored_rows(store, make_row, 3)
    client.zadd(INTENTS, dict.fromkeys(ids, time.time() * 1000 - 40_000))
    start_publisher(queue_url)
    assert wait_until(lambda: client.zcard(INTENTS) == 0)
    assert email_ids(received(sqs, queue_url, 3)) == sorted(ids)
