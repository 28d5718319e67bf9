"""The lane for large messages: a process of its own, a bounded number of messages in it, and what if it dies."""

from __future__ import annotations

import signal
import smtplib
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from scripts.database import NewApiKey
from tests.integration.relay_process import Relay

Query = Callable[..., list[dict[str, Any]]]

LARGE = b"From: ann@example.com\r\nTo: to@x.example\r\nSubject: Large\r\n\r\n" + (b"z" * 70 + b"\r\n") * 5_000


@pytest.fixture
def relay(start_relay: Callable[..., Relay], postgres_url: str, redis_url: str) -> Relay:
    """Room for two large messages at a time, and for half of a third."""
    return start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=redis_url,
        SMTP_RELAY_SPOOL_THRESHOLD_BYTES="50000",
        SMTP_RELAY_MEMORY_BUDGET_BYTES="5400000",
    )


def send(client: smtplib.SMTP) -> tuple[int, bytes]:
    assert client.mail("ann@example.com")[0] == 250
    assert client.rcpt("to@x.example")[0] == 250
    return client.data(LARGE)


def bulk_processes(relay: Relay) -> list[psutil.Process]:
    family = psutil.Process(relay.pid).children(recursive=True)
    return [process for process in family if "relay.process.bulk" in process.cmdline()]


def test_more_at_a_time_than_there_is_memory_for_are_all_accepted(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    codes = []

    def client() -> None:
        with relay.client(api_key.token) as connection:
            codes.extend(send(connection)[0] for _ in range(3))

    clients = [threading.Thread(target=client) for _ in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert codes == [250] * 24
    assert len(query("SELECT 1 FROM emails")) == 24
    assert len(bulk_processes(relay)) == 1


def test_when_its_process_dies_clients_hear_451_and_the_next_message_has_a_new_one(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    with relay.client(api_key.token) as client:
        assert send(client)[0] == 250
        (process,) = bulk_processes(relay)
        process.send_signal(signal.SIGSTOP)
        answers: list[tuple[int, bytes]] = []
        sender = threading.Thread(target=lambda: answers.append(send(client)))
        sender.start()
        time.sleep(0.5)
        assert answers == [], "nobody is there to store it"
        process.kill()
        sender.join()
        assert answers == [(451, b"4.3.0 Temporary failure, try again later")]
        assert send(client)[0] == 250
    assert len(query("SELECT 1 FROM emails")) == 2


def test_it_ends_with_the_relay(relay: Relay, api_key: NewApiKey) -> None:
    with relay.client(api_key.token) as client:
        assert send(client)[0] == 250
    (process,) = bulk_processes(relay)
    relay.stop()
    process.wait(5)
