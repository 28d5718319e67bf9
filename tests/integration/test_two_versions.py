"""The last release beside this one, on one Redis and one Postgres, under load: nothing lost, nothing doubled."""

from __future__ import annotations

import itertools
import random
import smtplib
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from scripts.database import NewApiKey
from tests.support.relay_process import Relay
from tests.support.releases import NoSuchCommit, unpack

#: The commit that the last release was made of.
LAST_RELEASE = "c6302a8"
#: Messages a pattern of sending, and clients at a time.
MESSAGES, CLIENTS = 60, 8


class OtherRelease(Relay):
    """The relay of another commit, by this one's interpreter and libraries."""

    def __init__(self, tree: Path, directory: Path, settings: Mapping[str, str | None]) -> None:
        super().__init__(directory, {"PYTHONPATH": str(tree), **settings})
        self._tree = tree

    def working_directory(self) -> Path:
        """See Server."""
        return self._tree


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last release."""
    try:
        return unpack(LAST_RELEASE, tmp_path_factory.mktemp("last-release"))
    except NoSuchCommit as error:
        pytest.skip(f"NOT TESTED: {error}")


@pytest.fixture
def relays(last_release: Path, tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[list[Relay]]:
    """The last release, and this one."""
    settings = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "SMTP_RELAY_DRAIN_SECONDS": "5"}
    both: list[Relay] = [
        OtherRelease(last_release, tmp_path / "last", settings),
        Relay(tmp_path / "this", settings),
    ]
    for relay in both:
        relay.start()
    yield both
    for relay in both:
        relay.stop()


def content(number: int) -> tuple[bytes, list[str]]:
    """A message and its recipients: some have more than a row holds, some are known by an idempotency key alone."""
    people = [f"r{number}-{each}@x.example" for each in range(1 if number % 4 else 60)]
    known_by = f"X-OpenSend-Idempotency-Key: {number}" if number % 4 == 1 else f"Message-ID: <{number}@example.com>"
    lines = ["From: ann@example.com", known_by, f"Subject: {number}", "", "Hello", ""]
    return "\r\n".join(lines).encode(), people


def send(relay: Relay, token: str, message: bytes, people: list[str]) -> bool:
    """Whether it was answered by 250, once the passing refusals have passed."""
    for _ in range(20):
        with relay.client(token) as client:
            client.mail("ann@example.com")
            for address in people:
                client.rcpt(address)
            code, _ = client.data(message)
        if code == 250:
            return True
        assert code in (421, 451, 452)
    return False


def cut_off(relay: Relay, token: str, message: bytes, people: list[str]) -> None:
    """Sends it up to the final dot, and hangs up without a look at the answer."""
    client: smtplib.SMTP = relay.client(token)
    client.mail("ann@example.com")
    for address in people:
        client.rcpt(address)
    client.docmd("DATA")
    assert client.sock is not None
    client.sock.sendall(message + b".\r\n")
    client.sock.shutdown(socket.SHUT_RDWR)
    client.close()


def received(postgres_url: str) -> Counter[tuple[str, str]]:
    """How often each recipient gets each message."""
    connection = psycopg2.connect(postgres_url)
    with connection.cursor() as cursor:
        cursor.execute('SELECT subject, jsonb_array_elements_text("to" || cc || bcc) FROM emails')
        found: Counter[tuple[str, str]] = Counter(cursor.fetchall())
    connection.close()
    return found


Pattern = Callable[[list[Relay], str, int], Any]


def both_at_once(relays: list[Relay], token: str, number: int) -> None:
    message, people = content(number)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda relay: send(relay, token, message, people), relays))


def one_then_the_other(relays: list[Relay], token: str, number: int) -> None:
    message, people = content(number)
    for relay in relays:
        assert send(relay, token, message, people)


def cut_off_then_the_other(relays: list[Relay], token: str, number: int) -> None:
    message, people = content(number)
    cut_off(relays[0], token, message, people)
    assert send(relays[1], token, message, people)


def parts_to_both(relays: list[Relay], token: str, number: int) -> None:
    """As a mail server splits a message: recipients that overlap, in transactions to either."""
    message, people = content(number)
    for relay, part in zip(itertools.cycle(relays), (people[:40], people[20:], people), strict=False):
        if part:
            assert send(relay, token, message, part)


@pytest.mark.parametrize("pattern", [both_at_once, one_then_the_other, cut_off_then_the_other, parts_to_both])
def test_nothing_is_lost_and_nothing_doubled_between_two_versions(
    relays: list[Relay], api_key: NewApiKey, postgres_url: str, pattern: Pattern
) -> None:
    source = random.Random(20261127)
    orders = [relays if source.random() < 0.5 else relays[::-1] for _ in range(MESSAGES)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda number: pattern(orders[number], api_key.token, number), range(MESSAGES)))
    wanted = Counter((str(number), address) for number in range(MESSAGES) for address in content(number)[1])
    assert received(postgres_url) == wanted
