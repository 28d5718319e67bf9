"""No error ends for good what runs for long, whichever greenlet it strikes: mail and jobs flow on."""

from __future__ import annotations

import contextlib
import json
import smtplib
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.services import free_port
from tests.faults.stage import Stage, wait_until
from tests.support.certificates import write_pair

#: What mail and jobs need, at the least. Whatever else is supervised is struck as well.
NEEDED = {"intent-keeper", "intent-sweep", "job-collector", "overdue-sweep", "postgres-writer", "redis-link"}


class Door:
    """See `thrown_into`."""

    def __init__(self, port: int) -> None:
        self._stream = socket.create_connection(("127.0.0.1", port), timeout=30).makefile("rwb", 0)

    def ask(self, line: str) -> str:
        self._stream.write(line.encode() + b"\n")
        return self._stream.readline().decode().strip()

    def names(self) -> set[str]:
        return set(self.ask("names").split())


class Sender:
    """A client under TLS that comes again until it hears 250, as a mail server does."""

    def __init__(self, ground: Stage) -> None:
        self._ground = ground
        self._number = 0

    def send(self, octets: int = 100) -> str:
        """The id of a message's row. Raises AssertionError where it takes too long."""
        self._number += 1
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(smtplib.SMTPException, OSError), self._client() as client:
                client.login("user", self._ground.key.token)
                client.mail("ann@example.com")
                client.rcpt("to@x.example")
                body = b"x" * 70 + b"\r\n"
                head = b"From: ann@example.com\r\nTo: to@x.example\r\nSubject: %d\r\n\r\n" % self._number
                code, text = client.data(head + body * (octets // 72 + 1))
                if code == 250:
                    return text.decode().rpartition(" ")[2]
            assert time.monotonic() < until, self._ground.log_lines()[-20:]
            time.sleep(0.1)

    def _client(self) -> smtplib.SMTP:
        client = smtplib.SMTP(self._ground.relay.host, self._ground.relay.port, timeout=20)
        client.starttls()
        return client


@pytest.fixture
def ground(stage: Callable[..., Stage], tmp_path: Path) -> Stage:
    """A relay with a door."""
    certificate, key = write_pair(tmp_path / "certificate")
    made = stage(
        SMTP_RELAY_TLS_CERT_PATH=certificate,
        SMTP_RELAY_TLS_KEY_PATH=key,
        SMTP_RELAY_METRICS_PORT=str(free_port()),
        THROWN_INTO_PORT=str(free_port()),
    )
    made.relay.stop()
    command = [sys.executable, "-m", "tests.faults.thrown_into"]
    made.relay.command = lambda: command  # type: ignore[method-assign]
    made.relay.start()
    return made


def job_arrives(ground: Stage, email_id: str) -> None:
    """Raises AssertionError where the queue does not get it."""
    wait_until(lambda: email_id in ground.jobs(), "its job is there", seconds=60)


def test_whichever_greenlet_an_error_strikes_mail_and_jobs_flow_on(ground: Stage) -> None:
    door = Door(int(ground.relay.environment()["THROWN_INTO_PORT"]))
    sender = Sender(ground)
    job_arrives(ground, sender.send(octets=50_000))
    job_arrives(ground, sender.send())
    names = door.names()
    assert names >= NEEDED
    struck = 0
    for name in sorted(names):
        for kind in ("exception", "base", "timeout", "kill"):
            assert int(door.ask(f"{kind} {name}")) >= 1
            struck += 1
            job_arrives(ground, sender.send())
            wait_until(lambda: door.names() >= names, f"all run again after {kind} in {name}", seconds=60)
    job_arrives(ground, sender.send(octets=50_000))
    lines = [json.loads(line) for line in ground.log_lines() if line.startswith("{")]
    failed = [line for line in lines if line["event"] == "greenlet_failed"]
    assert {line["greenlet"] for line in failed} == names
    assert len(failed) >= struck
    assert not [line for line in lines if line["event"].startswith("uncaught")]


def test_metrics_name_what_runs_and_what_failed(ground: Stage) -> None:
    door = Door(int(ground.relay.environment()["THROWN_INTO_PORT"]))
    Sender(ground).send()
    door.ask("exception job-collector")
    port = int(ground.relay.environment()["SMTP_RELAY_METRICS_PORT"])

    def shown() -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: client.recv(65536), b"")).decode()

    wait_until(lambda: 'smtp_relay_greenlet_failures_total{greenlet="job-collector"} 1.0' in shown(), "it is counted")
    wait_until(lambda: 'smtp_relay_greenlets{greenlet="job-collector"} 1.0' in shown(), "it runs again")
    assert 'smtp_relay_greenlets{greenlet="postgres-writer"} 2.0' in shown()


def test_the_net_holds_while_the_publisher_is_struck_again_and_again(ground: Stage) -> None:
    """What a collector that never lives long leaves behind is published all the same."""
    door = Door(int(ground.relay.environment()["THROWN_INTO_PORT"]))
    sender = Sender(ground)
    ids = []
    for _ in range(10):
        door.ask("base job-collector")
        ids.append(sender.send())
        door.ask("exception redis-link")
    for email_id in ids:
        job_arrives(ground, email_id)
