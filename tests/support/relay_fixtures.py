"""Fixtures of a relay as its operator runs it: a separate process, on real servers. A conftest imports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from scripts.database import NewApiKey
from tests.support.relay_process import Relay


@pytest.fixture
def start_relay(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Starts relays with the settings given (`start_relay(DATABASE_URL=…)`) and ends them after the test."""
    started: list[Relay] = []

    def start(**settings: str) -> Relay:
        relay = Relay(tmp_path / f"relay-{len(started)}", {"SMTP_RELAY_DRAIN_SECONDS": "5", **settings})
        started.append(relay)
        relay.start()
        return relay

    yield start
    for relay in started:
        relay.stop()


@pytest.fixture
def api_key(make_api_key: Callable[..., NewApiKey]) -> NewApiKey:
    """An unrestricted key."""
    return make_api_key()


@pytest.fixture
def relay(start_relay: Callable[..., Relay], postgres_url: str, redis_url: str) -> Relay:
    """A relay in polling mode, on Postgres and Valkey."""
    return start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url)


@pytest.fixture
def query(postgres_url: str) -> Callable[..., list[dict[str, Any]]]:
    """Runs SQL on the test's database: `query("SELECT …", parameter, …)`, rows as dictionaries."""

    def run(statement: str, *parameters: object) -> list[dict[str, Any]]:
        connection = psycopg2.connect(postgres_url)
        try:
            connection.autocommit = True
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute(statement, parameters)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()

    return run
