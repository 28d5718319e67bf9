"""Rows that a transaction of REST holds, many of one user: neither places nor connections are lost to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import pytest

from relay.core.errors import PostgresUnavailable
from relay.postgres.database import Database
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER
from tests.integration.delivery.test_statements import Jobs, Provider, add, dispatcher_of, until

Query = Callable[..., list[tuple[Any, ...]]]
PLACES = 10
#: Seconds for which a row is waited for: far longer than the test takes.
PATIENCE = 50.0


@pytest.fixture
def database(postgres_url: str, green_psycopg: None) -> Iterator[Database]:
    """As the worker has it, with a connection for every third place."""
    database = Database(postgres_url, statement_seconds=PATIENCE, idle_limit=3, switched_off=PLANNER, lock_seconds=0.05)
    yield database
    database.close()


def test_jobs_of_locked_rows_take_neither_all_places_nor_all_connections(
    database: Database, query: Query, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = add(query, 4 * PLACES, user="many")
    outgoing, provider = Outgoing(database, deadline=PATIENCE), Provider()
    waits: list[str] = []
    given_up: list[str] = []
    claim_one = outgoing.claim_one

    def noted(email_id: str, **named: Any) -> list[tuple[object, ...]]:
        waits.append(email_id)
        try:
            return claim_one(email_id, **named)
        except PostgresUnavailable:
            given_up.append(email_id)
            raise

    monkeypatch.setattr(outgoing, "claim_one", noted)
    dispatcher = dispatcher_of(database, outgoing, provider, Jobs(held), folder=tmp_path, places=PLACES)
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM emails WHERE id = ANY (%s::uuid[]) FOR UPDATE", (held,))
        dispatcher.start()
        until(lambda: len(waits) == PLACES - 1)
        mine = add(query, 5, user="few")
        until(lambda: set(mine) <= set(provider.mails))
        assert given_up == []
        assert len(waits) == PLACES - 1
    connection.close()
    until(lambda: len(provider.mails) == len(held) + len(mine))
    assert dispatcher.drain(30.0) == 0
    outgoing.close()
    assert sorted(provider.mails) == sorted([*held, *mine])


def test_who_waits_for_a_lock_has_no_connection(
    database: Database, query: Query, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three connections, six that wait for what is locked: each of them asks, and a seventh is answered."""
    outgoing = Outgoing(database, deadline=PATIENCE)
    asked: set[gevent.Greenlet] = set()
    run = database.run

    def noted(*arguments: Any) -> object:
        asked.add(gevent.getcurrent())
        return run(*arguments)

    monkeypatch.setattr(database, "run", noted)
    held, free = add(query, 6), add(query, 1)
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE emails SET status = 'canceled' WHERE id = ANY (%s::uuid[])", (held[:3],))
        cursor.execute("SELECT FROM emails WHERE id = ANY (%s::uuid[]) FOR UPDATE", (held[3:],))
        waiting = [gevent.spawn(outgoing.claim, [email_id]) for email_id in held]
        # First, since who does not wait between its statements keeps its connection, and is answered anyway.
        # Within less time than a lost try takes (half of PATIENCE).
        until(lambda: asked >= set(waiting), seconds=PATIENCE / 2.5)
        for _ in range(20):
            assert len(outgoing.claim(free)) == 1
            outgoing.put_back(free, 0.0)
        assert not any(each.dead for each in waiting)
    connection.close()
    assert [len(each.get(timeout=PATIENCE)) for each in waiting] == [0, 0, 0, 1, 1, 1]
