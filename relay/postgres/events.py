"""Events that come back, with the webhook deliveries that follow from them: one statement for all that wait.

Each event comes as a JSON object, the form in which it is also kept while Postgres is away (`relay.redis.kept_events`).
To write one twice is harmless: a tracking event is known by its id, an event of SES by its source id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from relay.core import deadlines
from relay.core.errors import PostgresUnavailable
from relay.postgres.database import ConnectionLost, Database
from relay.postgres.driver import Cursor

_T = TypeVar("_T")

#: Each webhook that wants an event. Behind a CTE `event` with id, user_id and type; a type with a full stop is the
#: webhook's type as it stands (contract section 3).
_WANTED: Final = """
  FROM event JOIN webhooks w ON w.user_id = event.user_id AND w.status = 'active' AND w.event_types @>
       jsonb_build_array(CASE strpos(event.type, '.') WHEN 0 THEN 'email.' || event.type ELSE event.type END)"""

_INSERT: Final = "INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status, created_at)"

#: A pending delivery for each webhook that wants an event, where that CTE is.
DELIVERIES: Final = f"""
{_INSERT}
SELECT gen_random_uuid(), w.id, event.id, 0, 'pending', now() {_WANTED}"""

#: The same as two CTEs, the first of which has the ids of the deliveries: to read them from the table needs a right.
_DUE: Final = f"""
due AS MATERIALIZED (SELECT gen_random_uuid() AS id, w.id AS webhook_id, event.id AS event_id {_WANTED}),
deliveries AS ({_INSERT} SELECT id, webhook_id, event_id, 0, 'pending', now() FROM due)"""  # noqa: S608 - fixed texts

_TRACKING: Final = f"""
WITH given AS (
  SELECT * FROM jsonb_to_recordset(%(documents)s::jsonb) AS g (
         id uuid, type text, user_id text, email_id uuid, domain_id uuid, payload jsonb, received_at timestamptz)),
event AS (
  INSERT INTO email_events (id, email_id, type, payload, user_id, received_at)
  SELECT g.id, g.email_id, g.type, g.payload, g.user_id, g.received_at
    FROM given g JOIN emails e ON e.id = g.email_id AND e.user_id = g.user_id
         JOIN domains d ON d.id = g.domain_id AND d.user_id = g.user_id
          AND CASE g.type WHEN 'email.opened' THEN d.track_opens ELSE d.track_clicks END
  ON CONFLICT (id) DO NOTHING RETURNING id, user_id, type), {_DUE}
SELECT event.id::text, due.id::text FROM event LEFT JOIN due ON due.event_id = event.id"""  # noqa: S608 - fixed texts

#: Of several events of one mail the first one that is final decides, else that it is delivered. A mail that bounced, or
#: that a recipient complained about, stays so, in whatever order the events come.
_SES: Final = f"""
WITH given AS (
  SELECT * FROM jsonb_to_recordset(%(documents)s::jsonb) AS g (
         n int, id uuid, source_id text, type text, email_id uuid, payload jsonb, received_at timestamptz,
         recipients jsonb, reason text, message_id text)),
known AS (SELECT g.*, e.user_id FROM given g JOIN emails e ON e.id = g.email_id),
event AS (
  INSERT INTO email_events (id, email_id, source_id, type, payload, user_id, received_at)
  SELECT id, email_id, source_id, type, payload, user_id, received_at FROM known ORDER BY n
  ON CONFLICT DO NOTHING RETURNING id, user_id, type),
fresh AS (SELECT known.* FROM known JOIN event ON event.id = known.id),
moved AS (
  UPDATE emails e SET status = latest.type
    FROM (SELECT DISTINCT ON (email_id) email_id, type FROM fresh
           WHERE type IN ('delivered', 'bounced', 'complained') ORDER BY email_id, type = 'delivered', n) AS latest
   WHERE e.id = latest.email_id AND (e.status IN ('queued', 'processing', 'sent', 'failed')
         OR (e.status = 'delivered' AND latest.type <> 'delivered'))),
learned AS (
  INSERT INTO email_suppressions AS s (id, user_id, email, reason, source_event_id, source_email_id, source_message_id,
         metadata, suppressed_at, updated_at)
  SELECT DISTINCT ON (user_id, address) gen_random_uuid(), user_id, address, reason, source_id, email_id, message_id,
         jsonb_build_object('source', 'ses', 'sourceEventId', source_id, 'sourceEmailId', email_id,
                            'sourceMessageId', message_id), now(), now()
    FROM fresh, jsonb_array_elements_text(recipients) AS address
   WHERE user_id IS NOT NULL ORDER BY user_id, address, reason DESC, n
  ON CONFLICT (user_id, email) DO UPDATE SET reason = excluded.reason, source_event_id = excluded.source_event_id,
         source_email_id = excluded.source_email_id, source_message_id = excluded.source_message_id,
         metadata = excluded.metadata, updated_at = now()
   WHERE NOT (s.reason = 'complained' AND excluded.reason = 'bounced')), {_DUE}
SELECT g.n, known.id IS NOT NULL, event.id IS NOT NULL, known.user_id, due.id::text
  FROM given g LEFT JOIN known ON known.id = g.id LEFT JOIN event ON event.id = g.id
  LEFT JOIN due ON due.event_id = event.id"""  # noqa: S608 - fixed texts


class Stored(NamedTuple):
    """What became of an event of SES. `known`: there is such a mail; `recorded`: this was the first time."""

    known: bool
    recorded: bool
    user_id: str | None


class Events:
    """What comes back, into its tables. Every method raises PostgresUnavailable within about `deadline` seconds, and
    Rejected where the server refuses what is in the statement."""

    def __init__(
        self,
        database: Database,
        *,
        deadline: float = 5.0,
        deliveries_due: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """`deliveries_due`: gets the ids of webhook deliveries that have been made, once they are committed."""
        self._database = database
        self._deadline = deadline
        self._deliveries_due = deliveries_due

    def write_tracking(self, documents: Sequence[bytes]) -> set[str]:
        """Opens and clicks, each for a mail and a domain of that user whose switch is on; the ids of those recorded.

        A document has id, type, user_id, email_id, domain_id, payload and received_at.
        """

        def write(cursor: Cursor) -> list[tuple[str, str | None]]:
            cursor.execute(_TRACKING, {"documents": (b"[" + b",".join(documents) + b"]").decode()})
            rows: list[tuple[str, str | None]] = cursor.fetchall()
            return rows

        rows = self._use(write)
        self._tell([delivery_id for _, delivery_id in rows if delivery_id is not None])
        return {event_id for event_id, _ in rows}

    def write_ses(self, documents: Sequence[bytes]) -> list[Stored]:
        """Events of SES, with the status of each mail and the suppressions that follow; what became of each, in order.

        A document has id, source_id, type, email_id, payload, received_at, and recipients (lower case) to be suppressed
        for a reason, with SES's message_id.
        """
        # A member that stands twice has its last value.
        numbered = [document[:-1] + b',"n":%d}' % n for n, document in enumerate(documents)]

        due: list[str] = []

        def write(cursor: Cursor) -> list[Stored]:
            cursor.execute(_SES, {"documents": (b"[" + b",".join(numbered) + b"]").decode()})
            found = {}
            due.clear()
            for n, known, recorded, user, delivery_id in cursor:
                found[n] = Stored(known=known, recorded=recorded, user_id=user)
                if delivery_id is not None:
                    due.append(delivery_id)
            return [found[n] for n in range(len(documents))]

        stored = self._use(write)
        self._tell(due)
        return stored

    def _tell(self, delivery_ids: Sequence[str]) -> None:
        if delivery_ids and self._deliveries_due is not None:
            self._deliveries_due(delivery_ids)

    def _use(self, work: Callable[[Cursor], _T]) -> _T:
        deadline = deadlines.after(self._deadline)
        halfway = deadlines.after(self._deadline / 2)
        try:
            with self._database.borrowed(deadline) as borrow:
                try:
                    return self._database.run(borrow(fresh=False), halfway, work)
                except ConnectionLost:
                    self._database.await_retry()
                    return self._database.run(borrow(fresh=True), deadline, work)
        except ConnectionLost:
            raise PostgresUnavailable() from None
