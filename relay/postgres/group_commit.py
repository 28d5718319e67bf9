"""How rows reach Postgres: many greenlets' messages in one statement and one commit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from math import ceil
from typing import Any, Final, Self

import psycopg2.errors
import structlog
from gevent.event import Event

from relay.core.deadlines import seconds_left
from relay.core.errors import PostgresUnavailable, Unavailable
from relay.core.frozen import frozen
from relay.core.handoff import Handoff
from relay.core.records import EmailRow
from relay.core.supervision import Supervised, supervise
from relay.postgres.database import ConnectionLost, Database, Rejected
from relay.postgres.insert_emails import PREPARE, encode, execute_prepared, insert

_log = structlog.get_logger(__name__)


@frozen
class Stored:
    """All rows of the message are committed."""


@frozen
class Repeated:
    """The user has stored a message with this idempotency key within 24 h: `first_id` is its id. Nothing was stored."""

    first_id: str


@frozen
class Suppressed:
    """Some recipients are suppressed: address (comparison form) → reason. Nothing was stored."""

    reasons: Mapping[str, str]


Outcome = Stored | Repeated | Suppressed

#: From this size on (octets) a message goes alone, with more time, on a connection that is closed afterwards: libpq
#: never gives back the memory that it sent a large statement from.
_LARGE: Final = 4_000_000
#: How slowly a large message may go through (octets a second).
_LARGE_RATE: Final = 4_000_000
#: When a second writer helps while the first is busy: with a large message, when so many wait, or when the first takes
#: so long (seconds). Before that, waiting is cheaper: what shares a statement shares its cost.
_ENOUGH_FOR_TWO: Final = 8
_TOO_LONG_SECONDS: Final = 0.05
#: How soon the server has to show that it is there (seconds) before a message is sent in a transaction of its own.
_GREETING_SECONDS: Final = 2.0
#: A message with less time left (seconds) is given up rather than let it shorten the time of those it is stored with.
_LEAST_SECONDS: Final = 2.0


class PendingMessage:
    """One message on its way: its rows as JSON, and the greenlet that waits for them."""

    __slots__ = ("alone", "deadline", "done", "ids", "key", "large", "payload", "recipients", "user_id")

    def __init__(self, rows: Sequence[EmailRow], recipients: Collection[str], deadline: float) -> None:
        """`deadline` is a moment of time.monotonic(); a large message gets more time, in proportion to its size."""
        self.ids = [row.id for row in rows]
        self.user_id = rows[0].user_id
        self.key = rows[0].idempotency_key
        self.recipients = recipients
        self.payload = encode(rows, recipients)
        #: Whether the message deserves care for its size.
        self.large = len(self.payload) >= _LARGE
        #: Whether it takes a transaction of its own: several rows come together or not at all.
        self.alone = self.large or len(rows) > 1
        self.deadline = deadline + (len(self.payload) / _LARGE_RATE if self.large else 0.0)
        self.done: Handoff[bool] = Handoff()

    def again(self) -> Self:
        """The same message, to be committed once more."""
        twin = copy(self)
        twin.done = Handoff()
        return twin

    @property
    def order(self) -> tuple[str, str]:
        """Two statements that insert the same idempotency keys in one order can't wait for each other in a ring."""
        return (self.user_id, self.key or "")


class GroupCommit:
    """Writer greenlets that take whatever waits, bounded in rows and bytes, and insert it in one statement."""

    def __init__(self, database: Database, *, writers: int, max_rows: int, max_bytes: int) -> None:
        self._database = database
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._waiting: deque[PendingMessage] = deque()
        self._idle: list[Event] = []
        self._busy_since = 0.0
        self._closed = False
        self._wanted = writers
        self._writers: list[Supervised] = []

    def commit(self, message: PendingMessage) -> bool:
        """True: all rows are committed. False: the server took none, because of the guard or of a conflict.

        Raises Unavailable by the message's deadline; the writer sees to that, so no timer is needed here.
        """
        if self._closed:
            raise PostgresUnavailable()
        if not self._writers:
            # Not earlier: a greenlet that was spawned before a fork would run on both sides of it.
            self._writers = [supervise("postgres-writer", self._write, longest_pause=1.0) for _ in range(self._wanted)]
        self._waiting.append(message)
        if self._idle and (
            len(self._idle) == len(self._writers)
            or message.large
            or len(self._waiting) >= _ENOUGH_FOR_TWO
            or time.monotonic() - self._busy_since > _TOO_LONG_SECONDS
        ):
            self._idle.pop().set()
        return message.done.get()

    def close(self) -> None:
        """Ends the writers; what still waits is Unavailable."""
        self._closed = True
        for writer in self._writers:
            writer.stop()
        while self._waiting:
            self._waiting.popleft().done.fail(PostgresUnavailable())

    def _write(self) -> None:
        session = _Session(self._database)
        wake = Event()
        try:
            while True:
                batch = self._take()
                if not batch:
                    self._idle.append(wake)
                    try:
                        wake.wait()
                    finally:
                        # Whatever ended the wait: nobody may take this writer for one that can be woken.
                        if wake in self._idle:
                            self._idle.remove(wake)
                    wake.clear()
                    continue
                self._busy_since = time.monotonic()
                try:
                    self._store(session, batch)
                except Exception:  # noqa: BLE001 - a writer that dies takes every later message with it
                    _log.exception("group_commit_failed", messages=len(batch))
                finally:
                    for message in batch:
                        if not message.done.settled:
                            message.done.fail(PostgresUnavailable(unclear=True))
        finally:
            session.close()

    def _take(self) -> list[PendingMessage]:
        """What goes into one statement."""
        batch: list[PendingMessage] = []
        size = 0
        while self._waiting and len(batch) < self._max_rows:
            message = self._waiting[0]
            size += len(message.payload)
            if batch and (size > self._max_bytes or message.alone):
                break
            batch.append(self._waiting.popleft())
            if message.alone:
                break
        return batch

    def _store(self, session: _Session, batch: list[PendingMessage]) -> None:
        """Settles each message of the batch."""
        now = time.monotonic()
        pending = [message for message in batch if message.deadline - now >= _LEAST_SECONDS]
        for message in batch:
            if message.deadline - now < _LEAST_SECONDS:
                message.done.fail(PostgresUnavailable())
        if not pending:
            return
        if any(message.key for message in pending):
            pending.sort(key=lambda message: message.order)
        try:
            complete = self._try_twice(session, pending, now)
        except ConnectionLost as lost:
            for message in pending:
                message.done.fail(PostgresUnavailable(unclear=lost.unclear))
        except Rejected as rejected:
            self._split(session, pending, rejected)
        else:
            if complete:
                for message in pending:
                    message.done.set(True)
            else:
                self._look_up(pending)

    def _try_twice(self, session: _Session, batch: list[PendingMessage], now: float) -> bool:
        """Whether all rows went in. The second try has the same ids, so that it can't store anything twice."""
        deadline = min(message.deadline for message in batch)
        halfway = now + (deadline - now) / 2
        try:
            session.connect(halfway)
            return self._insert(session, batch, halfway)
        except ConnectionLost as first:
            self._database.breathe()
            try:
                session.reconnect(deadline)
                return self._insert(session, batch, deadline)
            except ConnectionLost as second:
                raise ConnectionLost(unclear=first.unclear or second.unclear) from None

    def _insert(self, session: _Session, batch: list[PendingMessage], deadline: float) -> bool:
        rows = sum(len(message.ids) for message in batch)
        payloads = [message.payload for message in batch]
        if not batch[0].alone:
            return session.run(deadline, lambda cursor: session.insert(cursor, payloads) == rows)
        try:
            # Two round trips, so that much is only sent to a server that answers.
            greeting = min(deadline, time.monotonic() + _GREETING_SECONDS)
            session.run(greeting, lambda cursor: _begin(cursor, seconds_left(deadline)))
            return session.run(deadline, lambda cursor: _insert_together(cursor, payloads, rows))
        except Rejected:
            session.close()  # the transaction is still open, and takes no other statement
            raise
        finally:
            if batch[0].large:
                session.close()

    def _split(self, session: _Session, batch: list[PendingMessage], rejected: Rejected) -> None:
        """One message that the server refuses must not fail its neighbours."""
        if len(batch) == 1:
            _log.error("row_rejected", email_id=batch[0].ids[0], sqlstate=rejected.sqlstate)
            batch[0].done.fail(rejected.consequence())
            return
        half = len(batch) // 2
        self._store(session, batch[:half])
        self._store(session, batch[half:])

    def _look_up(self, batch: list[PendingMessage]) -> None:
        """Fewer rows went in than were given: which messages are there?"""
        ids = [email_id for message in batch for email_id in message.ids]
        try:
            there = existing(self._database, ids, min(message.deadline for message in batch))
        except Unavailable:
            for message in batch:
                message.done.fail(PostgresUnavailable(unclear=True))
            return
        for message in batch:
            message.done.set(there.issuperset(message.ids))


class _Session:
    """A writer's own connection. The INSERT is prepared there, which halves the server's work for a single row."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._prepared = False
        #: Off for good once it failed: a connection pooler hands each statement to another of the server's sessions.
        self._may_prepare = True

    def connect(self, deadline: float) -> None:
        if self._connection is None or self._connection.closed:
            self._prepared = False
            self._connection = self._database.connect(deadline)

    def reconnect(self, deadline: float) -> None:
        self.close()
        self.connect(deadline)

    def run(self, deadline: float, work: Callable[[Any], bool]) -> bool:
        return self._database.run(self._connection, deadline, work)

    def insert(self, cursor: Any, payloads: list[bytes]) -> int:
        """How many rows went in."""
        if self._may_prepare:
            try:
                if not self._prepared:
                    cursor.execute(PREPARE)
                    self._prepared = True
                return execute_prepared(cursor, payloads)
            except (psycopg2.errors.InvalidSqlStatementName, psycopg2.errors.DuplicatePreparedStatement):
                self._may_prepare = False
        return insert(cursor, payloads)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def existing(database: Database, ids: Collection[str], deadline: float) -> set[str]:
    """Which emails with these ids exist. Raises Unavailable."""

    def select(cursor: Any) -> set[str]:
        cursor.execute("SELECT id FROM emails WHERE id = ANY (%s::uuid[])", (list(ids),))
        return {row[0] for row in cursor}

    return database.use(deadline, select)


def _begin(cursor: Any, seconds: float) -> bool:
    cursor.execute("BEGIN; SET LOCAL statement_timeout = %s", (ceil(seconds * 1000),))
    return True


def _insert_together(cursor: Any, payloads: list[bytes], rows: int) -> bool:
    complete = insert(cursor, payloads) == rows
    cursor.execute("COMMIT" if complete else "ROLLBACK")
    return complete
