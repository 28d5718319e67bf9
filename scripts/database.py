"""What the embedded database holds before the first mail: the contract's tables, and API keys (contract section 3)."""

from __future__ import annotations

if not __package__:
    raise SystemExit("This is a part of ./scripts/dev, and no command.")

import hashlib
import json
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg2
from psycopg2 import sql

SCHEMA_PATH = Path(__file__).resolve().parent.parent / "config" / "schema.sql"


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """An API key as only its maker sees it: `token` is the password for AUTH, the table holds its hash."""

    id: str
    token: str
    user_id: str


def execute(database_url: str, statement: str | sql.Composable, parameters: tuple[object, ...] = ()) -> None:
    """Runs one statement, or several without parameters, outside of any transaction block."""
    connection = psycopg2.connect(database_url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
    finally:
        connection.close()


def apply_schema(database_url: str) -> None:
    """Makes the contract's tables where they are missing."""
    execute(database_url, SCHEMA_PATH.read_text())


def create_database(server_url: str, name: str, template: str = "template1") -> str:
    """Makes a database next to the one in `server_url` and returns its URL."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    execute(server_url, statement.format(sql.Identifier(name), sql.Identifier(template)))
    return database_url(server_url, name)


def drop_database(server_url: str, name: str) -> None:
    """Drops a database, also with connections to it."""
    execute(server_url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def database_url(server_url: str, name: str) -> str:
    """`server_url` with another database."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def create_api_key(
    database_url: str,
    *,
    user_id: str | None = None,
    domain: str | None = None,
    permission: str = "full_access",
    name: str = "development",
    token: str | None = None,
) -> NewApiKey:
    """Stores an API key as OpenSend does and returns it with the token, which can't be read later."""
    token = token or f"os_live_{secrets.token_urlsafe(24)}"
    key = NewApiKey(str(uuid.uuid4()), token, user_id or str(uuid.uuid4()))
    execute(
        database_url,
        "INSERT INTO api_keys (id, name, token_hash, token_preview, permission, domain, created_at, user_id)"
        " VALUES (%s, %s, %s, %s, %s, %s, now(), %s)",
        (key.id, name, _hash(token), f"{token[:11]}…", permission, domain, key.user_id),
    )
    return key


def ensure_api_key(database_url: str, path: Path) -> NewApiKey:
    """The key whose token is in the file at `path` (mode 0600), and in the database; what is missing is made."""
    if not path.exists():
        fresh = path.with_name(f"{path.name}.new")
        fresh.touch(mode=0o600)
        fresh.write_text(f"os_live_{secrets.token_urlsafe(24)}\n")
        fresh.replace(path)
    token = path.read_text().strip()
    known = query(
        database_url,
        "SELECT id::text, user_id FROM api_keys WHERE token_hash = %s AND user_id IS NOT NULL",
        (_hash(token),),
    )
    if known:
        return NewApiKey(str(known[0][0]), token, str(known[0][1]))
    return create_api_key(database_url, token=token)


def ensure_domain(database_url: str, name: str, *, user_id: str, configuration_set: str) -> None:
    """A domain of that user whose links and opens are tracked, made where the user has none of that name."""
    execute(
        database_url,
        "INSERT INTO domains (id, name, status, track_clicks, track_opens, ses_configuration_set_name, user_id)"
        " SELECT %s, %s, 'verified', true, true, %s, %s"
        " WHERE NOT EXISTS (SELECT FROM domains WHERE lower(name) = %s AND user_id = %s)",
        (str(uuid.uuid4()), name, configuration_set, user_id, name, user_id),
    )


def create_webhook(
    database_url: str,
    *event_types: str,
    url: str = "https://hook.example/",
    user_id: str = "user",
    status: str = "active",
    signing_secret_enc: str | None = None,
) -> str:
    """Stores a webhook of that user for events of these types; its id. `signing_secret_enc`: as OpenSend stores it."""
    webhook_id = str(uuid.uuid4())
    execute(
        database_url,
        "INSERT INTO webhooks (id, url, event_types, status, signing_secret_enc, user_id)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (webhook_id, url, json.dumps(event_types), status, signing_secret_enc, user_id),
    )
    return webhook_id


def query(
    database_url: str, statement: str | sql.Composable, parameters: tuple[object, ...] = ()
) -> list[tuple[object, ...]]:
    """The rows of one statement."""
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())
    finally:
        connection.close()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
