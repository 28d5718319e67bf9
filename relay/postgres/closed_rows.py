"""Rows that end neither as sent nor as failed: some recipients are refused, all are suppressed, or the mail is
simulated. Many in one statement, each with its events and suppressions (contract sections 3 and 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from relay.core.frozen import frozen
from relay.postgres.driver import Cursor
from relay.postgres.sent_rows import Event, Found, events_of

_BEGIN: Final = """
WITH given AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(marks)s::timestamptz[], %(statuses)s::text[]) AS given (id, mark, status)),
said AS (
  SELECT * FROM unnest(%(mails)s::uuid[], %(sources)s::text[], %(types)s::text[], %(payloads)s::text[])
             AS said (id, source_id, type, payload)),
free AS (
  SELECT e.id FROM emails e JOIN given ON given.id = e.id WHERE {condition} FOR UPDATE OF e {locked}),
updated AS (
  UPDATE emails e SET {assignments}
    FROM free JOIN given ON given.id = free.id WHERE e.id = free.id RETURNING e.id, e.user_id, e.status),
changed AS (SELECT id, user_id FROM updated WHERE status NOT IN ('processing', 'queued')),"""

#: The provider has these mails, also where their rows have been claimed anew meanwhile, as in `sent_rows`.
_HAS_LEFT: Final = "e.status IN ('processing', 'queued', 'sent', 'delivered', 'bounced', 'complained')"
_BOUNCED: Final = (
    "status = CASE WHEN e.status IN ('processing', 'queued', 'sent') THEN given.status ELSE e.status END,"
    " sent_at = now(), provider_next_retry_at = NULL, provider_dead_lettered_at = NULL"
)

#: No provider has these. A row is changed as its claim left it, as in `failed_rows`.
_CLAIMED: Final = "e.status = 'processing' AND e.provider_last_attempted_at = given.mark"
_UNSENT: Final = (
    "status = given.status, sent_at = CASE given.status WHEN 'suppressed' THEN e.sent_at ELSE now() END,"
    " provider_next_retry_at = NULL"
)
#: What is longer is no address, and the column has no room for it. Of an address that stands in several mails the last
#: one counts, as if each went alone. No upsert by `excluded`, for which the role would have to be let read the columns.
_SUPPRESSIONS: Final = """
learned AS (
  SELECT DISTINCT ON (changed.user_id, a.address) changed.user_id, a.address, a.reason, a.source_id, a.id,
         jsonb_build_object('source', 'ses', 'sourceEventId', a.source_id, 'sourceEmailId', a.id,
                            'sourceMessageId', 'sandbox-' || a.id) AS metadata
    FROM (SELECT n, id, lower(trim(address)) AS address, reason, source_id
            FROM unnest(%(suppressed_of)s::uuid[], %(addresses)s::text[], %(reasons)s::text[],
                        %(suppressed_by)s::text[]) WITH ORDINALITY AS a (id, address, reason, source_id, n)) AS a
    JOIN changed ON changed.id = a.id
   WHERE changed.user_id <> '' AND length(a.address) <= 512
   ORDER BY changed.user_id, a.address, a.n DESC),
known AS (
  UPDATE email_suppressions s SET reason = l.reason, source_event_id = l.source_id, source_email_id = l.id,
         source_message_id = 'sandbox-' || l.id, metadata = l.metadata, updated_at = now()
    FROM learned l WHERE s.user_id = l.user_id AND s.email = l.address),
new AS (
  INSERT INTO email_suppressions (id, user_id, email, reason, source_event_id, source_email_id, source_message_id,
         metadata, suppressed_at, updated_at)
  SELECT gen_random_uuid(), user_id, address, reason, source_id, id, 'sandbox-' || id, metadata, now(), now()
    FROM learned
  ON CONFLICT (user_id, email) DO NOTHING),"""

#: Characters of a mail's addresses beyond which it shares no statement: a simulated mail may be to thousands.
_MOST_SHARED: Final = 4096


@frozen
class BouncedRow:
    """A mail that the provider has and refused for some of its recipients, which the events name."""

    email_id: str
    events: Sequence[Event]


@frozen
class UnsentRow:
    """A mail that no provider gets. `mark`: as its claim wrote it; None: not known, and nothing is recorded."""

    email_id: str
    mark: datetime | None
    #: Its last one.
    status: str
    events: Sequence[Event]
    #: The recipients, and the reason for which they are suppressed for the mail's user; None: they are not.
    addresses: Sequence[str] = ()
    reason: str | None = None

    @property
    def large(self) -> bool:
        """Whether it goes alone, since a statement of many such rows would take too much memory."""
        return sum(map(len, self.addresses)) > _MOST_SHARED


ClosedRow = BouncedRow | UnsentRow


def record(cursor: Cursor, rows: Sequence[ClosedRow], *, waits: bool) -> Found:
    """As `relay.postgres.sent_rows.record`. One statement for what the provider has, and one for the others."""
    found: Found = {}
    locked = "" if waits else "SKIP LOCKED"
    bounced = [row for row in rows if isinstance(row, BouncedRow)]
    if bounced:
        begin = _BEGIN.format(condition=_HAS_LEFT, assignments=_BOUNCED, locked=locked)
        statuses = {"marks": [None] * len(bounced), "statuses": ["bounced"] * len(bounced)}
        cursor.execute(begin + events_of("said"), {**_values(bounced), **statuses})
        found |= dict(cursor)
    unsent = [row for row in rows if isinstance(row, UnsentRow)]
    if unsent:
        begin = _BEGIN.format(condition=_CLAIMED, assignments=_UNSENT, locked=locked)
        statuses = {"marks": [row.mark for row in unsent], "statuses": [row.status for row in unsent]}
        values = {**_values(unsent), **statuses, **_suppressions(unsent)}
        cursor.execute(begin + _SUPPRESSIONS + events_of("said"), values)
        found |= dict(cursor)
    return found


def _values(rows: Sequence[ClosedRow]) -> dict[str, object]:
    said = [(row.email_id, event) for row in rows for event in row.events]
    return {
        "ids": [row.email_id for row in rows],
        "mails": [email_id for email_id, _ in said],
        "sources": [event.source_id for _, event in said],
        "types": [event.type for _, event in said],
        "payloads": [event.document for _, event in said],
    }


def _suppressions(rows: Sequence[UnsentRow]) -> dict[str, object]:
    suppressed = [(row, address) for row in rows if row.reason is not None for address in row.addresses]
    return {
        "suppressed_of": [row.email_id for row, _ in suppressed],
        "addresses": [address for _, address in suppressed],
        "reasons": [row.reason for row, _ in suppressed],
        "suppressed_by": [row.events[-1].source_id for row, _ in suppressed],
    }
