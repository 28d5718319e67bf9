"""Whole tables, read from one snapshot of Postgres without holding them in memory (server-side cursors)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Self

import psycopg2

from relay.core.api_keys import KeyRecord
from relay.core.errors import PostgresUnavailable
from relay.core.spellings import mailbox_of
from relay.postgres.database import ConnectionLost, Database
from relay.postgres.driver import Connection, Cursor
from relay.postgres.store import KEY_COLUMNS, readable_keys

_PAGE_ROWS: Final = 10_000

_KEY_FILTER: Final = """
   AND (%(user)s IS NULL OR k.user_id = %(user)s)
   AND (%(within)s IS NULL OR k.last_used_at >= now() - %(within)s::interval)"""
_KEYS: Final = KEY_COLUMNS + _KEY_FILTER
_COUNT_KEYS: Final = f"SELECT count(*) FROM api_keys k WHERE k.user_id <> ''{_KEY_FILTER}"  # noqa: S608 - a constant
_COUNT_SUPPRESSIONS: Final = "SELECT count(*) FROM email_suppressions WHERE %(user)s IS NULL OR user_id = %(user)s"
# Both in the order of the users, so that they are read side by side.
_LIST_SIZES: Final = """
SELECT u.user_id, coalesce(c.size, 0)
  FROM (SELECT user_id FROM api_keys WHERE user_id <> '' UNION SELECT user_id FROM email_suppressions) u
  LEFT JOIN (SELECT user_id, count(*) AS size FROM email_suppressions GROUP BY user_id) c USING (user_id)
 WHERE %(user)s IS NULL OR u.user_id = %(user)s
 ORDER BY u.user_id"""
_SUPPRESSIONS: Final = """
SELECT email FROM email_suppressions WHERE %(user)s IS NULL OR user_id = %(user)s ORDER BY user_id"""


class Snapshot:
    """One read-only transaction, as a context manager: everything in it is as of the same moment.

    Long, so not for a process that serves mail. Every method raises PostgresUnavailable, with libpq's error as its
    cause.
    """

    #: From `__enter__` on.
    _connection: Connection

    def __init__(self, database_url: str) -> None:
        self._database = Database(database_url, statement_seconds=0, idle_limit=1)
        self._cursors = 0

    def __enter__(self) -> Self:
        try:
            self._connection = self._database.connect(time.monotonic() + 10.0)
        except ConnectionLost as lost:
            raise PostgresUnavailable() from lost.__cause__
        self._connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def count_api_keys(self, user_id: str | None, active_within: timedelta | None) -> int:
        """How many `api_keys` will yield."""
        return self._number(_COUNT_KEYS, {"user": user_id, "within": active_within})

    def api_keys(self, user_id: str | None, active_within: timedelta | None) -> Iterator[tuple[str, KeyRecord]]:
        """Keys that may authenticate, with their token hashes: of one user or of all, used within that time or ever."""
        with self._stream(_KEYS, {"user": user_id, "within": active_within}) as rows:
            yield from readable_keys(rows)

    def count_suppressions(self, user_id: str | None) -> int:
        """How many addresses `suppression_lists` will yield in all."""
        return self._number(_COUNT_SUPPRESSIONS, {"user": user_id})

    def suppression_lists(self, user_id: str | None) -> Iterator[tuple[str, int, Iterator[list[str]]]]:
        """For each user: id, number of suppressed addresses, and the addresses (comparison form) page by page.

        A user's pages have to be taken before the next user. Users with an API key and an empty list are among them.
        """
        parameters = {"user": user_id}
        with self._stream(_LIST_SIZES, parameters) as users, self._stream(_SUPPRESSIONS, parameters) as rows:
            for user, number in users:
                yield user, number, _pages(rows, number)

    def _number(self, statement: str, parameters: Mapping[str, object]) -> int:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                ((number,),) = cursor.fetchall()
                return int(number)
        except psycopg2.Error as error:
            raise PostgresUnavailable() from error

    @contextmanager
    def _stream(self, statement: str, parameters: Mapping[str, object]) -> Iterator[Cursor]:
        self._cursors += 1
        try:
            with self._connection.cursor(f"stream_{self._cursors}") as cursor:
                cursor.itersize = _PAGE_ROWS
                cursor.execute(statement, parameters)
                yield cursor
        except psycopg2.Error as error:
            raise PostgresUnavailable() from error


def _pages(cursor: Cursor, number: int) -> Iterator[list[str]]:
    while number > 0:
        rows = cursor.fetchmany(min(number, _PAGE_ROWS))
        if not rows:
            return
        number -= len(rows)
        yield [mailbox_of(email) for (email,) in rows]
