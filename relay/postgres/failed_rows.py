"""Rows whose mail the provider does not have: tried again later, or failed; many in one statement, each with its event
(contract sections 3 and 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from relay.core.frozen import frozen
from relay.postgres.driver import Cursor
from relay.postgres.sent_rows import EVENTS, Event, Found

#: A row is changed as its claim left it: the claim has not been given up, and the row not claimed anew.
_RECORD: Final = """
WITH given AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(marks)s::timestamptz[], %(attempts)s::int[], %(seconds)s::float8[],
                       %(codes)s::text[], %(messages)s::text[], %(sources)s::text[], %(types)s::text[],
                       %(payloads)s::text[])
             AS given (id, mark, attempt, seconds, code, message, source_id, type, payload)),
free AS (
  SELECT e.id FROM emails e JOIN given ON given.id = e.id
   WHERE e.status = 'processing' AND e.provider_last_attempted_at = given.mark FOR UPDATE OF e {locked}),
updated AS (
  UPDATE emails e
     SET {assignments}, provider_retry_count = given.attempt, provider_last_attempted_at = now(),
         provider_last_error_code = given.code, provider_last_error_message = given.message
    FROM free JOIN given ON given.id = free.id WHERE e.id = free.id RETURNING e.id, e.user_id, e.status),
changed AS (SELECT id, user_id FROM updated WHERE status <> 'processing'),"""
_LATER: Final = "status = 'queued', provider_next_retry_at = now() + make_interval(secs => given.seconds)"
_FAILED: Final = "status = 'failed', provider_next_retry_at = NULL, provider_dead_lettered_at = now()"
#: Characters that the columns of code and message have room for.
_MOST_OF_CODE: Final = 255
_MOST_OF_MESSAGE: Final = 1000


@frozen
class FailedRow:
    """A mail that failed. `mark`: as its claim wrote it; None: not known, and nothing is recorded."""

    email_id: str
    mark: datetime | None
    event: Event
    #: How often it has been tried.
    attempt: int
    #: Seconds until it is tried again; None: it has failed for good.
    seconds: float | None
    code: str
    message: str


def record(cursor: Cursor, rows: Sequence[FailedRow], *, waits: bool) -> Found:
    """As `relay.postgres.sent_rows.record`. One statement for what is tried again, and one for the others."""
    found: Found = {}
    for assignments, some in (
        (_LATER, [row for row in rows if row.seconds is not None]),
        (_FAILED, [row for row in rows if row.seconds is None]),
    ):
        if some:
            statement = _RECORD.format(locked="" if waits else "SKIP LOCKED", assignments=assignments) + EVENTS
            cursor.execute(statement, _values(some))
            found |= dict(cursor)
    return found


def _values(rows: Sequence[FailedRow]) -> dict[str, object]:
    return {
        "ids": [row.email_id for row in rows],
        "marks": [row.mark for row in rows],
        "attempts": [row.attempt for row in rows],
        "seconds": [row.seconds for row in rows],
        "codes": [_text_of(row.code, _MOST_OF_CODE) for row in rows],
        "messages": [_text_of(row.message, _MOST_OF_MESSAGE) for row in rows],
        "sources": [row.event.source_id for row in rows],
        "types": [row.event.type for row in rows],
        "payloads": [row.event.document for row in rows],
    }


def _text_of(words: str, most: int) -> str:
    """What a column of so many characters may hold of what others have said: Postgres takes no NUL in a text."""
    return words.replace("\0", "")[:most]
