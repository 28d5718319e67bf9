"""The delivery worker as a process: `python -m relay.delivery` with a queue and without one, to the double of SES."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.services import Ses, Sqs

ROOT = Path(__file__).resolve().parents[3]
Query = Callable[..., list[tuple[Any, ...]]]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(postgres_url: str, ses: Ses, tmp_path: Path) -> Iterator[Start]:
    """Starts a delivery worker; `settings` are environment variables. It is ended with SIGTERM, and must end well."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(**settings: str) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment = kept | ses.client_environment | {"DATABASE_URL": postgres_url, "PYTHONPATH": str(ROOT)} | settings
        path = tmp_path / f"delivery-{len(processes)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "relay.delivery"], cwd=tmp_path, env=environment, stdout=log, stderr=log
            )
        processes.append(process)
        until(lambda: "delivery_ready" in path.read_text())
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
    for log in tmp_path.glob("delivery-*.log"):
        text = log.read_text()
        assert "Traceback" not in text, text
        assert "x.example" not in text, text  # no address in a log line


@pytest.fixture
def queue(sqs: Sqs) -> Callable[[str], str]:
    return lambda suffix: sqs.create_queue(f"q{uuid.uuid4().hex}{suffix}")


def of_queue(sqs: Sqs, url: str) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL_SQS": sqs.endpoint, "AWS_REGION": sqs.region, "BACKGROUND_JOBS_QUEUE_URL": url}


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


def send(sqs: Sqs, url: str, body: str) -> None:
    more = {"MessageGroupId": "email.send", "MessageDeduplicationId": uuid.uuid4().hex} if url.endswith(".fifo") else {}
    sqs.client().send_message(QueueUrl=url, MessageBody=body, **more)


def job(email_id: str) -> str:
    return json.dumps({"id": f"email.send:{email_id}", "type": "email.send", "source": "api", "emailId": email_id})


def left(sqs: Sqs, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs.client().get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def test_without_a_queue_it_finds_rows_and_ends_well(
    start: Start, add_email: Callable[..., str], ses: Ses, query: Query
) -> None:
    ids = {add_email() for _ in range(10)}
    process = start(SMTP_RELAY_DELIVERY_PROCESSES="2")
    until(lambda: query("SELECT count(*) FROM emails WHERE status = 'sent'") == [(10,)])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert {taken.email_id for taken in ses.taken()} == ids
    assert len(ses.taken()) == 10


@pytest.mark.parametrize("suffix", ["", ".fifo"])
def test_jobs_of_the_queue_are_done_once_and_deleted(
    start: Start, add_email: Callable[..., str], ses: Ses, sqs: Sqs, queue: Callable[[str], str], suffix: str
) -> None:
    url = queue(suffix)
    ids = [add_email() for _ in range(5)]
    for body in ("no JSON", '{"type": "email.send", "emailId": "x"}', json.dumps({"type": "scheduled-email.scan"})):
        send(sqs, url, body)
    for email_id in (*ids, ids[0]):  # one comes twice
        send(sqs, url, job(email_id))
    start(**of_queue(sqs, url))
    until(lambda: len(ses.taken()) == 5)
    poison_waits = 0 if suffix else 2  # a queue that is not FIFO keeps it for its redrive policy
    until(lambda: left(sqs, url) == poison_waits)
    assert sorted(taken.email_id for taken in ses.taken()) == sorted(ids)


def test_a_crash_of_the_worker_loses_no_mail(
    start: Start, add_email: Callable[..., str], ses: Ses, query: Query
) -> None:
    """Killed with SIGKILL again and again, while it sends: what it had claimed comes back when its claim is old."""
    places, quick, crashes = 3, 6, 3  # one place more is kept from a user that has all others
    ids = {add_email() for _ in range(crashes * (quick + places) + 3)}
    ses.answer(*[*[{}] * quick, *[{"seconds": 60.0}] * places] * crashes)
    for number in range(crashes):
        process = start(SMTP_RELAY_DELIVERY_CONCURRENCY=str(places + 1))
        wanted = (crashes - 1 - number) * (quick + places)
        until(lambda wanted=wanted: ses.unused_answers() == wanted)  # type: ignore[misc]
        process.kill()
        process.wait()
    assert query("SELECT status, count(*) FROM emails GROUP BY 1 ORDER BY 1") == [
        ("processing", crashes * places),
        ("queued", 3),
        ("sent", crashes * quick),
    ]
    query("UPDATE emails SET provider_last_attempted_at = now() - interval '1 hour' WHERE status = 'processing'")
    start()
    until(lambda: query("SELECT count(*) FROM emails WHERE status = 'sent'") == [(len(ids),)], 90)
    assert {taken.email_id for taken in ses.taken()} == ids


def test_maildir_writes_files(start: Start, add_email: Callable[..., str], tmp_path: Path, query: Query) -> None:
    email_id = add_email(bcc=["hidden@y.example"])
    start(SMTP_RELAY_PROVIDER="maildir", SMTP_RELAY_MAILDIR=str(tmp_path / "mails"))
    until(lambda: query("SELECT status FROM emails") == [("sent",)])
    written = (tmp_path / "mails" / "new" / f"{email_id}.eml").read_bytes()
    assert written.startswith(b"X-Envelope-From: ann@example.com\r\nX-Envelope-To: to@x.example\r\n")
    assert b"X-Envelope-To: hidden@y.example\r\n" in written


def test_scans_find_what_no_job_comes_for(
    start: Start, add_email: Callable[..., str], ses: Ses, sqs: Sqs, queue: Callable[[str], str]
) -> None:
    """In queue mode: a due retry, a due scheduled row, a row whose job was lost, a claim whose worker died."""
    wanted = {
        add_email(provider_next_retry_at="2020-01-01T00:00:00Z", provider_retry_count=1),
        add_email(status="scheduled", scheduled_at="2020-01-01T00:00:00Z"),
        add_email(created_at="2020-01-01T00:00:00Z"),
        add_email(status="processing", provider_last_attempted_at="2020-01-01T00:00:00Z"),
    }
    spared = {
        add_email(),  # its job is on its way
        add_email(status="processing"),  # another program's claim has no time
        add_email(status="scheduled", scheduled_at="2099-01-01T00:00:00Z"),
        add_email(provider_next_retry_at="2099-01-01T00:00:00Z", created_at="2020-01-01T00:00:00Z"),
    }
    start(**of_queue(sqs, queue("")))
    until(lambda: {taken.email_id for taken in ses.taken()} >= wanted)
    assert not {taken.email_id for taken in ses.taken()} & spared


def test_trouble_of_the_account_pauses_all_and_uses_up_no_attempt(
    start: Start, add_email: Callable[..., str], ses: Ses, query: Query
) -> None:
    ses.answer(*[{"status": 429, "code": "TooManyRequestsException", "message": "slower"}] * 3)
    ids = {add_email() for _ in range(6)}
    start()
    until(lambda: query("SELECT count(*) FROM emails WHERE status = 'sent'") == [(6,)])
    assert {taken.email_id for taken in ses.taken()} == ids
    assert query("SELECT DISTINCT provider_retry_count FROM emails") == [(0,)]
    assert query("SELECT count(*) FROM email_events WHERE type <> 'sent'") == [(0,)]


def test_one_users_many_rows_do_not_keep_anothers_waiting(
    start: Start, add_email: Callable[..., str], ses: Ses, query: Query
) -> None:
    query(
        'INSERT INTO emails (id, "from", "to", subject, html, text, user_id, created_at)'
        " SELECT gen_random_uuid(), 'a@example.com', '[\"to@x.example\"]', 's', '', 't', 'many',"
        " now() - interval '1 hour' + n * interval '1 ms' FROM generate_series(1, 20000) AS n"
    )
    start(SMTP_RELAY_DELIVERY_CONCURRENCY="4")
    until(lambda: len(ses.taken()) > 0)
    mine = add_email(user_id="few")
    until(lambda: query("SELECT status FROM emails WHERE id = %s", mine) == [("sent",)])
    assert query("SELECT count(*) > 0 FROM emails WHERE status = 'queued'") == [(True,)]
    query("UPDATE emails SET status = 'canceled' WHERE status = 'queued'")


@pytest.mark.parametrize("suffix", ["", ".fifo", None])
def test_the_end_of_the_service_waits_for_a_mail_that_is_half_sent(
    start: Start,
    add_email: Callable[..., str],
    ses: Ses,
    sqs: Sqs,
    queue: Callable[[str], str],
    query: Query,
    suffix: str | None,
) -> None:
    """A mail that is cut off while the provider takes it would be sent once more."""
    settings = {}
    email_id = add_email()
    if suffix is not None:
        url = queue(suffix)
        settings = of_queue(sqs, url)
        send(sqs, url, job(email_id))
    ses.answer({"seconds": 3.0})
    process = start(**settings)
    until(lambda: ses.unused_answers() == 0)  # the call to the provider has come
    assert query("SELECT status FROM emails") == [("processing",)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert query("SELECT status FROM emails") == [("sent",)]
    assert [taken.email_id for taken in ses.taken()] == [email_id]
