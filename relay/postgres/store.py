"""All SQL of the accept path (contract section 3), but for the INSERT itself, which is in
`relay.postgres.group_commit`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeVar

import gevent
import orjson
import structlog

from relay.core import deadlines
from relay.core.api_keys import KeyRecord, restriction
from relay.core.errors import PostgresUnavailable
from relay.core.records import ApiKey, EmailRow
from relay.postgres import message_parts, suppressions
from relay.postgres.database import Database
from relay.postgres.driver import Cursor
from relay.postgres.group_commit import GroupCommit, Outcome, Repeated, Stored, Suppressed
from relay.postgres.insert_emails import storable_text
from relay.postgres.message_parts import EarlierParts
from relay.postgres.own_transaction import existing
from relay.postgres.owner_limit import OwnerLimit
from relay.postgres.pending_message import PendingMessage

_T = TypeVar("_T")
log = structlog.get_logger(__name__)


#: A row whose obstacle has gone in the meantime is offered again after so long each time; seconds.
_INSERT_PAUSES: Final = (0.0, 0.1, 0.5)
_STORED: Final = Stored()

# Only what has the form of a uuid is cast to one: a cast that fails would fail the statement, and with it every other
# key that is asked for. Whether the column as a whole is a uuid, `relay.core.api_keys` says.
KEY_COLUMNS: Final = """
SELECT k.token_hash, k.id, k.user_id, k.permission, k.domain, d.name
  FROM api_keys k
  LEFT JOIN domains d ON d.user_id = k.user_id
   AND d.id = substring(k.domain from '(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')::uuid
 WHERE k.user_id <> ''"""


class Store:
    """Postgres. One per process; connects when first used, which must be after any fork.

    Every method raises PostgresUnavailable within about `deadline` seconds, or earlier where `relay.core.deadlines`
    says so, when Postgres does not answer, and works again by itself once it does. Only a large message whose transfer
    has begun may take longer: a second for each 4 MB, and one more for each 16 MB that its further rows have together.
    """

    def __init__(
        self,
        database_url: str,
        *,
        deadline: float = 4.5,
        writers: int = 2,
        pool: int = 6,
        max_batch_rows: int = 200,
        max_batch_bytes: int = 1_000_000,
        database: Database | None = None,
    ) -> None:
        """`writers`: connections for statements of many messages. `pool`: connections for everything else; all but two
        of them may be in use for messages in separate transactions. `database`: instead of a new one.
        """
        self._deadline = deadline
        # The server gives up a little before we do, so that an answer is on its way rather than a commit.
        self._database = database or Database(database_url, statement_seconds=deadline * 0.9, idle_limit=pool)
        self._turns = OwnerLimit(1)
        self._commits = GroupCommit(
            self._database,
            writers=writers,
            max_rows=max_batch_rows,
            max_bytes=max_batch_bytes,
            alone=max(1, pool - 2),
        )

    def find_api_key(self, token_hash: str) -> KeyRecord | None:
        """The key with this lower-case hex SHA-256, or None: no such row, or one without a user."""

        return self.find_api_keys([token_hash]).get(token_hash)

    def find_api_keys(self, token_hashes: Collection[str]) -> dict[str, KeyRecord]:
        """Those of these keys that exist and have a user, by their hashes."""

        def select(cursor: Cursor) -> dict[str, KeyRecord]:
            cursor.execute(f"{KEY_COLUMNS} AND k.token_hash = ANY (%s)", (list(token_hashes),))
            return dict(readable_keys(cursor))

        return self._use(select)

    def find_suppressions(self, user_id: str, emails: Collection[str]) -> dict[str, str]:
        """Which of these addresses (comparison form) are suppressed for this user, however spelled → reason."""
        return self._use(lambda cursor: suppressions.find(cursor, user_id, emails), user_id)

    def insert(self, rows: Sequence[EmailRow], recipients: Collection[str]) -> Outcome:
        """Commits the rows of one message together, or none. `recipients`: all of the message's, comparison form.

        `Repeated`: the first row's idempotency key has been used. NULs and lone surrogates, which Postgres
        can't hold, are dropped. Raises Unavailable: with `unclear` set the rows may have been committed.
        """
        message = PendingMessage(rows, recipients, deadlines.after(self._deadline))
        for pause in _INSERT_PAUSES:
            if self._commits.commit(message):
                return _STORED
            obstacle = self._obstacle(message)
            if obstacle is not None:
                return obstacle
            gevent.sleep(pause)
            message = message.again()
        raise PostgresUnavailable()

    @contextmanager
    def turn(self, user_id: str, key: str) -> Iterator[None]:
        """Lets greenlets of this process store what has the same idempotency key one after the other.

        Raises PostgresUnavailable when the time is over before it is this one's turn.
        """
        with self._turns.place((user_id, key), deadlines.after(self._deadline)) as granted:
            if not granted:
                raise PostgresUnavailable()
            yield

    def holder_of_key(self, user_id: str, key: str) -> str | None:
        """The id of the email that has the user's idempotency key, for less than 24 h: an older one lets go of it."""
        return self._use(lambda cursor: _holder_of_key(cursor, user_id, key), user_id)

    def release_key(self, email_id: str, user_id: str, key: str) -> None:
        """Takes the key from the row that has it, which is what becomes of a key after a day."""
        values = email_id, user_id, storable_text(key)
        self._use(lambda cursor: _release_key(cursor, values), user_id)

    def find_parts(self, user_id: str, key: str, row: EmailRow) -> EarlierParts | None:
        """What has been stored under the user's idempotency key, and whether it is the message that `row` is of."""
        return self._use(lambda cursor: message_parts.find_parts(cursor, user_id, key, row), user_id)

    def rows_exist(self, ids: Collection[str]) -> set[str]:
        """Which of these emails exist."""
        return self._use(lambda cursor: existing(cursor, ids))

    def queued(self, ids: Collection[str]) -> set[str]:
        """Which of these emails exist and wait for delivery."""

        def select(cursor: Cursor) -> set[str]:
            cursor.execute("SELECT id FROM emails WHERE id = ANY (%s::uuid[]) AND status = 'queued'", (list(ids),))
            return {row[0] for row in cursor}

        return self._use(select)

    def overdue(self, older_than: timedelta, limit: int, after: tuple[str, str] | None = None) -> list[tuple[str, str]]:
        """Emails without any attempt to deliver them for so long: (created_at, id), oldest first, those behind `after`.

        The time is Postgres's own text, which there is also for times that Python has no value for (`-infinity`).
        """

        def select(cursor: Cursor) -> list[tuple[str, str]]:
            cursor.execute(
                "SELECT created_at::text AS moment, id FROM emails"
                " WHERE status = 'queued' AND created_at < now() - %s AND scheduled_at IS NULL"
                " AND provider_retry_count = 0 AND provider_next_retry_at IS NULL"
                " AND (created_at, id) > (%s::timestamptz, %s::uuid)"
                " ORDER BY created_at, id LIMIT %s",
                (older_than, *(after or ("-infinity", str(uuid.UUID(int=0)))), limit),
            )
            return cursor.fetchall()

        return self._use(select)

    def touch_api_keys(self, ids: Collection[str]) -> None:
        """Sets last_used_at of these keys, where it is more than a minute ago."""

        def update(cursor: Cursor) -> None:
            # A key whose row another transaction is writing gets its time from that: never wait for a time stamp.
            cursor.execute(
                "UPDATE api_keys SET last_used_at = now() WHERE id IN (SELECT id FROM api_keys"
                " WHERE id = ANY (%s::uuid[]) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')"
                " FOR UPDATE SKIP LOCKED)",
                (list(ids),),
            )

        self._use(update)

    def record_suppressed(self, user_id: str, payload: Mapping[str, object]) -> None:
        """Records an event `suppressed` and a pending delivery for each webhook subscribed to it (contract, 3)."""
        event_id = str(uuid.uuid4())  # made here, so that a second try can't record it twice

        def insert(cursor: Cursor) -> None:
            cursor.execute(
                # A transaction that changes a webhook has it locked; its user must not wait for longer here than others
                # can bear.
                "SET LOCAL lock_timeout = '0.5s'; "
                "WITH event AS (INSERT INTO email_events (id, type, payload, user_id, received_at)"
                " VALUES (%(id)s, 'suppressed', %(payload)s::jsonb, %(user)s, now())"
                " ON CONFLICT DO NOTHING RETURNING id)"
                " INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status, created_at)"
                " SELECT gen_random_uuid(), w.id, event.id, 0, 'pending', now() FROM event, webhooks w"
                " WHERE w.user_id = %(user)s AND w.status = 'active' AND w.event_types @> '[\"email.suppressed\"]'",
                {"id": event_id, "payload": orjson.dumps(payload).decode(), "user": user_id},
            )

        self._use(insert, user_id)

    def watch(self) -> None:
        """Looks for Postgres now, and each minute while it is away: the log says so, whether clients come or not."""
        self._database.watch()

    def close(self) -> None:
        """Closes every connection. What still waits in `insert` is Unavailable."""
        self._commits.close()
        self._database.close()

    def _use(self, work: Callable[[Cursor], _T], user_id: str = "") -> _T:
        return self._database.use(deadlines.after(self._deadline), work, owner=user_id)

    def _obstacle(self, message: PendingMessage) -> Repeated | Suppressed | None:
        """Why the server took no row; None when the reason is gone, or has just been removed."""
        if message.key is not None:
            first_id = self.holder_of_key(message.user_id, message.key)
            if first_id is not None:
                return Repeated(first_id)
        reasons = self.find_suppressions(message.user_id, message.recipients)
        return Suppressed(reasons) if reasons else None


def readable_keys(rows: Iterable[tuple[str, str, str, str, str | None, str | None]]) -> Iterator[tuple[str, KeyRecord]]:
    """What rows of `KEY_COLUMNS` mean: token hash and key. One that can't be read is left out, and stops no other."""
    for token_hash, key_id, user_id, permission, column, found_name in rows:
        try:
            key = ApiKey(id=key_id, user_id=user_id, permission=permission, domain=restriction(column, found_name))
        except Exception:  # whatever it is, it is this row's alone
            log.exception("row_unreadable", table="api_keys", id=key_id)
        else:
            yield token_hash, KeyRecord(key, column)


def _holder_of_key(cursor: Cursor, user_id: str, key: str) -> str | None:
    where = (user_id, storable_text(key))
    cursor.execute(
        "SELECT id, created_at <= now() - interval '24 hours' FROM emails WHERE user_id = %s AND idempotency_key = %s",
        where,
    )
    row = cursor.fetchone()
    if row is None or not row[1]:
        return None if row is None else str(row[0])
    _release_key(cursor, (row[0], *where))
    return None


def _release_key(cursor: Cursor, values: tuple[str, str, str]) -> None:
    """`values`: email id, user, key. Never waits for another transaction with that row: it frees the key soon."""
    cursor.execute(
        "UPDATE emails SET idempotency_key = NULL WHERE id IN (SELECT id FROM emails"
        " WHERE id = %s AND user_id = %s AND idempotency_key = %s FOR UPDATE SKIP LOCKED)",
        values,
    )
