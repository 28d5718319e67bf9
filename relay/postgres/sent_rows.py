"""Rows whose mail a provider has: many in one statement, each with its event (contract sections 3 and 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from relay.core.frozen import frozen
from relay.core.json_document import without_nul
from relay.postgres.driver import Cursor
from relay.postgres.events import DELIVERIES

#: `changed`: a row that a trigger has kept as it was (RETURN OLD) counts as updated, and has not changed.
#: A status that an event of SES has moved on stays. `queued`: the claim was given up meanwhile; it is not to be sent
#: once more. The event's source id is unique, so that what is said twice is recorded once.
_RECORD: Final = """
WITH given AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(sources)s::text[], %(types)s::text[], %(payloads)s::text[])
             AS given (id, source_id, type, payload)),
free AS (
  SELECT e.id FROM emails e JOIN given ON given.id = e.id
   WHERE e.status IN ('processing', 'queued', 'delivered', 'bounced', 'complained') FOR UPDATE OF e {locked}),
updated AS (
  UPDATE emails e
     SET status = CASE WHEN e.status IN ('processing', 'queued') THEN 'sent' ELSE e.status END, sent_at = now(),
         provider_next_retry_at = NULL, provider_dead_lettered_at = NULL,
         provider_last_error_code = NULL, provider_last_error_message = NULL
    FROM free WHERE e.id = free.id RETURNING e.id, e.user_id, e.status),
changed AS (SELECT id, user_id FROM updated WHERE status NOT IN ('processing', 'queued')),"""


def events_of(given: str) -> str:
    """Ends a statement: the events of each row that has changed, with their webhook deliveries.

    `given`: the CTE with id (of the mail), source_id, type and payload of each event. `changed` is another one, and
    `free`, the rows that were to be changed. It returns a row for each item of `Found`.
    """
    return f"""
event AS (
  INSERT INTO email_events (id, email_id, source_id, type, payload, user_id, received_at)
  SELECT gen_random_uuid(), changed.id, given.source_id, given.type, given.payload::jsonb, changed.user_id, now()
    FROM changed JOIN {given} AS given ON given.id = changed.id WHERE given.type IS NOT NULL
  ON CONFLICT DO NOTHING RETURNING id, user_id, type),
deliveries AS ({DELIVERIES} RETURNING 1)
SELECT free.id::text, CASE WHEN changed.id IS NOT NULL THEN EXISTS (SELECT FROM deliveries) END
  FROM free LEFT JOIN changed ON changed.id = free.id"""  # noqa: S608 - fixed texts


EVENTS: Final = events_of("given")
_WAITING: Final = _RECORD.format(locked="") + EVENTS
_PASSING_OVER: Final = _RECORD.format(locked="SKIP LOCKED") + EVENTS


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


@frozen
class SentRow:
    """A mail that the provider has, and the event that is recorded with it."""

    email_id: str
    event: Event | None


#: Rows that were to be changed: whether webhook deliveries have been made with any of them; None for a row that has
#: not changed, since a trigger has passed over it or kept it as it was.
Found = dict[str, bool | None]


def record(cursor: Cursor, rows: Sequence[SentRow], *, waits: bool) -> Found:
    """Records those of these rows that are still to be recorded; what it found.

    `waits`: for locks of others; else what is locked is passed over.
    """
    values = {
        "ids": [row.email_id for row in rows],
        "sources": [row.event.source_id if row.event else None for row in rows],
        "types": [row.event.type if row.event else None for row in rows],
        "payloads": [row.event.document if row.event else None for row in rows],
    }
    cursor.execute(_WAITING if waits else _PASSING_OVER, values)
    return dict(cursor)
