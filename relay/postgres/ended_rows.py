"""Rows whose claim has come to its end: what became of their mails is recorded for many at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from relay.core import deadlines
from relay.postgres import closed_rows, failed_rows, sent_rows
from relay.postgres.closed_rows import ClosedRow
from relay.postgres.database import ConnectionLost, Database, Rejected
from relay.postgres.driver import Connection, Cursor
from relay.postgres.failed_rows import FailedRow
from relay.postgres.sent_rows import SentRow

#: What one statement of many rows may take, and how long it may wait for a lock; seconds. Beyond that each goes alone.
_SECONDS: Final = 1.0
_LOCK_SECONDS: Final = 0.1

EndedRow = SentRow | FailedRow | ClosedRow


class EndedRows:
    """Records them, each with its events. To record a row twice is harmless."""

    def __init__(self, database: Database, *, deadline: float, deliveries_due: Callable[[], None] | None) -> None:
        """`deliveries_due`: called when webhook deliveries have been made."""
        self._deliveries_due = deliveries_due
        self._database = database
        self._deadline = deadline
        #: Used by `record_together` alone, which runs once at a time.
        self._connection: Connection | None = None

    def record_together(self, rows: Sequence[EndedRow]) -> list[bool | None]:
        """True for each that is recorded; None for one that is to be recorded alone. Locks of others are hardly waited
        for, so that no row holds up the others.
        """
        deadline = deadlines.after(self._deadline)
        done: dict[str, bool] = {}
        # Those of the statements before the one that failed are recorded. The others go alone.
        with suppress(ConnectionLost, Rejected):
            if self._connection is None or self._connection.closed:
                self._connection = self._database.connect(
                    deadline, statement_seconds=_SECONDS, lock_seconds=_LOCK_SECONDS
                )
            self._database.run(self._connection, deadline, lambda cursor: _record(cursor, rows, done, waits=False))
        self._tell(done)
        return [row.email_id in done or None for row in rows]

    def record_alone(self, row: EndedRow) -> bool:
        """Records one row; True, also where the row is of a status that stays, or no longer this process's.

        Raises PostgresUnavailable, PostgresRefused where it will be so again, and Unstorable.
        """
        deadline = deadlines.after(self._deadline)
        done: dict[str, bool] = {}
        self._database.use(deadline, lambda cursor: _record(cursor, [row], done, waits=True))
        self._tell(done)
        return True

    def _tell(self, done: Mapping[str, bool]) -> None:
        if self._deliveries_due is not None and any(done.values()):
            self._deliveries_due()

    def close(self) -> None:
        """Closes the connection that is kept."""
        if self._connection is not None:
            self._connection.close()


def _record(cursor: Cursor, rows: Sequence[EndedRow], done: dict[str, bool], *, waits: bool) -> None:
    """Adds to `done` what each statement has recorded, a kind of rows at a time."""
    sent = [row for row in rows if isinstance(row, SentRow)]
    failed = [row for row in rows if isinstance(row, FailedRow)]
    closed = [row for row in rows if isinstance(row, ClosedRow)]
    if sent:
        done |= sent_rows.record(cursor, sent, waits=waits)
    if failed:
        done |= failed_rows.record(cursor, failed, waits=waits)
    if closed:
        done |= closed_rows.record(cursor, closed, waits=waits)
