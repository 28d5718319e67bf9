"""The relay as users meet it: through their mail clients, without TLS, with STARTTLS, and with TLS from the start.

`./scripts/try_clients` does the same with the rarer clients and with mail servers, and prints a table. What is not
installed is skipped.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.header import decode_header, make_header
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import pytest

from tests.clients.door import Door
from tests.clients.mail import Answer, Attachment, Mail, Person, Security
from tests.clients.programs import CLIENTS, EVERYDAY, Client

#: Every octet, and every line end that a careless client could change.
OCTETS = bytes(range(256)) * 40 + b"\r\n.\r\n\n.\n\r\r\n.." + bytes(range(255, -1, -1))


@dataclass(frozen=True, slots=True)
class Sender:
    """One client on one way into the relay."""

    client: Client
    security: Security
    door: Door
    directory: Path
    record: Callable[[str, object], None]
    #: In the subject of every mail, so that its rows are found.
    mark: str

    def send(self, mail: Mail, *, password: str = "") -> Answer:
        answer = self.client.send(mail, self.door.account(self.security, password=password), self.directory)
        self.record("said", answer.said)
        return answer

    def row(self, mail: Mail) -> dict[str, Any]:
        """The one row that comes of a mail that the client says has been accepted."""
        answer = self.send(mail)
        assert answer.accepted, answer.said
        (row,) = self.door.rows(self.mark)
        assert row["status"] == "queued"
        return row


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    clients = CLIENTS if metafunc.config.getoption("--every-client", default=False) else EVERYDAY
    routes = [
        pytest.param((client, security), id=f"{client.name}-{security}")
        for client in clients
        for security in client.securities
    ]
    metafunc.parametrize("sender", routes, indirect=True)


@pytest.fixture
def sender(
    request: pytest.FixtureRequest,
    doors: dict[bool, Door],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> Iterator[Sender]:
    client, security = request.param
    lacking = client.missing()
    if lacking:
        pytest.skip(lacking)
    door = doors[security != "plain"]
    before = len(door.relay.log)
    yield Sender(client, security, door, tmp_path, record_property, uuid.uuid4().hex)
    events = [json.loads(line) for line in door.relay.log[before:].splitlines()]
    assert [event for event in events if event.get("level") in ("error", "critical")] == []


def people(*addresses: str) -> tuple[Person, ...]:
    return tuple(Person(address) for address in addresses)


def test_text(sender: Sender) -> None:
    row = sender.row(Mail(f"Grüße {sender.mark}", people("to@x.example"), text="Schöne Grüße\n.\n..\nEnde\n"))
    assert row["subject"] == f"Grüße {sender.mark}"
    assert row["text"].rstrip("\n") == "Schöne Grüße\n.\n..\nEnde"
    assert (row["html"], row["attachments"], row["cc"], row["bcc"]) == ("", [], [], [])
    assert row["to"] == ["to@x.example"]
    assert row["user_id"] == sender.door.key.user_id


def test_html(sender: Sender) -> None:
    html = "<p>Schöne <b>Grüße</b></p>"
    row = sender.row(Mail(sender.mark, people("to@x.example"), text="Schöne Grüße\n", html=html))
    assert row["html"].rstrip("\n") == html
    assert row["text"].rstrip("\n") == ("Schöne Grüße" if sender.client.alternatives else "")
    assert row["attachments"] == []


def test_attachment(sender: Sender) -> None:
    file = Attachment("Überweisung Straße.pdf", OCTETS)
    row = sender.row(Mail(sender.mark, people("to@x.example"), text="Schöne Grüße\n", attachment=file))
    (stored,) = row["attachments"]
    assert stored["filename"] == file.filename
    assert base64.b64decode(stored["content"], validate=True) == file.content
    assert row["text"].rstrip("\n") == "Schöne Grüße"


def test_bcc(sender: Sender) -> None:
    row = sender.row(
        Mail(sender.mark, people("to@x.example"), cc=people("cc@x.example"), bcc=people("secret@x.example"))
    )
    assert (row["to"], row["cc"], row["bcc"]) == (["to@x.example"], ["cc@x.example"], ["secret@x.example"])
    assert "secret" not in json.dumps(row["headers"])
    assert "bcc" not in {name.lower() for name in row["headers"]}


def test_display_names(sender: Sender) -> None:
    mail = Mail(
        sender.mark,
        (Person("to@x.example", "Ümit Öz, Dr."), Person("second@x.example", "Zweite")),
        sender=Person("ann@example.com", "Jörg Müßig & Söhne"),
        cc=(Person("cc@x.example", "Łukasz"),),
    )
    row = sender.row(mail)
    name, address = parseaddr(row["from"])
    assert row["from"].isascii()
    assert (str(make_header(decode_header(name))), address) == ("Jörg Müßig & Söhne", "ann@example.com")
    assert (row["to"], row["cc"]) == (["to@x.example", "second@x.example"], ["cc@x.example"])


def test_many(sender: Sender) -> None:
    everyone = [f"person{number}@x{number % 7}.example" for number in range(120)]
    answer = sender.send(Mail(sender.mark, people(*everyone[:80]), bcc=people(*everyone[80:])))
    assert answer.accepted, answer.said
    rows = sender.door.rows(sender.mark)
    assert sorted(address for row in rows for address in row["to"]) == sorted(everyone[:80])
    assert sorted(address for row in rows for address in row["bcc"]) == sorted(everyone[80:])


def test_bad_key(sender: Sender) -> None:
    answer = sender.send(Mail(sender.mark, people("to@x.example")), password="os_live_nobody")
    assert not answer.accepted
    assert "535" in answer.said
    assert "must be a valid OpenSend API key" in answer.said
    assert sender.door.rows(sender.mark) == []


def test_suppressed(sender: Sender) -> None:
    address = f"{uuid.uuid4().hex}@x.example"
    sender.door.suppress(address)
    answer = sender.send(Mail(sender.mark, people("to@x.example", address)))
    assert not answer.accepted
    assert "550" in answer.said
    assert f"Recipient suppressed: {address} (bounced)" in answer.said
    assert sender.door.rows(sender.mark) == []
