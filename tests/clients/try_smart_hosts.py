"""The delivery worker with other makes of servers as its smart host: what they receive, and what the rows say.

Not collected by default, since it starts other people's daemons and needs root; `./scripts/try_smart_hosts` runs it.
What is not installed is skipped, and said. This project's own relay is tried by tests/integration/delivery, and here.
"""

from __future__ import annotations

import base64
import email.policy
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from scripts.database import create_api_key, create_database, drop_database, query
from scripts.services import Delivery, Postgres, Valkey
from tests.clients.smart_hosts import PASSWORD, REAL_HOSTS, RealHost
from tests.support.certificates import write_pair
from tests.support.email_rows import add_email
from tests.support.relay_process import Relay

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150.0
#: Attempts a mail has: what is put off at first is to be taken in the end.
ATTEMPTS = "4"
LINK = '<p><a href="https://shop.example/item?id={}&amp;x=é">Ein Artikel, Nr. {}</a> — 12,50 €</p>\n'
HTML = "<html><body>\n" + "".join(LINK.format(number, number) for number in range(280)) + "</body></html>\n"
DOTS = ".\n..\n.x\n\n.\nend of it\n" + "long " * 400 + "\n"

Query = Callable[..., list[Any]]


@pytest.fixture
def database(postgres_server: Postgres, schema_template: str) -> Iterator[str]:
    name = f"worker_{uuid.uuid4().hex}"
    yield create_database(postgres_server.url(), name, schema_template)
    drop_database(postgres_server.url(), name)


@pytest.fixture(scope="module", params=[pytest.param(kind, id=kind.name) for kind in REAL_HOSTS])
def host(request: pytest.FixtureRequest) -> Iterator[RealHost]:
    lacking = request.param.missing()
    if lacking:
        pytest.skip(lacking)
    host: RealHost = request.param()
    try:
        host.start()
        yield host
    finally:
        host.stop()


def add(database: str, **columns: Any) -> str:
    """A queued mail to a recipient that exists, with a subject that no other has; its id."""
    usual = {"from": "Änn <ann@example.com>", "to": ["p0@x.example"], "subject": uuid.uuid4().hex}
    return add_email(database, **(usual | columns))


def attachment(name: str, octets: bytes) -> dict[str, str]:
    return {
        "filename": name,
        "content": base64.b64encode(octets).decode(),
        "contentType": "application/octet-stream",
    }


@contextmanager
def worker(database: str, directory: Path, settings: dict[str, str]) -> Iterator[Delivery]:
    directory.mkdir(exist_ok=True)
    shared = {"DATABASE_URL": database, "EMAIL_PROVIDER_MAX_ATTEMPTS": ATTEMPTS}
    with Delivery(directory, shared | settings) as delivery:
        yield delivery
    said = delivery.log_path.read_text()
    for secret in ("x.example", PASSWORD, "unexpected_error", "Traceback"):
        assert secret not in said, secret


def ended(database: str, *ids: str) -> dict[str, tuple[Any, ...]]:
    """Rows at their end: id → status, code, text of the last error, attempts used up."""
    until = time.monotonic() + PATIENCE
    while True:
        with psycopg2.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, status, provider_last_error_code, provider_last_error_message, provider_retry_count"
                " FROM emails WHERE id = ANY(%s::uuid[])",
                (list(ids),),
            )
            found = {str(row[0]): tuple(row[1:]) for row in cursor.fetchall()}
        if all(row[0] not in ("queued", "processing") for row in found.values()):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.1)


def bounced(database: str, email_id: str) -> dict[str, str]:
    """Who is named as refused → for good or not."""
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT payload FROM email_events WHERE email_id = %s AND type = 'bounced'", (email_id,))
        payloads = [row[0] for row in cursor.fetchall()]
    return {
        entry["emailAddress"]: payload["bounceType"] for payload in payloads for entry in payload["bouncedRecipients"]
    }


def left(database: str, email_id: str) -> bytes:
    """The octets that leave for a row, as `--preview` has them."""
    done = subprocess.run(
        [sys.executable, "-m", "relay.delivery", "--preview", email_id],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout


def parsed(octets: bytes) -> EmailMessage:
    message = email.message_from_bytes(octets, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    assert [part.defects for part in message.walk()] == [[] for _ in message.walk()]
    return message


def corpus() -> dict[str, dict[str, Any]]:
    chance = random.Random(16)
    return {
        "small": {"text": DOTS},
        "html": {"html": HTML, "text": ""},
        "attachment": {"attachments": [attachment("Übersicht €.bin", chance.randbytes(150_000))]},
        "names": {
            "to": ["Bücher & Söhne <p0@bücher.example>"],
            "cc": ["Ωmega <p1@x.example>"],
            "bcc": ["p2@x.example"],
            "text": "grün\n",
        },
        "large": {"attachments": [attachment("large.bin", chance.randbytes(28_000_000))]},
    }


def test_what_arrives_is_what_left(host: RealHost, database: str, tmp_path: Path) -> None:
    """Octet by octet, and by a parser what the row holds; on each port, with TLS and a log-in."""
    for port in (host.port, host.tls_port):
        rows, mark = corpus(), uuid.uuid4().hex
        ids = {name: add(database, subject=f"{mark} {name} ", **row) for name, row in rows.items()}
        with worker(database, tmp_path / str(port), host.environment(port)):
            end = ended(database, *ids.values())
        assert {row[0] for row in end.values()} == {"sent"}, end
        arrived = host.wait_for(mark, len(rows) + 2)
        for name, row in rows.items():
            sent = left(database, ids[name])
            who = ("p0", "p1", "p2") if name == "names" else ("p0",)
            for person in who:
                found = [octets for octets in arrived[person] if f"{mark} {name}".encode() in octets]
                assert [octets == sent for octets in found] == [True], (name, person)
            message = parsed(sent)
            kind = "html" if "html" in row else "plain"
            body = message.get_body((kind,))
            assert body is not None
            wanted = row["html"] if "html" in row else row.get("text", "Hi\n")
            assert body.get_content().replace("\r\n", "\n").rstrip("\n") == wanted.rstrip("\n")
            octets = [part.get_content() for part in message.iter_attachments()]
            assert octets == [base64.b64decode(each["content"]) for each in row.get("attachments", [])]
            assert "Bcc" not in message


def test_an_address_that_no_host_takes_without_smtputf8_is_said(host: RealHost, database: str, tmp_path: Path) -> None:
    email_id = add(database, to=["jörg@x.example"])
    with worker(database, tmp_path / "worker", host.environment()):
        assert ended(database, email_id)[email_id][:2] == ("failed", "BadRecipient")


def test_a_mail_that_is_larger_than_it_takes_fails_and_others_leave(
    host: RealHost, database: str, tmp_path: Path
) -> None:
    large = add(database, attachments=[attachment("large.bin", bytes(28_000_000))])
    small = add(database)
    with worker(database, tmp_path / "worker", host.environment(host.limited_port)):
        end = ended(database, large, small)
    assert end[large][:2] == ("failed", "MessageTooLarge")
    assert end[small][0] == "sent"


def test_of_fifty_recipients_each_gets_it_once_or_is_named(host: RealHost, database: str, tmp_path: Path) -> None:
    """Five at a time: ten transactions and more, each with recipients that are refused or put off."""
    subject = uuid.uuid4().hex
    good = [f"p{number}@x.example" for number in range(38)]
    people = [*good, *(f"bad{number}@x.example" for number in range(10)), "later@x.example"]
    if host.complete:
        people.append("grey@x.example")
    random.Random(3).shuffle(people)
    email_id = add(database, subject=subject, to=people[:20], cc=people[20:40], bcc=people[40:])
    with worker(database, tmp_path / "worker", host.environment()):
        until = time.monotonic() + PATIENCE
        while not host.has(subject):
            assert time.monotonic() < until
            time.sleep(0.1)
        if host.complete:
            host.open_up()
        end = ended(database, email_id)
    assert end[email_id][0] == "bounced"
    wanted = {address.partition("@")[0] for address in good} | ({"grey"} if host.complete else set())
    arrived = host.wait_for(subject, len(wanted))
    assert {name: len(mails) for name, mails in arrived.items()} == dict.fromkeys(wanted, 1)
    assert len({octets for mails in arrived.values() for octets in mails}) == 1
    named = bounced(database, email_id)
    assert named == {f"bad{number}@x.example": "Permanent" for number in range(10)} | {"later@x.example": "Transient"}


def test_recipients_that_are_put_off_for_ever_hold_up_no_other(host: RealHost, database: str, tmp_path: Path) -> None:
    """Exim says 451 without an enhanced status code, which may be a fault of the host: no attempt is used up by it."""
    late = [add(database, to=["later@x.example"]) for _ in range(2)]
    subject = uuid.uuid4().hex
    others = [add(database, subject=f"{subject} {number}", to=[f"p{number}@x.example"]) for number in range(30)]
    with worker(database, tmp_path / "worker", host.environment() | {"EMAIL_PROVIDER_MAX_ATTEMPTS": "3"}):
        assert {row[0] for row in ended(database, *others).values()} == {"sent"}
        if not host.complete:
            assert {row[:2] for row in ended(database, *late).values()} == {("failed", "450 4.2.1")}
    assert len(host.wait_for(subject, 30)) == 30


def test_more_mails_at_a_time_than_it_takes_connections_all_leave(
    host: RealHost, database: str, tmp_path: Path
) -> None:
    """It takes three connections, of which Exim ends each with 421 after five mails; the worker opens twenty."""
    subject = uuid.uuid4().hex
    ids = [add(database, subject=f"{subject} {number}", to=["p3@x.example"]) for number in range(60)]
    began = time.monotonic()
    with worker(database, tmp_path / "worker", host.environment()):
        end = ended(database, *ids)
    print(f"{host.name}: {time.monotonic() - began:.1f} s for 60 mails")
    assert {row[0] for row in end.values()} == {"sent"}
    arrived = host.wait_for(subject, 60)["p3"]
    assert len(arrived) == len(set(arrived)) == 60


def test_what_it_refuses_with_data_and_behind_its_end(host: RealHost, database: str, tmp_path: Path) -> None:
    if not host.complete:
        pytest.skip(f"{host.name} refuses no text without a program beside it")
    host.open_up()
    refused = add(database, subject=f"{uuid.uuid4().hex} refused")
    nodata = add(database, to=["nodata@x.example"])
    dropped = add(database, to=["drop@x.example"])
    good = [add(database, subject=f"{uuid.uuid4().hex} fine") for _ in range(10)]
    with worker(database, tmp_path / "worker", host.environment()):
        end = ended(database, refused, nodata, dropped, *good)
    assert end[refused][:3] == ("failed", "550", "text: 550 the content is refused")
    assert end[nodata][:3] == ("failed", "550", "DATA: 550 no data for these")
    assert end[dropped][:3] == ("failed", "550", "RCPT: 550 not here")
    assert {end[each][0] for each in good} == {"sent"}


def test_a_relay_of_ours_gets_what_the_rows_hold(
    postgres_server: Postgres, schema_template: str, valkey_server: Valkey, database: str, tmp_path: Path
) -> None:
    name = f"host_{uuid.uuid4().hex}"
    url = create_database(postgres_server.url(), name, schema_template)
    certificate, key = write_pair(tmp_path / "tls")
    settings: dict[str, str | None] = {
        "DATABASE_URL": url,
        "REDIS_URL": valkey_server.url,
        "SMTP_RELAY_TLS_CERT_PATH": certificate,
        "SMTP_RELAY_TLS_KEY_PATH": key,
        "SMTP_RELAY_RECIPIENTS": "envelope",
    }
    with Relay(tmp_path / "host", settings) as relay:
        outgoing = {
            "SMTP_RELAY_PROVIDER": "smtp",
            "SMTP_RELAY_SMARTHOST_HOST": "localhost",
            "SMTP_RELAY_SMARTHOST_PORT": str(relay.port),
            "SMTP_RELAY_SMARTHOST_USER": "opensend",
            "SMTP_RELAY_SMARTHOST_PASSWORD": create_api_key(url).token,
            "SMTP_RELAY_SMARTHOST_CA_PATH": certificate,
        }
        rows = corpus()
        ids = {each: add(database, subject=f"row {each}", **row) for each, row in rows.items()}
        crowd = add(database, subject="row crowd", to=[f"p{number}@x.example" for number in range(50)])
        with worker(database, tmp_path / "worker", outgoing):
            end = ended(database, crowd, *ids.values())
    assert {row[0] for row in end.values()} == {"sent"}, end
    found: list[Any] = list(query(url, 'SELECT subject, text, html, attachments, "to", bcc FROM emails'))
    stored = {subject: values for subject, *values in found}
    drop_database(postgres_server.url(), name)
    assert len(stored["row crowd"][3]) == 50
    for each, row in rows.items():
        text, html, attachments, _, bcc = stored[f"row {each}"]
        assert (html or "").strip() == row.get("html", "").strip()
        assert html or text.rstrip("\n") == row.get("text", "Hi\n").rstrip("\n")
        assert [part["content"] for part in attachments or []] == [
            part["content"] for part in row.get("attachments", [])
        ]
        assert bcc == row.get("bcc", [])
