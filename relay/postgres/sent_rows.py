"""Rows whose mail a provider has: many in one statement, each with its event (contract sections 3 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import orjson

from relay.core import deadlines
from relay.core.errors import PostgresUnavailable
from relay.core.frozen import frozen
from relay.core.json_document import without_nul
from relay.postgres.database import ConnectionLost, Database, Rejected
from relay.postgres.driver import Connection, Cursor
from relay.postgres.events import DELIVERIES

#: What one statement of many rows may take, and how long it may wait for a lock; seconds. Beyond that each goes alone.
_SECONDS: Final = 1.0
_LOCK_SECONDS: Final = 0.1

#: A status that an event of SES has moved on stays. `queued`: the claim was given up meanwhile; it is not to be sent
#: once more. The event's source id is unique, so that what is said twice is recorded once.
_RECORD: Final = """
WITH given AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(sources)s::text[], %(types)s::text[], %(payloads)s::text[])
             AS given (id, source_id, type, payload)),
free AS (
  SELECT e.id FROM emails e JOIN given ON given.id = e.id
   WHERE e.status IN ('processing', 'queued', 'delivered', 'bounced', 'complained') FOR UPDATE OF e {locked}),
changed AS (
  UPDATE emails e
     SET status = CASE WHEN e.status IN ('processing', 'queued') THEN 'sent' ELSE e.status END, sent_at = now(),
         provider_next_retry_at = NULL, provider_dead_lettered_at = NULL,
         provider_last_error_code = NULL, provider_last_error_message = NULL
    FROM free WHERE e.id = free.id RETURNING e.id, e.user_id),
event AS (
  INSERT INTO email_events (id, email_id, source_id, type, payload, user_id, received_at)
  SELECT gen_random_uuid(), changed.id, given.source_id, given.type, given.payload::jsonb, changed.user_id, now()
    FROM changed JOIN given ON given.id = changed.id WHERE given.type IS NOT NULL
  ON CONFLICT DO NOTHING RETURNING id, user_id, type),
deliveries AS ({deliveries} RETURNING 1)
SELECT id::text, EXISTS (SELECT FROM deliveries) FROM changed"""
_WAITING: Final = _RECORD.format(locked="", deliveries=DELIVERIES)
_PASSING_OVER: Final = _RECORD.format(locked="SKIP LOCKED", deliveries=DELIVERIES)


@frozen
class Event:
    """An event to record with a change of status (contract section 3). `source_id`: the same one is recorded once."""

    type: str
    source_id: str
    payload: Mapping[str, object]

    @property
    def document(self) -> str:
        """The payload as JSON that jsonb can hold: without NULs."""
        return without_nul(orjson.dumps(self.payload)).decode()


SentRow = tuple[str, Event | None]


class SentRows:
    """Records rows as sent: id, and the event that goes with it. Every method raises PostgresUnavailable."""

    def __init__(self, database: Database, *, deadline: float, deliveries_due: Callable[[], None] | None) -> None:
        """`deliveries_due`: called when webhook deliveries have been made."""
        self._deliveries_due = deliveries_due
        self._database = database
        self._deadline = deadline
        #: Used by `record_together` alone, which runs once at a time.
        self._connection: Connection | None = None

    def record_together(self, rows: Sequence[SentRow]) -> list[bool | None]:
        """True for each that is recorded; None for one that is to be recorded alone. Locks of others are hardly waited
        for, so that no row holds up the others.
        """
        deadline = deadlines.after(self._deadline)
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._database.connect(
                    deadline, statement_seconds=_SECONDS, lock_seconds=_LOCK_SECONDS
                )
            done = self._database.run(self._connection, deadline, lambda cursor: _record(cursor, _PASSING_OVER, rows))
        except (ConnectionLost, Rejected):
            raise PostgresUnavailable() from None
        self._tell(done)
        return [email_id in done or None for email_id, _ in rows]

    def record_alone(self, row: SentRow) -> bool:
        """Records one row; True, also where the row is of a status that stays."""
        self._tell(self._database.use(deadlines.after(self._deadline), lambda cursor: _record(cursor, _WAITING, [row])))
        return True

    def _tell(self, done: Mapping[str, bool]) -> None:
        if self._deliveries_due is not None and any(done.values()):
            self._deliveries_due()

    def close(self) -> None:
        """Closes the connection that is kept."""
        if self._connection is not None:
            self._connection.close()


def _record(cursor: Cursor, statement: str, rows: Sequence[SentRow]) -> dict[str, bool]:
    """The rows that are recorded, and whether webhook deliveries have been made with any of them."""
    values = {
        "ids": [email_id for email_id, _ in rows],
        "sources": [event.source_id if event else None for _, event in rows],
        "types": [event.type if event else None for _, event in rows],
        "payloads": [event.document if event else None for _, event in rows],
    }
    cursor.execute(statement, values)
    return dict(cursor)
