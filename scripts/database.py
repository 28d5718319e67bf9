"""What the embedded database holds before the first mail: the contract's tables, and API keys (contract section 3)."""

from __future__ import annotations

import hashlib
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
    """Drops a database, whoever is still connected to it."""
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
    """Stores an API key as OpenSend does and returns it with the token that nobody can read later."""
    token = token or f"os_live_{secrets.token_urlsafe(24)}"
    key = NewApiKey(str(uuid.uuid4()), token, user_id or str(uuid.uuid4()))
    execute(
        database_url,
        "INSERT INTO api_keys (id, name, token_hash, token_preview, permission, domain, created_at, user_id)"
        " VALUES (%s, %s, %s, %s, %s, %s, now(), %s)",
        (key.id, name, hashlib.sha256(token.encode()).hexdigest(), f"{token[:11]}…", permission, domain, key.user_id),
    )
    return key
