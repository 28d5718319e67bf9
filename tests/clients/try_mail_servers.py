"""Mail servers with the relay as their smart host: they queue, split, try again and bounce.

Not collected by default, since it starts other people's daemons and needs root; `./scripts/try_clients` runs it.
What is not installed is skipped.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.header import decode_header, make_header
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import pytest

from scripts.database import apply_schema, create_api_key
from scripts.services import Postgres, Valkey
from tests.clients.door import Door, door
from tests.clients.mail import Attachment, Mail, Person, Security
from tests.clients.mail_servers import MAIL_SERVERS, SENDER, MailServer

OCTETS = bytes(range(256)) * 40 + b"\r\n.\r\n\n.\n\r\r\n.." + bytes(range(255, -1, -1))
SECURITIES: tuple[Security, ...] = ("plain", "starttls", "tls")
ANN = Person(SENDER, "Ann")
#: What a queue has not done in this time it never does; seconds. dma looks every 30 s.
PATIENCE = 90


def until(condition: Callable[[], object]) -> None:
    """Waits for what a queue does in its own time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class SmartHostClient:
    """A mail server that hands everything to a relay."""

    server: MailServer
    door: Door
    record: Callable[[str, object], None]
    #: In the subject of every mail, so that its rows are found.
    mark: str

    def deliver(self, mail: Mail) -> list[dict[str, Any]]:
        """The rows that come of a mail, once the queue is empty."""
        self.server.submit(mail)
        until(lambda: not self.server.queue())
        self.record("said", self.server.said())
        return self.door.rows(self.mark)

    def row(self, mail: Mail) -> dict[str, Any]:
        (row,) = self.deliver(mail)
        return row

    def bounce(self) -> str:
        """The text in which the server tells the sender of a failure; it goes through the relay too."""

        def found() -> list[dict[str, Any]]:
            rows = self.door.rows("")
            return [
                row
                for row in rows
                if row["to"] == [SENDER] and self.mark in json.dumps([row["text"], row["attachments"]], default=str)
            ]

        until(found)
        (row,) = found()
        assert row["to"] == [SENDER]
        return str(row["text"])


ROUTES = [
    pytest.param((kind, security), id=f"{kind.name}-{security}") for kind in MAIL_SERVERS for security in SECURITIES
]


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> tuple[type[MailServer], Security]:
    kind, security = request.param
    lacking = kind.missing()
    if lacking:
        pytest.skip(lacking)
    return kind, security


Start = Callable[..., SmartHostClient]


@pytest.fixture
def start(route: tuple[type[MailServer], Security], record_property: Callable[[str, object], None]) -> Iterator[Start]:
    kind, security = route
    started: list[tuple[SmartHostClient, Path, int]] = []

    def begin(door: Door, *, username: str = "opensend", password: str = "") -> SmartHostClient:
        # Not in pytest's own folder, which only its owner may enter.
        directory = Path(tempfile.mkdtemp(prefix="mail-server-"))
        directory.chmod(0o755)
        client = SmartHostClient(kind(directory), door, record_property, uuid.uuid4().hex)
        started.append((client, directory, len(door.relay.log)))
        authority = directory / "authority.pem"
        shutil.copyfile(door.authority, authority)
        account = door.account(security, username=username, password=password)
        client.server.start(replace(account, authority=str(authority)))
        return client

    yield begin
    for client, directory, log_began in started:
        client.server.stop()
        shutil.rmtree(directory, ignore_errors=True)  # dma may still be at work in it
        events = [json.loads(line) for line in client.door.relay.log[log_began:].splitlines()]
        assert [event for event in events if event.get("level") == "error" and "unexpected" in event["event"]] == []


@pytest.fixture
def door_of_route(route: tuple[type[MailServer], Security], doors: dict[bool, Door]) -> Door:
    return doors[route[1] != "plain"]


@pytest.fixture
def client(start: Start, door_of_route: Door) -> SmartHostClient:
    return start(door_of_route)


#: The rule of who receives a message: the default, and the one that a mail server chooses by its user name.
BOTH_RULES = pytest.mark.parametrize("username", [pytest.param("opensend", id="merge"), "envelope"])


def people(*addresses: str) -> tuple[Person, ...]:
    return tuple(Person(address) for address in addresses)


def everyone(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(address for row in rows for field in ("to", "cc", "bcc") for address in row[field])


def test_text(client: SmartHostClient) -> None:
    row = client.row(Mail(f"Grüße {client.mark}", people("to@x.example"), ANN, text="Schöne Grüße\n.\n..\nEnde\n"))
    assert row["subject"] == f"Grüße {client.mark}"
    assert row["text"].rstrip("\n") == "Schöne Grüße\n.\n..\nEnde"
    assert (row["to"], row["cc"], row["bcc"]) == (["to@x.example"], [], [])
    assert {"received", "return-path", "bcc"}.isdisjoint(name.lower() for name in row["headers"])


def test_html(client: SmartHostClient) -> None:
    html = "<p>Schöne <b>Grüße</b></p>"
    row = client.row(Mail(client.mark, people("to@x.example"), ANN, text="Schöne Grüße\n", html=html))
    assert (row["html"].rstrip("\n"), row["text"].rstrip("\n")) == (html, "Schöne Grüße")


def test_attachment(client: SmartHostClient) -> None:
    file = Attachment("Überweisung Straße.pdf", OCTETS)
    row = client.row(Mail(client.mark, people("to@x.example"), ANN, attachment=file))
    (stored,) = row["attachments"]
    assert stored["filename"] == file.filename
    assert base64.b64decode(stored["content"], validate=True) == file.content


@BOTH_RULES
def test_bcc(start: Start, door_of_route: Door, username: str) -> None:
    client = start(door_of_route, username=username)
    mail = Mail(client.mark, people("to@x.example"), ANN, cc=people("cc@y.example"), bcc=people("secret@z.example"))
    rows = client.deliver(mail)
    assert everyone(rows) == ["cc@y.example", "secret@z.example", "to@x.example"]
    assert [row["bcc"] for row in rows if row["bcc"]] == [["secret@z.example"]]
    assert "secret" not in json.dumps([row["headers"] for row in rows])


def test_display_names(client: SmartHostClient) -> None:
    mail = Mail(client.mark, (Person("to@x.example", "Ümit Öz, Dr."),), Person(SENDER, "Jörg Müßig & Söhne"))
    row = client.row(mail)
    name, address = parseaddr(row["from"])
    assert (str(make_header(decode_header(name))), address) == ("Jörg Müßig & Söhne", SENDER)
    assert row["to"] == ["to@x.example"]


@BOTH_RULES
def test_many(start: Start, door_of_route: Door, username: str) -> None:
    client = start(door_of_route, username=username)
    addresses = [f"person{number}@x{number % 7}.example" for number in range(120)]
    rows = client.deliver(Mail(client.mark, people(*addresses[:80]), ANN, bcc=people(*addresses[80:])))
    client.record("rows", len(rows))
    assert everyone(rows) == sorted(addresses)
    assert {address for row in rows for address in row["to"]} == set(addresses[:80])


def test_bad_key(start: Start, door_of_route: Door) -> None:
    client = start(door_of_route, password="os_live_nobody")
    client.server.submit(Mail(client.mark, people("to@x.example"), ANN))
    if client.server.logs_in_again:
        until(lambda: "535 5.7.8 Authentication failed" in client.server.said())
        assert "to@x.example" in client.server.queue()
    else:
        until(lambda: "to@x.example" not in client.server.queue())
    client.record("said", client.server.said())
    assert client.door.rows(client.mark) == []


def test_suppressed(client: SmartHostClient) -> None:
    address = f"{uuid.uuid4().hex}@x.example"
    client.door.suppress(address)
    client.server.submit(Mail(client.mark, people(address), ANN))
    if client.server.bounces_have_sender:
        bounce = client.bounce()
        client.record("bounce", bounce)
        assert f"550 5.7.1 Recipient suppressed: {address} (bounced)" in " ".join(bounce.split())
    until(lambda: address not in client.server.queue())
    client.record("said", client.server.said())
    assert client.door.rows(client.mark) == []


@pytest.mark.parametrize("reply", [454, 451])
def test_outage(
    start: Start, route: tuple[type[MailServer], Security], valkey_server: Valkey, tmp_path: Path, reply: int
) -> None:
    """Postgres goes away: 454 to AUTH with a key that is not cached, 451 to the message with one that is."""
    if reply == 454 and not route[0].logs_in_again:
        pytest.skip(f"{route[0].name} takes every refusal of AUTH for a final one")
    with Postgres(tmp_path / "postgres", durable=False) as postgres:
        apply_schema(postgres.url())
        key = create_api_key(postgres.url())
        place = door(tmp_path, postgres.url(), valkey_server.url, key, secured=route[1] != "plain")
        with place.relay:
            client = start(place, username="envelope")
            if reply == 451:
                client.row(Mail(client.mark, people("first@x.example"), ANN))
            postgres.stop()
            client.server.submit(Mail(f"{client.mark} later", people("to@x.example", "two@x.example"), ANN))
            until(lambda: f'"code":{reply},' in place.relay.log.replace(" ", ""))
            client.record("said", client.server.said())
            postgres.start()

            def delivered() -> bool:
                client.server.attempt()
                return not client.server.queue()

            until(delivered)
            assert everyone(client.door.rows(f"{client.mark} later")) == ["to@x.example", "two@x.example"]
