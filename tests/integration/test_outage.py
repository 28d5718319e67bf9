"""What clients hear, and what is stored, while something that the relay depends on is away."""

from __future__ import annotations

import json
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from scripts.database import NewApiKey, apply_schema, create_api_key, create_database
from scripts.services import Postgres, Sqs, free_port
from tests.support.relay_process import Relay, frozen, plain
from tests.support.sockets import read_to_end, say_no_more

MAIL = b"From: ann@example.com\r\nTo: to@x.example\r\nSubject: s\r\n\r\nHi\r\n"


def send(client: smtplib.SMTP, mail: bytes = MAIL) -> tuple[int, bytes]:
    client.mail("ann@example.com")
    client.rcpt("to@x.example")
    return client.data(mail)


def count(database_url: str) -> int:
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM emails")
            return int(cursor.fetchone()[0])  # type: ignore[index]
    finally:
        connection.close()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A Postgres that the test may stop."""
    with Postgres(tmp_path / "postgres", durable=False) as server:
        yield server


def test_without_redis_everything_is_right_and_slower(
    start_relay: Callable[..., Relay], postgres_url: str, api_key: NewApiKey
) -> None:
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    with relay.client(api_key.token) as client:
        for _ in range(3):
            assert send(client)[0] == 250
    assert count(postgres_url) == 3


def test_with_a_redis_that_hangs_a_mail_is_not_late(
    start_relay: Callable[..., Relay], postgres_url: str, api_key: NewApiKey
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with relay.client(api_key.token) as client:
            for _ in range(20):
                assert send(client)[0] == 250
        # 20 mails that each waited out a client library's usual 5 s and more would take minutes.
        assert time.monotonic() - began < 20
    assert count(postgres_url) == 20


def test_postgres_away_is_4xx_and_passes(
    start_relay: Callable[..., Relay], own_postgres: Postgres, redis_url: str
) -> None:
    url = create_database(own_postgres.url(), "relay")
    apply_schema(url)
    key = create_api_key(url)
    relay = start_relay(DATABASE_URL=url, REDIS_URL=redis_url)
    with relay.client(key.token) as client:
        assert send(client)[0] == 250
        own_postgres.stop()
        began = time.monotonic()
        code, text = send(client)
        assert (code, text[:5]) == (451, b"4.3.0")
        assert time.monotonic() - began < 8
        with relay.client() as stranger, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            stranger.login("user", "os_live_unknown")
        assert refused.value.smtp_code == 454
        own_postgres.start()
        until = time.monotonic() + 15
        while (answer := send(client))[0] != 250:
            assert answer[0] == 451
            assert time.monotonic() < until, relay.log
            time.sleep(0.2)
    assert count(url) == 2


def test_a_postgres_that_hangs_is_4xx_and_at_most_one_row(
    start_relay: Callable[..., Relay], own_postgres: Postgres, redis_url: str
) -> None:
    url = create_database(own_postgres.url(), "relay")
    apply_schema(url)
    key = create_api_key(url)
    relay = start_relay(DATABASE_URL=url, REDIS_URL=redis_url)
    mail = MAIL.replace(b"Subject", b"Message-ID: <once@example.com>\r\nSubject")
    with relay.client(key.token) as client:
        assert send(client)[0] == 250
        with frozen(own_postgres):
            code, text = send(client, mail)
            assert (code, text[:5]) == (451, b"4.3.0")
        until = time.monotonic() + 40
        while (answer := send(client, mail))[0] != 250:
            assert answer[0] == 451
            assert time.monotonic() < until, relay.log
            time.sleep(0.2)
    assert count(url) == 2


def test_jobs_are_published_as_the_contract_says(
    start_relay: Callable[..., Relay],
    postgres_url: str,
    redis_url: str,
    sqs: Sqs,
    fifo_queue_url: str,
    api_key: NewApiKey,
) -> None:
    relay = start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=redis_url,
        BACKGROUND_JOBS_QUEUE_URL=fifo_queue_url,
        **sqs.client_environment,
    )
    with relay.client(api_key.token) as client:
        email_id = send(client)[1].decode().rpartition(" ")[2]
    (job,) = receive(sqs, fifo_queue_url, 1)
    body = json.loads(job["Body"])
    assert (body["id"], body["type"], body["source"], body["emailId"]) == (
        f"email.send:{email_id}",
        "email.send",
        "api",
        email_id,
    )
    attributes = {name: value["StringValue"] for name, value in job["MessageAttributes"].items()}
    assert attributes == {
        "jobId": body["id"],
        "jobType": "email.send",
        "source": "api",
        "correlationId": body["trace"]["correlationId"],
        "traceparent": body["trace"]["traceparent"],
    }
    assert job["Attributes"]["MessageGroupId"] == "email.send"
    assert job["Attributes"]["MessageDeduplicationId"] == body["id"]


def test_without_sqs_mail_is_accepted_and_its_jobs_follow(
    start_relay: Callable[..., Relay],
    postgres_url: str,
    redis_url: str,
    sqs: Sqs,
    queue_url: str,
    api_key: NewApiKey,
) -> None:
    relay = start_relay(
        DATABASE_URL=postgres_url, REDIS_URL=redis_url, BACKGROUND_JOBS_QUEUE_URL=queue_url, **sqs.client_environment
    )
    with frozen(sqs), relay.client(api_key.token) as client:
        ids = {send(client)[1].decode().rpartition(" ")[2] for _ in range(15)}
    assert {json.loads(job["Body"])["emailId"] for job in receive(sqs, queue_url, 15)} == ids


def receive(sqs: Sqs, queue_url: str, at_least: int) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    client = sqs.client()
    until = time.monotonic() + 60
    while len(jobs) < at_least and time.monotonic() < until:
        answer = client.receive_message(
            QueueUrl=queue_url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=1,
            MessageAttributeNames=["All"],
            AttributeNames=["All"],
        )
        jobs += answer.get("Messages", [])
    assert len(jobs) >= at_least
    return jobs


def test_a_connection_cut_at_any_point_leaves_no_half_of_a_mail(
    relay: Relay, postgres_url: str, api_key: NewApiKey
) -> None:
    """The same dialogue, ended after each of its octets in turn (every seventh, to keep it short)."""
    dialogue = (
        b"EHLO c.example\r\nAUTH PLAIN " + plain(api_key.token).encode() + b"\r\nMAIL FROM:<ann@example.com>\r\n"
        b"RCPT TO:<to@x.example>\r\nDATA\r\n" + MAIL + b".\r\n"
    )
    accepted = 0
    for end in [*range(1, len(dialogue), 7), len(dialogue) - 1, len(dialogue)]:
        with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as client:
            client.sendall(dialogue[:end])
            say_no_more(client)
            answers = read_to_end(client)
        accepted += answers.count(b"queued as")
    assert accepted == 1
    assert count(postgres_url) == 1
