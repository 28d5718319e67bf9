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

#: A pending delivery for each webhook that wants an event. To stand behind a CTE `event` with id, user_id and type;
#: a type with a full stop is the webhook's type as it stands (contract section 3).
DELIVERIES: Final = """
INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status, created_at)
SELECT gen_random_uuid(), w.id, event.id, 0, 'pending', now()
  FROM event JOIN webhooks w ON w.user_id = event.user_id AND w.status = 'active' AND w.event_types @>
       jsonb_build_array(CASE strpos(event.type, '.') WHEN 0 THEN 'email.' || event.type ELSE event.type END)"""

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
  ON CONFLICT (id) DO NOTHING RETURNING id, user_id, type),
deliveries AS ({DELIVERIES})
SELECT id::text FROM event"""  # noqa: S608 - fixed texts

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
   WHERE NOT (s.reason = 'complained' AND excluded.reason = 'bounced')),
deliveries AS ({DELIVERIES})
SELECT g.n, known.id IS NOT NULL, event.id IS NOT NULL, known.user_id
  FROM given g LEFT JOIN known ON known.id = g.id LEFT JOIN event ON event.id = g.id"""  # noqa: S608 - fixed texts


class Stored(NamedTuple):
    """What became of an event of SES. `known`: there is such a mail; `recorded`: this was the first time."""

    known: bool
    recorded: bool
    user_id: str | None


class Events:
    """What comes back, into its tables. Every method raises PostgresUnavailable within about `deadline` seconds, and
    Rejected where the server refuses what is in the statement."""

    def __init__(self, database: Database, *, deadline: float = 5.0) -> None:
        self._database = database
        self._deadline = deadline

    def write_tracking(self, documents: Sequence[bytes]) -> set[str]:
        """Opens and clicks, each for a mail and a domain of that user whose switch is on; the ids of those recorded.

        A document has id, type, user_id, email_id, domain_id, payload and received_at.
        """

        def write(cursor: Cursor) -> set[str]:
            cursor.execute(_TRACKING, {"documents": (b"[" + b",".join(documents) + b"]").decode()})
            return {event_id for (event_id,) in cursor}

        return self._use(write)

    def write_ses(self, documents: Sequence[bytes]) -> list[Stored]:
        """Events of SES, with the status of each mail and the suppressions that follow; what became of each, in order.

        A document has id, source_id, type, email_id, payload, received_at, and recipients (lower case) to be suppressed
        for a reason, with SES's message_id.
        """
        # A member that stands twice has its last value.
        numbered = [document[:-1] + b',"n":%d}' % n for n, document in enumerate(documents)]

        def write(cursor: Cursor) -> list[Stored]:
            cursor.execute(_SES, {"documents": (b"[" + b",".join(numbered) + b"]").decode()})
            found = {n: Stored(known=known, recorded=recorded, user_id=user) for n, known, recorded, user in cursor}
            return [found[n] for n in range(len(documents))]

        return self._use(write)

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
