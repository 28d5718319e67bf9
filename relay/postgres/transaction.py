"""Several statements as one transaction, on a connection that commits each by itself otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg2

from relay.postgres.driver import Cursor

_T = TypeVar("_T")


def in_transaction(cursor: Cursor, work: Callable[[], _T], *, begin: str = "BEGIN") -> _T:
    """`work()` between `begin` and COMMIT. What it raises goes through, and nothing of it stays.

    A statement that the server refuses leaves the connection good, so that the refusal is not taken for a loss. After
    anything else it is closed: no other caller could use it, and the server rolls back.
    """
    try:
        cursor.execute(begin)
        result = work()
        cursor.execute("COMMIT")
    except psycopg2.Error:
        if not cursor.connection.closed:
            cursor.execute("ROLLBACK")
        raise
    except BaseException:
        cursor.connection.close()
        raise
    return result
