"""docs/rights.md: relay and worker run with the roles that it makes, and each right of theirs is needed."""

from __future__ import annotations

import base64
import email.message
import json
import os
import re
import signal
import smtplib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import gevent
import pytest

from relay.operator import outgoing_probe, postgres_probe, web_probe
from relay.operator.postgres_probe import RolledBack, refusals
from relay.postgres.schema_check import DELIVERY_TABLES, TABLES, WEB_TABLES, Tables
from relay.postgres.store import Store
from scripts.database import NewApiKey, create_webhook, execute
from scripts.services import Ses
from tests.support.relay_process import Relay

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "rights.md").read_text()
PRIVILEGES = {"S": "SELECT", "I": "INSERT", "U": "UPDATE"}
ROLES = {"opensend_relay": TABLES, "opensend_worker": DELIVERY_TABLES, "opensend_web": WEB_TABLES}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def roles(postgres_url: str) -> Iterator[dict[str, str]]:
    """The roles of the page, made by its statements as they stand: name → URL."""
    for block in blocks("sql"):
        execute(postgres_url, block)
    parts = urlsplit(postgres_url)
    yield {
        name: urlunsplit(parts._replace(netloc=f"{name}:change%20me@{parts.hostname}:{parts.port}")) for name in ROLES
    }
    for name in ROLES:
        execute(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def ses_server(tmp_path: Path) -> Iterator[Ses]:
    with Ses(tmp_path / "ses") as server:
        yield server


def granted(tables: Tables) -> Iterator[tuple[str, str, str]]:
    """Table, privilege and column."""
    for table, columns in tables.items():
        for name, column in columns.items():
            for letter in column.uses:
                yield table, PRIVILEGES[letter], name


def test_the_page_grants_what_the_check_asks_for() -> None:
    """Neither more nor less, for either role."""
    for role, tables in ROLES.items():
        found = set()
        for text, table in re.findall(rf"GRANT ([^;]*?) ON\s+(\w+)\s+TO\s+{role};", PAGE):
            for privilege, names in re.findall(r"(\w+)\s+\(([^)]*)\)", text):
                found |= {(table, privilege, name.strip().strip('"')) for name in names.split(",")}
        assert found == set(granted(tables)), role


@pytest.mark.usefixtures("green_psycopg")
@pytest.mark.parametrize("role", ROLES)
def test_no_right_may_be_missing(roles: dict[str, str], postgres_url: str, role: str) -> None:
    """By the statements alone, not by what the catalogue says of the role."""
    database = RolledBack(roles[role], statement_seconds=20)
    operations = {
        "opensend_relay": lambda: postgres_probe.operations(Store(roles[role], deadline=20, database=database)),
        "opensend_worker": lambda: outgoing_probe.operations(database, seconds=20),
        "opensend_web": lambda: web_probe.operations(database, seconds=20),
    }[role]()

    def refused() -> list[str]:
        found: list[str] = gevent.spawn(lambda: list(refusals(operations, database))).get()
        return found

    assert refused() == []
    unneeded = []
    for table, privilege, column in granted(ROLES[role]):
        execute(postgres_url, f'REVOKE {privilege} ("{column}") ON {table} FROM {role}')
        said = refused()
        if not said:
            unneeded.append((table, privilege, column))
        assert all("42501" in line for line in said), (table, privilege, column, "\n".join(said))
        execute(postgres_url, f'GRANT {privilege} ("{column}") ON {table} TO {role}')
    database.close()
    assert unneeded == []


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_both_run_with_these_roles(
    roles: dict[str, str],
    start_relay: Callable[..., Relay],
    postgres_url: str,
    redis_url: str,
    ses_server: Ses,
    make_api_key: Callable[..., NewApiKey],
    query: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Sent, simulated, suppressed, failed and tried again, from the SMTP dialogue to the double of SES."""
    key = make_api_key()
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " VALUES (gen_random_uuid(), %s, 'gone@x.example', 'bounced')",
        key.user_id,
    )
    types = ("email.sent", "email.suppressed", "email.failed", "email.delayed")
    create_webhook(postgres_url, *types, user_id=key.user_id)
    relay = start_relay(DATABASE_URL=roles["opensend_relay"], REDIS_URL=redis_url)
    with smtplib.SMTP(relay.host, relay.port, "localhost", timeout=60) as client:
        client.login("opensend", key.token)
        for to in ("to@x.example", "bounced@resend.dev", "delayed@x.example", "failed@x.example"):
            client.send_message(message(to))
        client.send_message(message(", ".join(f"u{number}@x.example" for number in range(60))))
        with pytest.raises(smtplib.SMTPDataError, match="suppressed"):
            client.send_message(message("gone@x.example"))
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " VALUES (gen_random_uuid(), %s, 'u3@x.example', 'manual')",
        key.user_id,
    )
    rejected = {"status": 400, "code": "MessageRejected", "message": "Email address is not verified."}
    ses_server.answer(rejected, {"status": 400, "code": "ANewException", "message": "not now"})
    log = tmp_path / "delivery.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "relay.delivery"],
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
            | ses_server.client_environment
            | {"DATABASE_URL": roles["opensend_worker"], "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: query("SELECT count(*) AS n FROM emails WHERE status IN ('queued', 'processing')") == [{"n": 0}])
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    found = {row["status"]: row["n"] for row in query("SELECT status, count(*) AS n FROM emails GROUP BY status")}
    assert found == {"sent": 4, "bounced": 1, "failed": 1}
    assert {row["type"] for row in query("SELECT type FROM email_events")} >= {
        "sent",
        "failed",
        "suppressed",
        "bounced",
    }
    assert query("SELECT count(*) > 3 AS many FROM webhook_deliveries") == [{"many": True}]
    for text in (log.read_text(), relay.log_path.read_text()):
        assert "query_rejected" not in text
        assert "unexpected_error" not in text


def message(to: str) -> email.message.EmailMessage:
    made = email.message.EmailMessage()
    made["From"], made["To"], made["Subject"] = "Ann <ann@example.com>", to, "Grüße"
    made["Message-ID"] = f"<{uuid.uuid4()}@example.com>"
    made["Idempotency-Key"] = str(uuid.uuid4())
    made.set_content("ä")
    made.add_attachment(base64.b64decode("JVBERg=="), maintype="application", subtype="pdf", filename="Übersicht.pdf")
    return made


def test_the_policies_are_json_and_name_what_the_code_calls() -> None:
    relay, worker = [
        {action for statement in json.loads(block)["Statement"] for action in statement["Action"]}
        for block in blocks("json")
    ]
    calls = {
        name: set(re.findall(r'"((?:Send|Receive|Delete|Change|Get)[A-Z]\w+)"', (ROOT / name).read_text()))
        for name in ("relay/aws/sqs.py", "relay/aws/sqs_receiver.py")
    }
    called = {f"sqs:{action.removesuffix('Batch')}" for action in calls["relay/aws/sqs.py"]}
    assert relay == called
    received = {f"sqs:{action}" for action in calls["relay/aws/sqs_receiver.py"]}
    assert worker == received | {"ses:SendEmail", "ses:SendRawEmail", "ses:GetAccount"}
