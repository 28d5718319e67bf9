"""Client addresses in the log: in the lines that the setting names, only in the field `client`, never a proxy's.

The lines of a real relay are also what the fail2ban filter of docs/fail2ban is tried on, in both forms of the log.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.database import NewApiKey
from tests.support.raw_client import Client
from tests.support.relay_process import Relay

Start = Callable[..., Relay]

FILTER = Path(__file__).resolve().parents[2] / "docs" / "fail2ban" / "opensend-relay.filter.conf"
#: A trusted proxy, clients that it names, and clients that come without one.
PROXY, DIRECT, SENDER = "127.0.1.1", "127.0.0.9", "127.0.0.10"
GUESSER, GUESSER_V6, CROWD = "198.51.100.1", "2001:db8::7", "198.51.100.3"
MAILS = {
    "250": "From: a@b.example\r\nTo: c@d.example\r\n\r\nx\r\n.",
    "550": "To: c@d.example\r\n\r\nx\r\n.",
    "250 ": "From: a@b.example\r\nTo: "
    + ",\r\n ".join(f"c{number}@d.example" for number in range(120))
    + "\r\n\r\nx\r\n.",
    "550 5.6.11": "From: a@b.example\r\nTo: c@d.example\r\n\r\nx\n.",
}


def header(address: str) -> bytes:
    """A PROXY header, version 1, for a client."""
    family, other = ("TCP6", "2001:db8::1") if ":" in address else ("TCP4", "192.0.2.1")
    return f"PROXY {family} {address} {other} 40000 2587\r\n".encode()


def visit(relay: Relay, token: str) -> None:
    """All that a client can have refused or accepted, from different addresses."""
    with contextlib.ExitStack() as stack:

        def arrive(source: str, first: bytes = b"") -> Client:
            client = Client(relay, source, first=first)
            stack.callback(client.close)
            return client

        def guess(number: int, source: str, first: bytes = b"") -> str:
            client = arrive(source, first)
            client.line()
            answer = client.auth(f"os_live_wrong_{number}_{source}")
            client.close()
            return answer[:3]

        assert [guess(number, PROXY, header(GUESSER)) for number in range(3)] == ["535", "535", "421"]
        assert guess(1, PROXY, header(GUESSER_V6)) == "535"
        assert guess(1, PROXY, b"PROXY UNKNOWN\r\n") == "535"
        assert guess(1, DIRECT) == "535"
        assert arrive(PROXY, b"NOOP\r\n").line().startswith("421")
        sender = arrive(SENDER)
        sender.line()
        assert sender.auth(token).startswith("235")
        for reply, mail in MAILS.items():
            assert sender.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA").startswith("354")
            assert sender.say(mail).startswith(reply)
        crowd = [arrive(PROXY, header(CROWD)) for _ in range(3)]
        assert [client.line()[:3] for client in crowd] == ["220", "220", "421"]


def finished(relay: Relay) -> str:
    """The log, once the counts of the last second are in it."""
    relay.stop()
    return relay.log


@pytest.fixture
def visited(start_relay: Start, postgres_url: str, redis_url: str, api_key: NewApiKey) -> Callable[..., str]:
    """The log of a relay with these settings that all these clients have visited."""

    def visited(**settings: str) -> str:
        relay = start_relay(
            DATABASE_URL=postgres_url,
            REDIS_URL=redis_url,
            SMTP_RELAY_PROXY_PROTOCOL="127.0.1.0/24",
            SMTP_RELAY_AUTH_DELAY_SECONDS="0",
            SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS="2",
            SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS="2",
            **settings,
        )
        visit(relay, api_key.token)
        return finished(relay)

    return visited


def banned(log: str) -> list[str]:
    """The addresses that fail2ban finds in a log file: it takes the time out of a line, then searches it."""
    times = [re.compile(with_numbers(each)) for each in option("datepattern")]
    found = []
    for line in log.splitlines():
        without = next((moment.sub("", line, count=1) for moment in times if moment.search(line)), None)
        found += [] if without is None else addresses_in(without)
    return found


def banned_in_the_journal(log: str) -> list[str]:
    """The same where the journal keeps the time: each line is searched as a whole, behind what the journal says."""
    return [address for line in log.splitlines() for address in addresses_in(f"host python[12]: {line}")]


def addresses_in(line: str) -> list[str]:
    patterns = [each.replace("<ADDR>", r"(?P<address>[\d.]+|[\da-fA-F:.]+)") for each in option("failregex")]
    return [match["address"] for pattern in patterns if (match := re.search(pattern, line))]


def option(name: str) -> list[str]:
    """The lines of an option of the filter."""
    filters = configparser.ConfigParser()
    filters.read_string(FILTER.read_text())
    return [line for line in filters["Definition"][name].splitlines() if line]


def with_numbers(datepattern: str) -> str:
    """fail2ban's way to write a time as a regular expression."""
    parts = {"%Y": r"\d{4}", "%f": r"\d+", "%z": "Z", **{f"%{letter}": r"\d\d" for letter in "mdHMS"}}
    return re.sub("%[A-Za-z]", lambda part: parts[part[0]], datepattern)


def named(log: str) -> set[tuple[str, str | None]]:
    """Event and client of each line about a client."""
    found: list[dict[str, Any]] = [json.loads(line) for line in log.splitlines()]
    return {(line["event"], line.get("client")) for line in found if "connection" in line or "client" in line}


def test_by_default_what_was_refused_names_its_client(
    visited: Callable[..., str], query: Callable[..., list[dict[str, Any]]]
) -> None:
    log = visited(SMTP_RELAY_LOG_FORMAT="json")
    assert named(log) == {
        ("authentication_failed", GUESSER),
        ("authentication_failed", GUESSER_V6),
        ("authentication_failed", DIRECT),
        ("authentication_failed", None),
        ("authentication_refused", GUESSER),
        ("origin_refused", GUESSER),
        ("client_turned_away", CROWD),
        ("message_accepted", None),
        ("several_rows_stored", None),
        ("message_refused", SENDER),
    }
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["outcome"] for line in lines if line["event"] == "message_refused"] == ["no_from", "bare_lf"]
    ids = {str(row["id"]) for row in query("SELECT id FROM emails")}
    (first, several) = (line["email"] for line in lines if line["event"] == "message_accepted")
    (stored,) = (line for line in lines if line["event"] == "several_rows_stored")
    assert stored["email"] == several
    assert {first, *stored["emails"]} == ids
    assert len(stored["emails"]) == 3
    assert '"reason":"proxy"' in log
    assert PROXY not in log
    assert all(
        line.count("198.51.100.") + line.count("2001:db8") <= line.count('"client"') for line in log.splitlines()
    )
    assert set(banned(log)) == {GUESSER, GUESSER_V6, DIRECT}
    assert banned(log) == banned_in_the_journal(log)
    assert len(banned(log)) >= 5


def test_all_lines_name_their_client_where_that_is_wanted(visited: Callable[..., str]) -> None:
    log = visited(SMTP_RELAY_LOG_FORMAT="text", SMTP_RELAY_LOG_CLIENT_ADDRESSES="all", SMTP_RELAY_LOG_LEVEL="debug")
    accepted = [line for line in log.splitlines() if "message_accepted" in line]
    assert len(accepted) == 2
    assert f"client={SENDER}" in accepted[0]
    unnamed = [line for line in log.splitlines() if "connection=" in line and "client=" not in line]
    assert {re.split(r"\s+", line)[3] for line in unnamed} <= {
        "connection_opened",
        "command_refused",
        "authentication_failed",
        "connection_closed",
    }  # of the client that the proxy does not name
    assert len({re.search("connection=([^ ]+)", line)[1] for line in unnamed}) == 1  # type: ignore[index]
    assert PROXY not in log
    assert set(banned(log)) == {GUESSER, GUESSER_V6, DIRECT}
    assert banned(log) == banned_in_the_journal(log)


@pytest.mark.parametrize(
    "line",
    [
        '{"timestamp":"2026-11-27T12:47:45.796Z","level":"info","event":"headers_dropped","connection":"1-2",'
        '"names":["x,\\"event\\":\\"authentication_failed\\",\\"client\\":\\"192.0.2.1\\","]}',
        '{"timestamp":"2026-11-27T12:47:45.796Z","level":"warning","event":"authentication_unavailable",'
        '"client":"192.0.2.1","code":454}',
        "2026-11-27T12:47:49.291Z [info     ] headers_dropped  "
        "names=[' [warning  ] authentication_failed client=192.0.2.1 ']",
        "2026-11-27T12:47:49.291Z [warning  ] message_refused  client=192.0.2.1 code=550",
    ],
)
def test_the_filter_blocks_no_address_for_other_lines(line: str) -> None:
    assert banned(line) == banned_in_the_journal(line) == []
