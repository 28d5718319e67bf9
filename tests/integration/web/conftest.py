"""The HTTP process as its operator runs it, on real servers; and a double of SNS that it believes. One for a module."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg2
import pytest

from relay.core.tracking_token import TrackingTokens
from scripts.database import create_database, create_webhook, drop_database
from scripts.services import Postgres, Valkey, Web
from scripts.services.sns_double import TOPIC, SnsDouble

SECRET = "a secret of sixteen"
USER = "user"
#: Long enough for a loaded machine; nothing waits so long when it works.
PATIENCE = 60.0


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Stage:
    """A running HTTP process, its database, and what a client does with them."""

    def __init__(self, web: Web, postgres_url: str, sns: SnsDouble) -> None:
        self.web = web
        self.postgres_url = postgres_url
        self.sns = sns
        self.tokens = TrackingTokens(SECRET)

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg2.connect(self.postgres_url) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def add_domain(self, **columns: Any) -> str:
        row = {
            "id": str(uuid.uuid4()),
            "name": "example.com",
            "status": "verified",
            "track_clicks": True,
            "track_opens": True,
            "user_id": USER,
        } | columns
        names = ", ".join(row)
        self.query(f"INSERT INTO domains ({names}) VALUES ({', '.join(['%s'] * len(row))})", *row.values())
        return str(row["id"])

    def add_email(self, **columns: Any) -> str:
        row: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "from": "ann@example.com",
            "to": json.dumps(["to@x.example"]),
            "subject": "Hello",
            "status": "sent",
            "user_id": USER,
        } | columns
        names = ", ".join(f'"{name}"' for name in row)
        self.query(f"INSERT INTO emails ({names}) VALUES ({', '.join(['%s'] * len(row))})", *row.values())
        return str(row["id"])

    def add_webhook(self, *event_types: str, **columns: Any) -> str:
        return create_webhook(self.postgres_url, *event_types, **({"user_id": USER} | columns))

    def token(self, kind: str = "click", **members: Any) -> str:
        payload: dict[str, object] = {
            "v": 1,
            "kind": kind,
            "userId": USER,
            "emailId": str(uuid.uuid4()),
            "domainId": str(uuid.uuid4()),
        }
        if kind == "click":
            payload["targetUrl"] = "https://target.example/?a=1&b=2"
        return self.tokens.make(payload | members)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.web.host, self.web.port, timeout=PATIENCE)
        try:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, fields)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, **headers)

    def post(self, message: dict[str, Any] | bytes, **headers: str) -> Answer:
        """As SNS posts it."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        kind = message["Type"] if isinstance(message, dict) else "Notification"
        given = {"Content_Type": "text/plain; charset=UTF-8", "x_amz_sns_message_type": kind} | headers
        return self.request("POST", "/events/ses", body, **given)

    def events(self, email_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Type and payload of the events of a mail, by type."""
        return self.query("SELECT type, payload FROM email_events WHERE email_id = %s ORDER BY type", email_id)

    def status(self, email_id: str) -> str:
        ((status,),) = self.query("SELECT status FROM emails WHERE id = %s", email_id)
        return str(status)


@pytest.fixture(scope="session")
def sns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnsDouble]:
    with SnsDouble(tmp_path_factory.mktemp("sns")) as double:
        yield double


@pytest.fixture(scope="module")
def module_postgres_url(postgres_server: Postgres, schema_template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    yield create_database(postgres_server.url(), name, schema_template)
    drop_database(postgres_server.url(), name)


def settings_of(postgres_url: str, redis_url: str) -> dict[str, str | None]:
    return {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "TRACKING_SECRET": SECRET,
        "SES_EVENTS_SNS_TOPIC_ARN": f"arn:aws:sns:eu-west-1:1:other, {TOPIC}",
        "SMTP_RELAY_HTTP_FORWARDED_FOR": "127.0.0.1/32",
    }


@pytest.fixture(scope="module")
def stage(
    module_postgres_url: str, valkey_server: Valkey, sns: SnsDouble, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    web = Web(
        tmp_path_factory.mktemp("web"),
        settings_of(module_postgres_url, valkey_server.url),
        sns=(str(sns.cafile), sns.port),
    )
    with web:
        yield Stage(web, module_postgres_url, sns)
    log = web.log
    assert "Traceback" not in log, log
    assert "x.example" not in log, log  # no address in a log line
