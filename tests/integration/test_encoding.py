"""A database that is not in UTF-8: a fault that never passes is answered for good, and is that message's alone."""

from __future__ import annotations

import hashlib
import smtplib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from psycopg2 import sql

from relay.postgres import schema_check
from scripts.database import apply_schema, database_url, drop_database, execute
from scripts.services import Postgres
from tests.support.relay_process import Relay


@pytest.fixture(scope="module", params=["LATIN1", "WIN1252", "SQL_ASCII"])
def encoded_url(request: pytest.FixtureRequest, postgres_server: Postgres) -> Iterator[tuple[str, str]]:
    """An encoding, and a database in it with the contract's tables."""
    name = f"encoded_{uuid.uuid4().hex}"
    statement = sql.SQL("CREATE DATABASE {} ENCODING {} TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'")
    execute(postgres_server.url(), statement.format(sql.Identifier(name), sql.Literal(request.param)))
    url = database_url(postgres_server.url(), name)
    apply_schema(url)
    yield request.param, url
    drop_database(postgres_server.url(), name)


def test_the_check_refuses_it(encoded_url: tuple[str, str]) -> None:
    encoding, url = encoded_url
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        found = list(schema_check.problems(cursor))
    assert found == [f"is encoded in {encoding}, should be UTF8: mails with other characters would be refused"]


def test_what_it_cannot_hold_is_refused_for_good_and_its_neighbours_are_stored(
    encoded_url: tuple[str, str], redis_url: str, start_relay: Callable[..., Relay]
) -> None:
    encoding, url = encoded_url
    token = "os_live_encoding"
    execute(
        url,
        "INSERT INTO api_keys (id, name, token_hash, permission, created_at, user_id)"
        " VALUES (gen_random_uuid(), 'k', %s, 'full_access', now(), 'user')",
        (hashlib.sha256(token.encode()).hexdigest(),),
    )
    relay = start_relay(DATABASE_URL=url, REDIS_URL=redis_url)

    def send(number: int) -> tuple[int, bytes]:
        text = "\u6f22" if number % 3 == 0 else "\u00e9"
        with relay.client(token) as client:
            try:
                client.sendmail(
                    "ann@example.com",
                    ["to@x.example"],
                    f"From: ann@example.com\r\nSubject: {number}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                    f"Message-ID: <{number}@example.com>\r\n\r\n{text}\r\n".encode(),
                )
            except smtplib.SMTPDataError as error:
                return error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b""
        return 250, b""

    refused = (554, b"5.6.3 The message holds characters that the database can't store")
    if encoding == "SQL_ASCII":  # converts nothing, and holds all octets
        refused = (250, b"")
    for _ in range(2):  # the same again is refused again: nothing is left of the first try
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(send, range(24)))
        assert answers == [refused if number % 3 == 0 else (250, b"") for number in range(24)]
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM emails")
        assert cursor.fetchone() == (24 if encoding == "SQL_ASCII" else 16,)
    assert "Traceback" not in relay.log
