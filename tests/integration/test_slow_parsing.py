"""Messages that take too long to parse: their clients wait, and no other does."""

from __future__ import annotations

import json
import smtplib
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.mail.unread import NOTE
from scripts.database import NewApiKey
from tests.integration.test_bulk import wait_for
from tests.support.relay_process import Relay, processes_of

Query = Callable[..., list[dict[str, Any]]]


class SlowRelay(Relay):
    """The relay with a parser that takes as long as a message asks for."""

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-m", "tests.support.slow_service"]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that say so."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def slow_relay(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[SlowRelay]:
    relay = SlowRelay(
        tmp_path / "relay",
        {
            "DATABASE_URL": postgres_url,
            "REDIS_URL": redis_url,
            "SMTP_RELAY_DRAIN_SECONDS": "5",
            "SMTP_RELAY_SPOOL_THRESHOLD_BYTES": "50000",
            "SLOW_CHILD_SECONDS": "1.5",
        },
    )
    relay.start()
    yield relay
    relay.stop()


def mail(subject: str, burn: str = "", *, size: int = 100, extra: str = "") -> bytes:
    header = f"From: ann@example.com\r\nTo: to@x.example\r\nSubject: {subject}\r\nMessage-ID: <{subject}@x.example>\r\n"
    header += f"X-Burn: {burn}\r\n" if burn else ""
    return (header + extra + "\r\n" + "Words.\r\n" * (size // 8)).encode()


def send(client: smtplib.SMTP, message: bytes) -> int:
    assert client.mail("ann@example.com")[0] == 250
    assert client.rcpt("to@x.example")[0] == 250
    return client.data(message)[0]


@pytest.mark.parametrize("where", ["steps", "library"])
def test_what_a_worker_gives_up_is_parsed_in_a_child(
    slow_relay: SlowRelay, api_key: NewApiKey, query: Query, where: str
) -> None:
    """A call that looks at no signal is given up when it returns."""
    burn = "0.8" if where == "steps" else "0.0001"
    with slow_relay.client(api_key.token) as client:
        assert send(client, mail("slow", f"steps {burn}" if where == "steps" else "steps 0.8")) == 250
        assert send(client, mail("quick")) == 250
    assert [row["text"] for row in query("SELECT text FROM emails WHERE subject = 'slow'")] == ["Words.\n" * 12]
    (given_up,) = slow_relay.events("parse_left_to_child")
    assert given_up["key_kept_out"] is False


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("where", ["steps", "library"])
def test_a_message_that_ends_its_child_is_451_once_and_then_an_attachment(
    slow_relay: SlowRelay, api_key: NewApiKey, query: Query, where: str, size: int
) -> None:
    """`library` goes to a child at once: in a worker nothing could end it."""
    if where == "library" and size < 50_000:
        pytest.skip("the master ends a worker that is stuck in a library")
    message = mail("stuck", f"{where} 60", size=size, extra="Bcc: secret@y.example\r\nContent-Type: text/plain\r\n")
    with slow_relay.client(api_key.token) as client:
        assert send(client, message) == 451
        assert send(client, mail("other", size=size)) == 250
        assert send(client, message) == 250
        assert send(client, message) == 250
    (row,) = query("SELECT text, html, bcc, attachments FROM emails WHERE subject = 'stuck'")
    assert (row["text"], row["html"], row["bcc"]) == (NOTE, "", ["secret@y.example"])
    (attachment,) = row["attachments"]
    assert (attachment["filename"], attachment["content_type"]) == ("message.eml", "message/rfc822")
    octets = b64decode(attachment["content"])
    assert octets == b"Content-Type: text/plain\r\n\r\n" + message.partition(b"\r\n\r\n")[2]
    assert b"secret" not in octets
    assert {line["signal"] for line in slow_relay.events("large_lane_child_died")} == {"SIGPROF"}


def test_a_message_whose_header_is_the_trouble_is_refused_in_the_end(
    slow_relay: SlowRelay, api_key: NewApiKey, query: Query
) -> None:
    message = mail("stuck", "header 60")
    with slow_relay.client(api_key.token) as client:
        assert [send(client, message) for _ in range(4)] == [451, 451, 554, 554]
        assert send(client, mail("stuck", "header 0.1")) == 250
    assert len(query("SELECT 1 FROM emails")) == 1


def test_a_child_that_is_ended_delays_no_other_message(slow_relay: SlowRelay, api_key: NewApiKey, query: Query) -> None:
    codes: list[int] = []

    def stuck() -> None:
        with slow_relay.client(api_key.token) as client:
            codes.append(send(client, mail("stuck", "library 60", size=200_000)))

    threads = [threading.Thread(target=stuck) for _ in range(2)]
    for thread in threads:
        thread.start()
    with slow_relay.client(api_key.token) as client:
        accepted = 0
        while any(thread.is_alive() for thread in threads):
            assert send(client, mail(f"large-{accepted}", size=200_000)) == 250
            assert send(client, mail(f"small-{accepted}")) == 250
            accepted += 1
    assert codes == [451, 451]
    assert accepted > 0
    assert len(query("SELECT 1 FROM emails")) == 2 * accepted
    wait_for(lambda: not processes_of(slow_relay, "relay-parse"), "the children end")


def test_a_key_that_overruns_again_and_again_is_kept_out_of_the_worker(
    slow_relay: SlowRelay, api_key: NewApiKey, make_api_key: Callable[..., NewApiKey]
) -> None:
    other = make_api_key()
    with slow_relay.client(api_key.token) as client, slow_relay.client(other.token) as bystander:
        assert [send(client, mail(f"slow-{number}", "steps 0.6")) for number in range(5)] == [250] * 5
        assert send(bystander, mail("slow", "steps 0.6")) == 250
    given_up = slow_relay.events("parse_left_to_child")
    assert [line["key_kept_out"] for line in given_up] == [False, False, True, False]


def test_a_user_whose_messages_end_their_children_leaves_room_for_others(
    tmp_path: Path, postgres_url: str, redis_url: str, make_api_key: Callable[..., NewApiKey]
) -> None:
    """One child at a time, and eight messages wait when the other user's comes: it is not the ninth."""
    attacker, bystander = make_api_key(user_id="attacker"), make_api_key(user_id="bystander")
    relay = SlowRelay(
        tmp_path / "relay",
        {
            "DATABASE_URL": postgres_url,
            "REDIS_URL": redis_url,
            "SMTP_RELAY_DRAIN_SECONDS": "5",
            "SMTP_RELAY_SPOOL_THRESHOLD_BYTES": "50000",
            "SMTP_RELAY_MEMORY_BUDGET_BYTES": "20000000",
            "SLOW_CHILD_SECONDS": "0.5",
        },
    )
    relay.start()
    codes: list[int] = []
    ready = threading.Barrier(9)

    def stuck(number: int) -> None:
        with relay.client(attacker.token) as client:
            message = mail(f"stuck-{number}", "steps 60", size=200_000)
            assert client.mail("ann@example.com")[0] == 250
            assert client.rcpt("to@x.example")[0] == 250
            ready.wait()
            codes.append(client.data(message)[0])

    threads = [threading.Thread(target=stuck, args=(number,)) for number in range(8)]
    try:
        for thread in threads:
            thread.start()
        with relay.client(bystander.token) as client:
            ready.wait()
            while not processes_of(relay, "relay-parse"):
                pass
            assert send(client, mail("large", size=200_000)) == 250
            answered = len(codes)
        for thread in threads:
            thread.join()
    finally:
        relay.stop()
    assert codes == [451] * 8
    assert answered < 8
