"""Rows whose claim has come to its end: what became of their mails is recorded for many at a time.

An event of a mail whose row stays as it is goes with them (`NotedRow`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final

import structlog

from relay.core import deadlines
from relay.core.errors import PostgresRefused
from relay.core.frozen import frozen
from relay.postgres import closed_rows, failed_rows, sent_rows
from relay.postgres.closed_rows import ClosedRow
from relay.postgres.database import ConnectionLost, Database
from relay.postgres.driver import Connection, Cursor
from relay.postgres.failed_rows import FailedRow
from relay.postgres.halving import in_halves
from relay.postgres.sent_rows import EVENTS, Event, Found, SentRow

log = structlog.get_logger(__name__)

#: What one statement of many rows may take, and how long it may wait for a lock; seconds. Beyond that each goes alone.
_SECONDS: Final = 1.0
_LOCK_SECONDS: Final = 0.1
#: Rows that are remembered as said.
_MOST_SAID: Final = 1000

_NOTE: Final = """
WITH given AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(sources)s::text[], %(types)s::text[], %(payloads)s::text[])
             AS given (id, source_id, type, payload)),
free AS (SELECT e.id, e.user_id FROM emails e JOIN given ON given.id = e.id),
changed AS (SELECT id, user_id FROM free),"""

EndedRow = SentRow | FailedRow | ClosedRow


@frozen
class NotedRow:
    """An event of a mail whose row stays as it is."""

    email_id: str
    event: Event


Row = EndedRow | NotedRow


class EndedRows:
    """Records them, each with its events. To record a row twice is harmless.

    What Postgres refuses of a statement, and what a trigger passes over, is left to a statement by itself, which says
    so; the others stay together.
    """

    def __init__(self, database: Database, *, deadline: float, deliveries_due: Callable[[], None] | None) -> None:
        """`deliveries_due`: called when webhook deliveries have been made."""
        self._deliveries_due = deliveries_due
        self._database = database
        self._deadline = deadline
        #: Used by `record_together` alone, which runs once at a time.
        self._connection: Connection | None = None
        #: Rows that a trigger passes over, and that have been said; the last ones.
        self._passed_over: deque[str] = deque(maxlen=_MOST_SAID)

    def record_together(self, rows: Sequence[Row]) -> list[bool | None]:
        """True for each that is recorded; None for one that is to be recorded alone. Locks of others are hardly waited
        for, so that no row holds up the others.
        """
        deadline = deadlines.after(self._deadline)
        found: Found = {}

        def record(some: Sequence[Row]) -> Sequence[object]:
            found.update(self._record_some(some, deadline))
            return some

        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._database.connect(
                    deadline, statement_seconds=_SECONDS, lock_seconds=_LOCK_SECONDS
                )
        except ConnectionLost:
            return [None] * len(rows)
        # Each statement by itself: one that is refused has nothing of the others tried again.
        for _, same in groupby(sorted(rows, key=_statement), _statement):
            in_halves(list(same), record)
        self._tell(found)
        return [True if found.get(row.email_id) is not None else None for row in rows]

    def _record_some(self, rows: Sequence[Row], deadline: float) -> Found:
        """Records rows of one statement on the connection that is kept. Raises ConnectionLost and Rejected."""
        if self._connection is None or self._connection.closed or deadlines.seconds_left(deadline) < _LOCK_SECONDS:
            raise ConnectionLost(unclear=False)
        return self._database.run(self._connection, deadline, lambda cursor: _record(cursor, rows, waits=False))

    def record_alone(self, row: Row) -> bool:
        """Records one row; True, also where the row is of a status that stays, or no longer this process's, or gone.

        Raises PostgresUnavailable, PostgresRefused where it will be so again, and Unstorable.
        """
        deadline = deadlines.after(self._deadline)
        found = self._database.use(deadline, lambda cursor: _record(cursor, [row], waits=True))
        self._tell(found)
        if None in found.values():
            if row.email_id not in self._passed_over:
                log.error("row_passed_over", email_id=row.email_id)
                self._passed_over.append(row.email_id)
            raise PostgresRefused
        return True

    def _tell(self, found: Mapping[str, bool | None]) -> None:
        if self._deliveries_due is not None and any(found.values()):
            self._deliveries_due()

    def close(self) -> None:
        """Closes the connection that is kept."""
        if self._connection is not None:
            self._connection.close()


def _statement(row: Row) -> str:
    """Names the statement that records a row."""
    if isinstance(row, FailedRow):
        return "delayed" if row.seconds is not None else "failed"
    return type(row).__name__


def _record(cursor: Cursor, rows: Sequence[Row], *, waits: bool) -> Found:
    """Records rows of one statement."""
    found: Found = {}
    sent = [row for row in rows if isinstance(row, SentRow)]
    failed = [row for row in rows if isinstance(row, FailedRow)]
    closed = [row for row in rows if isinstance(row, ClosedRow)]
    noted = [row for row in rows if isinstance(row, NotedRow)]
    if sent:
        found |= sent_rows.record(cursor, sent, waits=waits)
    if failed:
        found |= failed_rows.record(cursor, failed, waits=waits)
    if closed:
        found |= closed_rows.record(cursor, closed, waits=waits)
    if noted:
        cursor.execute(_NOTE + EVENTS, _events(noted))
        found |= dict(cursor)
    return found


def _events(rows: Sequence[NotedRow]) -> dict[str, object]:
    return {
        "ids": [row.email_id for row in rows],
        "sources": [row.event.source_id for row in rows],
        "types": [row.event.type for row in rows],
        "payloads": [row.event.document for row in rows],
    }
