"""SMTP_RELAY_MAX_RECIPIENTS: header and envelope together, before Redis or Postgres hear of the message."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

from scripts.database import NewApiKey
from tests.support.relay_process import Relay

Query = Callable[..., list[dict[str, Any]]]
MOST = 20


@pytest.fixture
def relay(start_relay: Callable[..., Relay], postgres_url: str, redis_url: str) -> Relay:
    return start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, SMTP_RELAY_MAX_RECIPIENTS=str(MOST))


def people(count: int, start: int = 0) -> list[str]:
    return [f"p{number}@x.example" for number in range(start, start + count)]


def message(to: Sequence[str] = (), cc: Sequence[str] = (), bcc: Sequence[str] = ()) -> bytes:
    fields = {"To": to, "Cc": cc, "Bcc": bcc}
    lines = [f"{name}: " + ",\r\n ".join(addresses) for name, addresses in fields.items() if addresses]
    return "\r\n".join(["From: ann@example.com", "Message-ID: <m@example.com>", *lines, "", "Hello", ""]).encode()


def send(client: smtplib.SMTP, envelope: Sequence[str], content: bytes) -> tuple[int, str]:
    client.mail("ann@example.com")
    for address in envelope:
        assert client.rcpt(address)[0] == 250
    code, text = client.data(content)
    return code, text.decode()


def scripts_called(redis_url: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        statistics = client.info("commandstats")
        return sum(statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


TOO_MANY = {
    "in To": ([], people(MOST + 1), [], []),
    "in three fields": ([], people(7), people(7, 7), people(7, 14)),
    "in header and envelope": (people(1), people(MOST, 1), [], []),
    "in Bcc and envelope": (people(MOST), [], [], people(1, MOST)),
    "fifty thousand": (people(1), people(50_000), [], []),
}


@pytest.mark.parametrize("case", TOO_MANY)
def test_one_too_many_is_refused_before_anybody_is_asked(
    relay: Relay, api_key: NewApiKey, query: Query, redis_url: str, case: str
) -> None:
    envelope, to, cc, bcc = TOO_MANY[case]
    with relay.client(api_key.token) as client:
        before = scripts_called(redis_url)
        code, text = send(client, envelope or ["p0@x.example"], message(to, cc, bcc))
        said = re.fullmatch(
            r"5\.5\.3 Too many recipients: To, Cc, Bcc and RCPT name (\d+), a message may have 20", text
        )
        assert code == 550
        assert said is not None
        assert int(said[1]) == len({*(envelope or ["p0@x.example"]), *to, *cc, *bcc})
        assert scripts_called(redis_url) == before
        assert query("SELECT count(*) FROM emails") == [{"count": 0}]
        # The connection, and Redis for all clients, are as good as before.
        assert send(client, people(1), message(people(1)))[0] == 250
        code, text = send(client, people(1), message(people(1)))
        assert "already queued" in text


def test_as_many_as_may_be_are_taken_and_spellings_count_once(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    with relay.client(api_key.token) as client:
        spelled = [address.upper() for address in people(MOST)]
        assert send(client, people(MOST), message(spelled[:7], people(7, 7), people(MOST)))[0] == 250
    (row,) = query('SELECT "to" || cc || bcc AS everyone FROM emails')
    assert sorted(address.lower() for address in row["everyone"]) == sorted(people(MOST))


def test_one_too_many_at_rcpt_may_come_in_a_transaction_of_its_own(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    """RFC 5321 section 4.5.3.1.10: 452, and those before it are kept."""
    with relay.client(api_key.token) as client:
        client.mail("ann@example.com")
        answers = [client.rcpt(address) for address in people(MOST + 2)]
        assert [code for code, _ in answers] == [250] * MOST + [452] * 2
        assert answers[-1][1] == b"4.5.3 Too many recipients"
        assert client.rcpt("P0@X.example")[0] == 250, "who is among them already is none too many"
        assert client.data(message())[0] == 250
    (row,) = query("SELECT bcc FROM emails")
    assert row["bcc"] == people(MOST)


def test_the_header_does_not_count_where_the_envelope_decides(
    start_relay: Callable[..., Relay], postgres_url: str, api_key: NewApiKey
) -> None:
    relay = start_relay(
        DATABASE_URL=postgres_url, SMTP_RELAY_MAX_RECIPIENTS=str(MOST), SMTP_RELAY_RECIPIENTS="envelope"
    )
    with relay.client(api_key.token) as client:
        assert send(client, people(MOST), message(people(3 * MOST)))[0] == 250


def test_a_large_message_has_the_same_limit(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey
) -> None:
    """It goes through a separate process, which has to know the limit as well."""
    relay = start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=redis_url,
        SMTP_RELAY_MAX_RECIPIENTS=str(MOST),
        SMTP_RELAY_SPOOL_THRESHOLD_BYTES="1024",
    )
    with relay.client(api_key.token) as client:
        assert send(client, people(1), message(people(MOST + 1)) + b"x" * 3000 + b"\r\n")[0] == 550
        assert send(client, people(1), message(people(MOST)) + b"x" * 3000 + b"\r\n")[0] == 250
