"""All SQL of the way out: claims, their ends, and what waits (contract section 6)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Final, TypeVar

from relay.core import deadlines, metrics
from relay.core.errors import PostgresRefused, PostgresUnavailable, Unstorable
from relay.postgres import sending_facts
from relay.postgres.batches import Batches
from relay.postgres.closed_rows import UnsentRow
from relay.postgres.database import Database
from relay.postgres.driver import Cursor, Row
from relay.postgres.ended_rows import EndedRow, EndedRows, NotedRow
from relay.postgres.events import DELIVERIES
from relay.postgres.halving import cause_of, in_halves
from relay.postgres.leases import Leases, clocks
from relay.postgres.left_rows import HELD, UNCLEAR, Left, LeftRows
from relay.postgres.lost_claims import MARK, LostClaims
from relay.postgres.sending_facts import Facts, MailAsked
from relay.postgres.sent_rows import Event, SentRow
from relay.postgres.waiting import HEADER_SIZE

_T = TypeVar("_T")

#: Whether a row may leave now. `scheduled`: its job may come before OpenSend has made it `queued`. CASE: no index fits,
#: or a planner with old statistics reads all rows of the status for the few that are asked for by their id.
_DUE: Final = """
 CASE e.status WHEN 'queued' THEN true WHEN 'scheduled' THEN e.scheduled_at IS NOT NULL ELSE false END
 AND (e.scheduled_at IS NULL OR e.scheduled_at <= now())
 AND (e.provider_next_retry_at IS NULL OR e.provider_next_retry_at <= now())"""

#: Octets of a row's texts, of its attachments, and of its recipients, subject and header fields together, that are read
#: with it. Larger texts and attachments `RowContents` reads in pieces; a mail with a larger header can't leave.
HELD_OCTETS: Final = 262_144
_TEXTS: Final = "(coalesce(octet_length(e.html), 0) + coalesce(octet_length(e.text), 0))"


def _held(size: str, document: str) -> str:
    """A JSON document as text, NULL where it is larger. `size`: what it takes as it is stored, and reads no value.

    What is small as it is stored, compressed, may be large, so the text, which is made in any case, is measured too.
    """
    return f"""
 CASE WHEN {size} <= {HELD_OCTETS} THEN (
      SELECT CASE WHEN octet_length(j.document) <= {HELD_OCTETS} THEN j.document END
        FROM (SELECT {document}::text AS document OFFSET 0) AS j) END"""  # noqa: S608 - fixed texts


# `created_at`: Python knows no year before 1 or after 9999, and one such row would spoil the claim of others.
# JSON comes as text: what Python can't read of one row must not spoil the claim of others either.
_COLUMNS: Final = f"""
 e.id, e.user_id, e."from",
 {_held(HEADER_SIZE, 'jsonb_build_array(e."to", e.cc, e.bcc, e.reply_to, e.subject, e.headers)')},
 CASE WHEN {_TEXTS} <= {HELD_OCTETS} THEN e.html END, CASE WHEN {_TEXTS} <= {HELD_OCTETS} THEN e.text END,
 {_held("pg_column_size(e.attachments)", "e.attachments")},
 e.provider_retry_count, greatest(least(e.created_at, '9999-12-30'), '0001-01-02'),
 {_TEXTS}, coalesce(pg_column_size(e.attachments), 0),
 coalesce(e.provider_last_error_code = '{UNCLEAR}', false)"""

#: A row that a trigger has kept as it was (RETURN OLD) comes back, too: its status says so.
#: The lock holds what was looked at until it is changed. The mark: two claims of one row never have the same one.
#: `provider_next_retry_at`: one that is later than the mark says that the claim is not ours (`relay.postgres.waiting`).
_CLAIM: Final = f"""
WITH free AS (
  SELECT e.id FROM emails e WHERE e.id = ANY (%(ids)s::uuid[]) AND {_DUE} FOR UPDATE {{locked}})
UPDATE emails e SET status = 'processing', provider_last_attempted_at = {MARK}, provider_next_retry_at = NULL
  FROM free WHERE e.id = free.id
RETURNING {_COLUMNS}, e.provider_last_attempted_at, e.status = 'processing'"""  # noqa: S608 - fixed texts

#: Rows of one statement that claims for jobs of the queue: each may have HELD_OCTETS twice. And rows of the others.
_CLAIMS: Final = 10
_MOST: Final = 200

#: With its event, and a pending delivery for each webhook that is subscribed to it; nothing where its source id is
#: known.
_FAIL_HELD: Final = f"""
WITH changed AS (
  UPDATE emails SET status = 'failed', provider_next_retry_at = NULL, provider_dead_lettered_at = now(),
         provider_last_error_code = %(code)s, provider_last_error_message = %(message)s
   WHERE id = %(id)s AND {HELD} RETURNING id, user_id),
event AS (
  INSERT INTO email_events (id, email_id, source_id, type, payload, user_id, received_at)
  SELECT %(event_id)s::uuid, changed.id, %(source_id)s, %(type)s, %(payload)s::jsonb, changed.user_id, now()
    FROM changed
  ON CONFLICT DO NOTHING RETURNING id, user_id, type)
{DELIVERIES}"""  # noqa: S608 - fixed texts

#: A row that is to be claimed, and what gets its user where it is locked.
_Wanted = tuple[str, Callable[[str | None], None]]


class Outgoing:
    """The rows on their way out. Every method raises PostgresUnavailable within about `deadline` seconds."""

    def __init__(
        self, database: Database, *, deadline: float = 5.0, deliveries_due: Callable[[], None] | None = None
    ) -> None:
        """`deliveries_due` is called when an event has been recorded that webhooks are subscribed to."""
        self._database = database
        self._deadline = deadline
        self._deliveries_due = deliveries_due
        self._leases = Leases()
        self._lost_claims = LostClaims(database, deadline=deadline)
        self._left = LeftRows(database, deadline=deadline)
        self._ended_rows = EndedRows(database, deadline=deadline, deliveries_due=deliveries_due)
        self._claims = Batches("claims_together", self._claim_together, self._claim_alone, most=_CLAIMS)
        self._facts = Batches("facts_together", self._facts_together, self._facts_alone, most=_MOST)
        self._ended = Batches(
            "ended_together", self._ended_rows.record_together, self._ended_rows.record_alone, most=_MOST
        )

    def close(self) -> None:
        """Closes the connection that is kept beside the database's."""
        self._ended_rows.close()

    def claim(
        self, ids: Collection[str], *, skip_locked: bool = False, refused: dict[str, str] | None = None
    ) -> list[tuple[object, ...]]:
        """Makes those of these rows that may leave now `processing`; what they hold, in the order of `_COLUMNS`.

        A row that is locked is waited for, since a job comes once: OpenSend publishes it before its own
        change of the row is committed. `skip_locked`: it is passed over, and will be found again; so is one that
        Postgres refuses, of which `refused` gets the cause, an SQLSTATE or the name of an error.

        Raises PostgresLocked and PostgresRefused where that is not so.
        """
        statement = _CLAIM.format(locked="SKIP LOCKED" if skip_locked else "")
        rows: list[tuple[object, ...]] = []
        away: list[PostgresUnavailable] = []

        def update(some: Sequence[str]) -> Sequence[str]:
            use = self._database.use_shared if skip_locked else self._database.use
            attempt = self._lost_claims.attempt(some)
            began = clocks()
            claimed: list[Row] = []
            try:
                claimed = use(deadlines.after(self._deadline), lambda cursor: attempt.execute(cursor, statement))
            except PostgresUnavailable as error:
                away.append(error)
                raise
            finally:
                attempt.end({str(row[0]) for row in claimed})
            for *row, mark, done in claimed:
                if not done:
                    continue  # a trigger has kept the row as it was
                self._leases.note(str(row[0]), mark, began)
                rows.append(tuple(row))
            metrics.DELIVERY_CLAIM_SECONDS.observe(time.monotonic() - began[0])
            return some

        def note(email_id: str, error: Exception) -> None:
            if refused is not None:
                refused[email_id] = cause_of(error)

        if skip_locked:
            in_halves(list(ids), update, refused=note)
            if away and not rows:
                raise away[0]
        else:
            try:
                update(list(ids))
            except Unstorable:  # a trigger's own word, or texts of the row that UTF-8 does not have
                raise PostgresRefused() from None
        return rows

    def claim_one(
        self, email_id: str, *, locked: Callable[[str | None], None] = lambda _: None
    ) -> list[tuple[object, ...]]:
        """As `claim` for one row, in one statement with others that are claimed at the same time.

        Raises PostgresLocked where it is waited for in vain, and PostgresRefused where it is refused or passed over.

        `locked`: gets the user of the row where it is waited for, since another transaction holds it.
        """
        return self._claims.ask((email_id, locked))

    def _claim_together(self, asked: Sequence[_Wanted]) -> list[list[tuple[object, ...]] | None]:
        """What is locked, and what may not leave, is left to `_claim_alone`."""
        ids = [email_id for email_id, _ in asked]
        rows = {str(row[0]): row for row in self.claim(dict.fromkeys(ids), skip_locked=True)}
        return [[rows.pop(email_id)] if email_id in rows else None for email_id in map(str.lower, ids)]

    def _claim_alone(self, asked: _Wanted) -> list[tuple[object, ...]]:
        """Raises PostgresRefused also where a trigger passes over the row."""
        email_id, locked = asked
        due = self.due([email_id])
        if not due:
            return []
        locked(next(iter(due.values())))
        rows = self.claim([email_id])
        if not rows and self.due([email_id]):
            raise PostgresRefused
        return rows

    def give_back_lost(self) -> int:
        """Makes rows `queued` again whose claim this process has sent and got no answer to; how many were."""
        return self._lost_claims.give_back()

    def due(self, ids: Collection[str]) -> dict[str, str | None]:
        """Those of these rows that may leave now, and whose each is."""

        def select(cursor: Cursor) -> dict[str, str | None]:
            cursor.execute(
                f"SELECT e.id::text, e.user_id FROM emails e WHERE e.id = ANY (%s::uuid[]) AND {_DUE}",  # noqa: S608 - fixed texts
                (list(ids),),
            )
            return dict(cursor)

        return self._use(select)

    def look(self, email_id: str) -> Row | None:
        """What a row holds, as `claim` has it, and nothing is changed; None: it is not there."""

        def select(cursor: Cursor) -> Row | None:
            cursor.execute(f"SELECT {_COLUMNS} FROM emails e WHERE e.id = %s", (email_id,))  # noqa: S608 - fixed texts
            return cursor.fetchone()

        return self._use(select)

    def may_hand_over(self, email_id: str) -> bool:
        """Whether the claim of this row is young enough for a call to the provider, to be asked right before it."""
        return self._leases.allows_handover(email_id)

    def may_leave(self, email_id: str) -> bool:
        """The same, to be asked right before the first octet leaves."""
        return self._leases.allows_leaving(email_id)

    def mark(self, email_id: str) -> datetime | None:
        """What this process's claim of the row wrote; None where there is none."""
        return self._leases.mark(email_id)

    def facts(self, asked: MailAsked) -> Facts:
        """Domain and suppressed recipients of a mail, in one statement with those of others that ask at the time."""
        return self._facts.ask(asked)

    def _facts_together(self, asked: Sequence[MailAsked]) -> list[Facts]:
        return self._use(lambda cursor: sending_facts.find(cursor, asked))

    def _facts_alone(self, asked: MailAsked) -> Facts:
        return self._facts_together([asked])[0]

    def sent(self, email_id: str, event: Event | None) -> None:
        """The provider has the mail. As `ended`."""
        self.ended(SentRow(email_id, event))

    def ended(self, row: EndedRow, *, alone: bool = False) -> None:
        """Records what became of a mail, in one statement with others; see `relay.postgres.ended_rows`.

        `alone`: in a separate statement. Raises PostgresRefused and Unstorable as `EndedRows.record_alone` does.
        """
        if alone or (isinstance(row, UnsentRow) and row.large):
            self._ended_rows.record_alone(row)
        else:
            self._ended.ask(row)
        self._leases.forget(row.email_id)

    def recipients_of(self, email_id: str, attempt: int) -> object:
        """What the event of an attempt says about the recipients (`relay.delivery.recipients`); None: nothing."""

        def select(cursor: Cursor) -> object:
            source_id = f"provider-delayed:{email_id}:{attempt}"
            cursor.execute("SELECT payload -> 'recipients' FROM email_events WHERE source_id = %s", (source_id,))
            row = cursor.fetchone()
            return None if row is None else row[0]

        return self._use(select)

    def record(self, email_id: str, event: Event) -> None:
        """Records an event of a mail whose row stays as it is, in one statement with others. As `ended`."""
        self._ended.ask(NotedRow(email_id, event))

    def put_back(self, ids: Sequence[str], seconds: float | Sequence[float], *, unclear: Collection[str] = ()) -> None:
        """These can't be sent now, for no fault of theirs: back to `queued` in one statement, no attempt used up.

        `seconds`: until they may leave, of all or of each. `unclear`: those of them that the provider may have.
        """
        waits = [seconds] * len(ids) if isinstance(seconds, float | int) else seconds
        self._left.give_back(
            [
                Left(email_id=email_id, mark=self._leases.mark(email_id), seconds=wait, unclear=email_id in unclear)
                for email_id, wait in zip(ids, waits, strict=True)
            ]
        )
        for email_id in ids:
            self._leases.forget(email_id)

    def fail_held(self, email_id: str, code: str, message: str, event: Event) -> None:
        """Ends a mail that no worker takes up by itself (`LeftRows.held`) as failed."""
        values = {
            "id": email_id,
            "code": code,
            "message": message,
            "event_id": str(uuid.uuid4()),
            "source_id": event.source_id,
            "type": event.type,
            "payload": event.document,
        }

        def update(cursor: Cursor) -> int:
            cursor.execute(_FAIL_HELD, values)
            return int(cursor.rowcount)

        if self._use(update) and self._deliveries_due is not None:
            self._deliveries_due()

    def _use(self, work: Callable[[Cursor], _T]) -> _T:
        return self._database.use(deadlines.after(self._deadline), work)
