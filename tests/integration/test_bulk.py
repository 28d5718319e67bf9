"""The lane for large messages: a child for each, a bounded number of them, and what if something dies."""

from __future__ import annotations

import os
import shutil
import signal
import smtplib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.database import NewApiKey
from scripts.services import processes
from tests.support.relay_process import Relay, processes_of

Query = Callable[..., list[dict[str, Any]]]

LARGE = b"From: ann@example.com\r\nTo: to@x.example\r\nSubject: Large\r\n\r\n" + (b"z" * 70 + b"\r\n") * 5_000


@pytest.fixture
def relay(start_relay: Callable[..., Relay], postgres_url: str, redis_url: str) -> Relay:
    """Room for two large messages at a time, and for half of a third."""
    return start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=redis_url,
        SMTP_RELAY_SPOOL_THRESHOLD_BYTES="50000",
        SMTP_RELAY_MEMORY_BUDGET_BYTES="34000000",
    )


def send(client: smtplib.SMTP) -> tuple[int, bytes]:
    assert client.mail("ann@example.com")[0] == 250
    assert client.rcpt("to@x.example")[0] == 250
    return client.data(LARGE)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_more_at_a_time_than_there_is_memory_for_are_all_accepted(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    codes = []
    at_once = 0
    done = threading.Event()

    def client() -> None:
        with relay.client(api_key.token) as connection:
            codes.extend(send(connection)[0] for _ in range(3))

    def watch() -> None:
        nonlocal at_once
        while not done.is_set():
            at_once = max(at_once, len(processes_of(relay, "relay-parse")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    clients = [threading.Thread(target=client) for _ in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    done.set()
    watcher.join()
    assert codes == [250] * 24
    assert len(query("SELECT 1 FROM emails")) == 24
    # A child that has answered may take a moment to end.
    assert at_once <= 4
    assert len(processes_of(relay)) == 2


def test_a_child_that_stored_its_message_takes_the_next_one(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    seen = set()
    with relay.client(api_key.token) as client:
        for _ in range(5):
            assert send(client)[0] == 250
            (child,) = processes_of(relay, "relay-parse")
            seen.add(child.pid)
    assert len(seen) == 1
    assert len(query("SELECT 1 FROM emails")) == 5
    wait_for(lambda: not processes_of(relay, "relay-parse"), "it ends when no other message comes")


def test_a_child_that_refused_its_message_takes_no_other(relay: Relay, api_key: NewApiKey) -> None:
    with relay.client(api_key.token) as client:
        assert send(client)[0] == 250
        (first,) = processes_of(relay, "relay-parse")
        client.mail("ann@example.com")
        client.rcpt("to@x.example")
        assert client.data(LARGE.replace(b"From:", b"X-From:"))[0] == 550
        # At once: a free child would have ended by itself after a while.
        assert send(client)[0] == 250
        assert {child.pid for child in processes_of(relay, "relay-parse")} - {first.pid}


def test_a_free_child_that_dies_is_replaced_without_a_word_to_the_client(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    with relay.client(api_key.token) as client:
        for _ in range(4):
            assert send(client)[0] == 250
            (child,) = processes_of(relay, "relay-parse")
            processes.kill([child])
            wait_for(lambda child=child: processes.ended(child), "it is dead")  # type: ignore[misc]
        assert send(client)[0] == 250
    assert len(query("SELECT 1 FROM emails")) == 5


def test_when_a_child_dies_only_its_client_gets_451(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    (parent, _) = processes_of(relay)
    with relay.client(api_key.token) as client:
        assert send(client)[0] == 250
        wait_for(lambda: not processes_of(relay, "relay-parse"), "the child ends")
        parent.send_signal(signal.SIGSTOP)
        answers: list[tuple[int, bytes]] = []
        sender = threading.Thread(target=lambda: answers.append(send(client)))
        sender.start()
        time.sleep(0.3)
        assert answers == [], "nobody is there to store it"
        # The child is stopped as soon as there is one.
        stopped: list[psutil.Process] = []
        parent.send_signal(signal.SIGCONT)
        end = time.monotonic() + 20
        while not stopped and sender.is_alive() and time.monotonic() < end:
            stopped = processes_of(relay, "relay-parse")
            processes.kill(stopped)
        sender.join()
        assert answers[0][0] == 451
        assert send(client)[0] == 250
    assert processes_of(relay)[0].pid == parent.pid
    assert len(query("SELECT 1 FROM emails")) >= 2


def test_when_the_process_dies_its_successor_takes_over_again_and_again(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    seen = set()
    worker = psutil.Process(processes_of(relay)[0].ppid())
    with relay.client(api_key.token) as client:
        for _ in range(4):
            assert send(client)[0] == 250
            family = processes.named("relay-large", processes.in_group(os.getpgid(worker.pid)))
            assert len(family) == 2
            serving = min(family, key=lambda process: process.create_time())
            assert serving.pid not in seen
            seen.add(serving.pid)
            processes.kill([serving])
            wait_for(lambda process=serving: processes.ended(process), "it is dead")  # type: ignore[misc]
        assert send(client)[0] == 250
    assert len(query("SELECT 1 FROM emails")) == 5


def test_a_worker_without_any_is_replaced(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    # It answers before the successor is there, which would take the place of the first.
    wait_for(lambda: len(processes_of(relay)) == 2, "there is a successor")
    family = processes_of(relay)
    worker = psutil.Process(family[0].ppid())
    processes.kill(family)
    client = relay.client(api_key.token)
    assert send(client)[0] in (451, 421)
    client.close()
    wait_for(lambda: processes.ended(worker), "the worker ends")
    wait_for(lambda: len(processes_of(relay)) == 2 and relay.answers(), "there is another worker")
    with relay.client(api_key.token) as client:
        assert send(client)[0] == 250
    assert len(query("SELECT 1 FROM emails")) == 1


def test_it_ends_with_the_relay(relay: Relay, api_key: NewApiKey) -> None:
    with relay.client(api_key.token) as client:
        assert send(client)[0] == 250
    family = processes_of(relay)
    relay.stop()
    for process in family:
        process.wait(5)


def test_it_ends_with_its_worker_and_keeps_no_client_and_no_port(relay: Relay, api_key: NewApiKey) -> None:
    with relay.client(api_key.token) as client:
        assert send(client)[0] == 250
        for process in processes_of(relay):
            assert process.net_connections("inet") == []
            # A hub would be shared by all children that are forked.
            open_files = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            assert not any("eventpoll" in name for name in open_files)
        family = processes_of(relay)
        psutil.Process(family[0].ppid()).kill()
        for process in family:
            process.wait(5)


class CopiedRelay(Relay):
    """The relay from a folder of the test's own."""

    def working_directory(self) -> Path:
        """See Server."""
        return self.directory / "copy"

    def environment(self) -> dict[str, str]:
        """See Server."""
        return {**super().environment(), "PYTHONPATH": ""}

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-m", "relay"]


def test_code_that_changes_under_a_running_service_is_not_loaded(
    tmp_path: Path, postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query
) -> None:
    root = Path(__file__).resolve().parents[2]
    settings = {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "SMTP_RELAY_SPOOL_THRESHOLD_BYTES": "50000",
        "SMTP_RELAY_DRAIN_SECONDS": "5",
    }
    relay = CopiedRelay(tmp_path / "relay", settings)
    for name in ("relay", "config"):
        shutil.copytree(root / name, relay.working_directory() / name)
    relay.start()
    try:
        for path in relay.working_directory().rglob("*.py"):
            path.write_text("raise SystemExit('another version')\n")
        for path in relay.working_directory().rglob("*.pyc"):
            path.unlink()
        with relay.client(api_key.token) as client:
            for _ in range(2):
                assert send(client)[0] == 250
            processes.kill(processes_of(relay)[:1])
            assert [send(client)[0] for _ in range(3)][-1] == 250
    finally:
        relay.stop()
    assert len(query("SELECT 1 FROM emails")) >= 4
