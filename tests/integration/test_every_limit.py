"""docs/limits.md, row by row: what is at a bound is taken, what is beyond hears the reply of its row, or is kept."""

from __future__ import annotations

import ast
import base64
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scripts.database import NewApiKey
from tests.support.raw_client import Client
from tests.support.relay_process import Relay, plain

ROOT = Path(__file__).resolve().parents[2]
Query = Callable[..., list[dict[str, Any]]]


class Row(NamedTuple):
    """One row of a table."""

    limit: str
    setting: str
    default: str
    reply: str

    @property
    def codes(self) -> list[str]:
        """The replies that it names, code and enhanced code."""
        return re.findall(r"\b\d{3} \d\.\d\.\d+\b", self.reply)


def rows() -> Iterator[Row]:
    """Of the tables of limits; the page has others."""
    page = (ROOT / "docs" / "limits.md").read_text()
    for table in re.findall(r"^\| limit \| setting \| default \| reply \|\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE):
        for line in table.splitlines():
            yield Row(*(cell.strip() for cell in line.strip("|").split("|")))


ROWS = {row.limit: row for row in rows()}

#: Rows whose bounds other tests (in tests/) go beyond: they take long, or a state that no client alone brings about.
ELSEWHERE = {
    "file descriptors": "integration/test_limits.py::test_without_a_descriptor_left_clients_get_421",
    "held in memory, all messages of a process together": (
        "unit/smtp/test_spool.py::test_all_messages_together_have_so_much_memory"
    ),
    "attachments after Base64": "unit/mail/test_reader.py::test_attachments_are_counted_after_base64_and_together",
    "CPU time to parse a message in a worker": (
        "integration/test_slow_parsing.py::test_what_a_worker_gives_up_is_parsed_in_a_child"
    ),
    "CPU time to parse a message elsewhere": (
        "integration/test_slow_parsing.py::test_a_message_that_ends_its_child_is_451_once_and_then_an_attachment"
    ),
    "messages of a key that took a worker too long": (
        "integration/test_slow_parsing.py::test_a_key_that_overruns_again_and_again_is_kept_out_of_the_worker"
    ),
    "time for a message that is parsed elsewhere": (
        "integration/test_slow_parsing.py::test_a_child_that_is_ended_delays_no_other_message"
    ),
    "messages of one user that are parsed elsewhere, or wait for memory, in one worker": (
        "integration/test_slow_parsing.py::test_a_user_whose_messages_end_their_children_leaves_room_for_others"
    ),
    "wait for room in the spool": "faults/test_room.py::test_a_full_spool_is_452_and_loses_nothing",
    "data beyond the size that is read to be refused": (
        "unit/smtp/test_session_trouble.py::test_data_beyond_all_limits_is_not_read_to_its_end"
    ),
    "time until the reply": (
        "unit/limits/test_attempts.py::test_each_failure_is_answered_later_than_the_one_before_up_to_a_bound"
    ),
    "for how long it is refused then": "unit/limits/test_attempts.py::test_who_was_good_there_before_gets_in",
    "TLS handshake": "faults/test_rude_clients.py::test_silence_on_the_tls_port_ends",
    "a pause in message data": "faults/test_slowloris.py::test_who_was_quick_in_message_data_may_not_pause_for_long",
    "message data, octets a second": "faults/test_slowloris.py::test_slow_clients_starve_no_other_and_are_sent_away",
    "a reply that the client does not read": "faults/test_rude_clients.py::test_a_client_that_never_reads_is_cut_off",
    "memory of messages that are parsed elsewhere, of one worker": (
        "integration/test_bulk.py::test_more_at_a_time_than_there_is_memory_for_are_all_accepted"
    ),
    "a worker that does not answer the master": (
        "integration/test_master_recovery.py::test_a_worker_that_computes_without_end_is_shown_and_replaced"
    ),
    "no worker serves": ("integration/test_master_recovery.py::test_clients_get_421_when_no_worker_is_left"),
    "the header of a proxy": "integration/test_limits.py::test_a_proxy_that_says_nothing_is_refused_in_time",
}


class Ground:
    """A relay with one bound set low, and clients to go beyond it."""

    def __init__(self, relay: Relay, token: str, query: Query, clients: ExitStack) -> None:
        self.relay = relay
        self.token = token
        self.query = query
        self._clients = clients

    def client(self, address: str = "127.0.0.1") -> Client:
        client = Client(self.relay, address)
        self._clients.callback(client.close)
        return client

    def greeted(self, address: str = "127.0.0.1") -> Client:
        client = self.client(address)
        assert client.reply().startswith("220")
        return client

    def logged_in(self) -> Client:
        client = self.greeted()
        assert client.auth(self.token).startswith("235")
        return client

    def send(self, client: Client, content: str) -> str:
        """One message to one recipient; the reply to it."""
        assert client.say("MAIL FROM:<a@example.com>", "RCPT TO:<to@x.example>", "DATA").startswith("354")
        client.socket.sendall(content.encode() + b"\r\n.\r\n")
        return client.reply()


#: What a row's bound is set to, and what goes up to it and beyond: it returns the last reply, and the client that
#: heard it.
Case = tuple[dict[str, str], Callable[[Ground], tuple[str, Client | None]]]
DRIVEN: dict[str, Case] = {}


def case(limit: str, **settings: str) -> Callable[[Callable[[Ground], tuple[str, Client | None]]], None]:
    def registered(function: Callable[[Ground], tuple[str, Client | None]]) -> None:
        DRIVEN[limit] = (settings, function)

    return registered


FROM = "From: ann@example.com\r\nMessage-ID: <m@example.com>\r\n"


@case("connections in all", SMTP_RELAY_MAX_CONNECTIONS="4")
def _(ground: Ground) -> tuple[str, Client | None]:
    return _filled(ground, 4)


@case("connections from one address", SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS="4")
def _(ground: Ground) -> tuple[str, Client | None]:
    return _filled(ground, 4)


def _filled(ground: Ground, count: int) -> tuple[str, Client]:
    """The check that found the relay ready may hold a place for a moment yet."""
    greeted = 0
    until = time.monotonic() + 20
    while greeted < count:
        assert time.monotonic() < until
        greeted += ground.client("127.0.0.2").reply().startswith("220")
    last = ground.client("127.0.0.2")
    return last.reply(), last


@case("messages of one connection", SMTP_RELAY_MAX_MESSAGES_PER_CONNECTION="2")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.logged_in()
    for _ in range(2):
        assert client.say("MAIL FROM:<a@example.com>", "RSET").startswith("250")
    return client.say("MAIL FROM:<a@example.com>"), client


@case("errors of one connection")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    assert {client.say("NONSENSE")[:3] for _ in range(20)} == {"500"}
    return client.say("NONSENSE"), client


@case("commands before AUTH", SMTP_RELAY_MAX_COMMANDS_BEFORE_AUTH="5")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    assert {client.say("NOOP")[:3] for _ in range(5)} == {"250"}
    return client.say("NOOP"), client


@case(
    "failed AUTHs of one connection",
    SMTP_RELAY_AUTH_DELAY_SECONDS="0",
    SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS="0",
)
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    for number in range(4):
        assert client.auth(f"wrong-{number}").startswith("535")
        assert client.say("NOOP").startswith("250")
    return client.auth("wrong-4"), client


@case(
    "different wrong keys from one address in 15 minutes",
    SMTP_RELAY_AUTH_DELAY_SECONDS="0",
    SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS="3",
)
def _(ground: Ground) -> tuple[str, Client | None]:
    for number in range(3):
        assert ground.greeted().auth(f"wrong-{number}").startswith("535")
    # One key a second is looked at all the same.
    answers = [(client := ground.greeted()).auth("wrong-9") for _ in range(3)]
    return answers[-1], client


@case("size", SMTP_RELAY_MAX_MESSAGE_SIZE_BYTES="2000")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.logged_in()
    head = f"{FROM}\r\n"
    assert ground.send(client, head + "x" * (1998 - len(head))).startswith("250")
    assert client.say("MAIL FROM:<a@example.com> SIZE=2000", "RSET").startswith("250")
    assert client.say("MAIL FROM:<a@example.com> SIZE=2001").startswith("552 5.3.4")
    return ground.send(client, head + "y" * (1999 - len(head))), None


@case("recipients, envelope and header together", SMTP_RELAY_MAX_RECIPIENTS="3")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.logged_in()
    people = [f"p{number}@x.example" for number in range(4)]
    assert client.say("MAIL FROM:<a@example.com>", *(f"RCPT TO:<{each}>" for each in people[:3])).startswith("250")
    assert client.say(f"RCPT TO:<{people[3]}>").startswith("452 4.5.3")
    assert client.say("RSET").startswith("250")
    assert ground.send(client, f"{FROM}To: {people[0]}, {people[1]}\r\n\r\nx").startswith("250")
    return ground.send(client, f"{FROM}To: {', '.join(people[:3])}\r\n\r\nx"), None


@case("MIME parts", SMTP_RELAY_MAX_PARTS="5")
def _(ground: Ground) -> tuple[str, Client | None]:
    words = [f"word{number}x" for number in range(12)]
    parts = "".join(f"--b\r\nContent-Type: text/plain\r\n\r\n{word}\r\n" for word in words)
    content = f"{FROM}MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{parts}--b--"
    reply = ground.send(ground.logged_in(), content)
    _nothing_is_missing(ground, words)
    return reply, None


@case("levels of MIME parts", SMTP_RELAY_MAX_PART_DEPTH="5")
def _(ground: Ground) -> tuple[str, Client | None]:
    words = [f"word{number}x" for number in range(12)]
    content = f"Content-Type: text/plain\r\n\r\n{words[-1]}"
    for level, word in reversed(list(enumerate(words[:-1]))):
        content = (
            f"Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\nContent-Type: text/plain\r\n\r\n"
            f"{word}\r\n--b{level}\r\n{content}\r\n--b{level}--"
        )
    reply = ground.send(ground.logged_in(), f"{FROM}MIME-Version: 1.0\r\n{content}")
    _nothing_is_missing(ground, words)
    return reply, None


def _nothing_is_missing(ground: Ground, words: list[str]) -> None:
    """Each is in the text or in an attachment of the row."""
    (row,) = ground.query("SELECT text, html, attachments FROM emails")
    attached = [base64.b64decode(attachment["content"]).decode() for attachment in row["attachments"]]
    everything = "\n".join([row["text"], row["html"], *attached])
    assert [word for word in words if word not in everything] == []


@case("messages a minute of one API key", SMTP_RELAY_KEY_MESSAGES_PER_MINUTE="2")
def _(ground: Ground) -> tuple[str, Client | None]:
    return _third_message(ground)


@case("messages a minute of one address", SMTP_RELAY_ADDRESS_MESSAGES_PER_MINUTE="2")
def _(ground: Ground) -> tuple[str, Client | None]:
    return _third_message(ground)


def _third_message(ground: Ground) -> tuple[str, Client | None]:
    client = ground.logged_in()
    for _ in range(2):
        assert client.say("MAIL FROM:<a@example.com>", "RSET").startswith("250")
    return client.say("MAIL FROM:<a@example.com>"), None


@case("command line")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    assert client.say("NOOP ".ljust(4096, "x")).startswith("250")
    return client.say("NOOP ".ljust(4097, "x")), None


@case("line of an AUTH exchange")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    assert client.say("EHLO c.example", "AUTH PLAIN").startswith("334")
    assert client.say(plain("x" * 9000)).startswith("535")
    assert client.say("AUTH PLAIN").startswith("334")
    return client.say("x" * 12_289), None


@case("line without an end")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    client.socket.sendall(b"x" * 1_000_001)
    return client.reply(), client


@case("the next command, all of it", SMTP_RELAY_COMMAND_TIMEOUT_SECONDS="1")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.logged_in()
    client.socket.sendall(b"NO")
    return client.reply(), client


@case("the next command before AUTH", SMTP_RELAY_LOGIN_TIMEOUT_SECONDS="1")
def _(ground: Ground) -> tuple[str, Client | None]:
    patient = ground.logged_in()
    client = ground.greeted()
    client.socket.sendall(b"NO")
    reply = client.reply()
    assert patient.say("NOOP").startswith("250")
    return reply, client


@case("refused recipients of one connection between two messages", SMTP_RELAY_MAX_RECIPIENTS="1")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.logged_in()
    assert client.say("MAIL FROM:<ann@example.com>").startswith("250")
    for _ in range(100):
        assert client.say("RCPT TO:<nobody>").startswith("5")
    return client.say("RCPT TO:<nobody>"), client


@case("chunks thrown away before AUTH")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    client.socket.sendall(b"BDAT 600000\r\n" + b"x" * 600_000)
    assert client.reply().startswith("503")
    return client.say("BDAT 99999999999999999999 LAST"), client


@case("a whole connection", SMTP_RELAY_CONNECTION_SECONDS="2")
def _(ground: Ground) -> tuple[str, Client | None]:
    client = ground.greeted()
    while (reply := client.say("NOOP")).startswith("250"):
        time.sleep(0.1)
    return reply, client


def test_every_row_has_a_case_or_a_test() -> None:
    assert len(ROWS) >= 30
    assert DRIVEN.keys() | ELSEWHERE.keys() == ROWS.keys()
    assert not DRIVEN.keys() & ELSEWHERE.keys()


@pytest.mark.parametrize("limit", ELSEWHERE)
def test_the_tests_that_are_named_exist(limit: str) -> None:
    path, _, name = ELSEWHERE[limit].partition("::")
    functions = [
        node.name for node in ast.parse((ROOT / "tests" / path).read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    assert name in functions


@pytest.mark.parametrize("limit", DRIVEN)
def test_a_bound_answers_as_its_row_says(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query, limit: str
) -> None:
    settings, beyond = DRIVEN[limit]
    row = ROWS[limit]
    assert set(settings) - {"SMTP_RELAY_AUTH_DELAY_SECONDS", "SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS"} <= set(
        re.findall(r"\w+", row.setting)
    )
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, **settings)
    with ExitStack() as clients:
        reply, client = beyond(Ground(relay, api_key.token, query, clients))
        wanted = row.codes or ["250 2.0.0"]
        assert " ".join(reply.split(" ")[:2]) in wanted
        assert ("(closes)" in row.reply) == (client is not None)
        if client is not None:
            assert client.line() == "", "the connection ends"
