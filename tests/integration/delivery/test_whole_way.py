"""From the SMTP dialogue to the octets at the double of SES: both programs, with a queue and without one."""

from __future__ import annotations

import email
import email.policy
import os
import signal
import smtplib
import ssl
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from relay.core import metrics
from relay.mail import parse
from scripts.database import NewApiKey
from scripts.services import Ses, Sqs, free_port
from tests.support.relay_fixtures import start_relay  # noqa: F401 - a fixture
from tests.support.relay_process import Relay

ROOT = Path(__file__).resolve().parents[3]
Query = Callable[..., list[tuple[object, ...]]]


class Worker:
    """A running `python -m relay.delivery`."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.port = free_port()
        self.log = folder / "delivery.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay.delivery"],
                cwd=folder,
                env=kept | {"PYTHONPATH": str(ROOT), "SMTP_RELAY_DELIVERY_METRICS_PORT": str(self.port), **settings},
                stdout=log,
                stderr=log,
            )

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(**settings: str) -> Worker:
        started.append(Worker(tmp_path, settings))
        return started[-1]

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.stop()


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


def two_parts_and_an_attachment() -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Änne Müller <ann@example.com>"
    message["To"] = "Jörg <to@x.example>"
    message["Cc"] = "cc@x.example"
    message["Subject"] = "Grüße aus Köln – 100 %"
    message["Message-ID"] = f"<{uuid.uuid4()}@example.com>"
    message["X-Ticket"] = "42"
    message.set_content("Guten Tag,\n\n.\nein Punkt allein, und ein ü.\n")
    message.add_alternative('<p>Guten Tag, <a href="https://x.example/?a=1&amp;b=2">ü</a></p>\n', subtype="html")
    message.add_attachment(bytes(range(256)), maintype="application", subtype="pdf", filename="Übersicht März.pdf")
    return message


@pytest.mark.parametrize("queue", [None, "", ".fifo"])
def test_a_mail_with_two_parts_and_an_umlaut_in_a_file_name(
    start_relay: Callable[..., Relay],  # noqa: F811
    start_worker: Callable[..., Worker],
    make_api_key: Callable[..., NewApiKey],
    postgres_url: str,
    redis_url: str,
    ses: Ses,
    sqs: Sqs,
    query: Query,
    queue: str | None,
) -> None:
    jobs = {}
    if queue is not None:
        jobs = sqs.client_environment | {"BACKGROUND_JOBS_QUEUE_URL": sqs.create_queue(f"q{uuid.uuid4().hex}{queue}")}
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, **jobs)
    worker = start_worker(DATABASE_URL=postgres_url, **(jobs | ses.client_environment))
    with smtplib.SMTP(relay.host, relay.port, "localhost", timeout=60) as client:
        if client.has_extn("starttls"):
            client.starttls(context=ssl._create_unverified_context())
        client.login("opensend", make_api_key().token)
        client.send_message(two_parts_and_an_attachment(), to_addrs=["to@x.example", "cc@x.example", "bcc@x.example"])
    until(lambda: query("SELECT status FROM emails") == [("sent",)])
    (taken,) = ses.taken()
    assert taken.request["Destination"] == {
        "ToAddresses": ["to@x.example"],
        "CcAddresses": ["cc@x.example"],
        "BccAddresses": ["bcc@x.example"],
    }

    # The octets, as they are.
    assert taken.octets.isascii()
    assert b"bcc@x.example" not in taken.octets
    assert max(map(len, taken.octets.split(b"\r\n"))) <= 76
    assert b"\n" not in taken.octets.replace(b"\r\n", b"")
    assert f"X-Entity-ID: {taken.email_id}\r\n".encode() in taken.octets

    # Read by the relay's parser.
    read = parse(taken.octets)
    assert (read.subject, read.to, read.cc) == ("Grüße aus Köln – 100 %", ("to@x.example",), ("cc@x.example",))
    assert read.text == "Guten Tag,\n\n.\nein Punkt allein, und ein ü.\n"
    assert read.html == '<p>Guten Tag, <a href="https://x.example/?a=1&amp;b=2">ü</a></p>\n'
    assert [attachment.filename for attachment in read.attachments] == ["Übersicht März.pdf"]

    # And by the standard library's.
    message = email.message_from_bytes(taken.octets, policy=email.policy.default)
    assert message["From"].addresses[0].display_name == "Änne Müller"
    assert message["X-Ticket"] == "42"
    (attachment,) = message.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content()) == ("Übersicht März.pdf", bytes(range(256)))

    shown = worker.metrics()
    for family in metrics.FAMILIES:
        if family.name.startswith("smtp_relay_deliver"):
            assert f"# TYPE {family.name}" in shown
    assert 'smtp_relay_deliveries_total{outcome="sent"} 1.0' in shown
    assert 'smtp_relay_deliveries_total{outcome="failed"} 0.0' in shown
    assert 'smtp_relay_delivery_failures_total{kind="throttled"} 0.0' in shown
    assert 'smtp_relay_delivery_claim_seconds_bucket{le="+Inf"}' in shown
    worker.stop()
    log = worker.log.read_text()
    assert "Traceback" not in log
    assert "x.example" not in log


def test_a_backlog_and_a_region_that_rests_show_in_the_metrics(
    start_worker: Callable[..., Worker], add_email: Callable[..., str], postgres_url: str, ses: Ses
) -> None:
    ses.answer(*[{"status": 400, "code": "SendingPausedException"}] * 10)
    add_email(created_at="2020-01-01T00:00:00Z")
    worker = start_worker(DATABASE_URL=postgres_url, **ses.client_environment)

    def shows(line: str) -> bool:
        try:
            return line in worker.metrics()
        except OSError:
            return False

    until(lambda: shows("smtp_relay_delivery_paused_regions 1.0"))
    assert 'smtp_relay_delivery_failures_total{kind="paused"}' in worker.metrics()
    until(lambda: shows("smtp_relay_delivery_in_flight 0.0"))  # once the mail has been put back
