"""What one user's mail may wait for in Postgres, for real: an open transaction, a slow trigger, a slow look-up.

Each takes the URL of a database, and a function that runs a statement there. It lasts until its block ends, or, where
it is no lock, for TROUBLE_SECONDS each time; what it makes in the database stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2

Query = Callable[..., Any]

#: The user whose mail is in trouble.
SLOW = "slow"
#: How long what is slow takes; what is locked stays so for as long as a test needs.
TROUBLE_SECONDS = 5.0


@contextlib.contextmanager
def open_transaction(url: str, *statements: str) -> Iterator[None]:
    """Holds what the statements lock, until the block ends."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        yield
    finally:
        connection.rollback()
        connection.close()


def hold_keys(*keys: str) -> str:
    """As REST, about to store mails with these keys of the slow user."""
    values = ", ".join(f"(gen_random_uuid(), 'a@x', '[]', 's', '{SLOW}', '{key}')" for key in keys)
    return f'INSERT INTO emails (id, "from", "to", subject, user_id, idempotency_key) VALUES {values}'


@contextlib.contextmanager
def a_key_in_an_open_transaction(url: str, _query: Query) -> Iterator[None]:
    with open_transaction(url, hold_keys("key-0")):
        yield


@contextlib.contextmanager
def many_keys_in_an_open_transaction(url: str, _query: Query) -> Iterator[None]:
    with open_transaction(url, hold_keys(*[f"key-{number}" for number in range(40)])):
        yield


@contextlib.contextmanager
def a_slow_trigger(_url: str, query: Query) -> Iterator[None]:
    trigger(query, f"PERFORM pg_sleep({TROUBLE_SECONDS})")
    yield


@contextlib.contextmanager
def a_trigger_that_waits_for_a_lock(url: str, query: Query) -> Iterator[None]:
    query("CREATE TABLE counters (user_id text PRIMARY KEY, mails int)")
    query("INSERT INTO counters VALUES (%s, 0)", SLOW)
    trigger(query, "UPDATE counters SET mails = mails + 1 WHERE user_id = NEW.user_id")
    with open_transaction(url, "UPDATE counters SET mails = 0"):
        yield


@contextlib.contextmanager
def a_slow_suppression_list(_url: str, query: Query) -> Iterator[None]:
    slow_suppressions(query)
    yield


def trigger(query: Query, statement: str) -> None:
    query(
        "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN IF NEW.user_id = '{SLOW}' THEN {statement}; END IF; RETURN NEW; END$$"
    )
    query("CREATE TRIGGER trouble BEFORE INSERT ON emails FOR EACH ROW EXECUTE FUNCTION trouble()")


def slow_suppressions(query: Query) -> None:
    """A view takes the place of the table: a look at the slow user's entry takes long, as if it were full of dead rows,
    and finds nothing."""
    for email in ("to@x.example", "a@x.example"):
        query(
            "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (gen_random_uuid(), %s, %s, 'bounced')",
            SLOW,
            email,
        )
    query("ALTER TABLE email_suppressions RENAME TO listed")
    query(
        "CREATE FUNCTION look() RETURNS boolean LANGUAGE plpgsql AS"
        f" $$BEGIN PERFORM pg_sleep({TROUBLE_SECONDS}); RETURN false; END$$"
    )
    query(f"CREATE VIEW email_suppressions AS SELECT * FROM listed WHERE user_id <> '{SLOW}' OR look()")


TROUBLES = [
    a_key_in_an_open_transaction,
    many_keys_in_an_open_transaction,
    a_slow_trigger,
    a_trigger_that_waits_for_a_lock,
    a_slow_suppression_list,
]
