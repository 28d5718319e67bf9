"""How rows reach Postgres: many greenlets' messages in one statement and one commit."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg2.errors
import structlog
from gevent.event import Event
from gevent.hub import get_hub

from relay.core.errors import PostgresUnavailable
from relay.core.frozen import frozen
from relay.core.supervision import Supervised, supervise
from relay.postgres.database import ConnectionLost, Database, Overran, Rejected
from relay.postgres.driver import Connection, Cursor
from relay.postgres.insert_emails import PREPARE, execute_prepared, insert
from relay.postgres.own_transaction import OwnTransactions, existing
from relay.postgres.pending_message import PendingMessage
from relay.postgres.slow_users import SlowUsers

if TYPE_CHECKING:
    from gevent._types import _TimerWatcher

_T = TypeVar("_T")
log = structlog.get_logger(__name__)


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

#: What one statement of many messages may take, and how long it may wait for a lock; seconds. A message that needs
#: longer goes alone, so no message is held up for longer by another user's. Measured for the largest of them: 0.1 s.
BATCH_SECONDS: Final = 0.6
BATCH_LOCK_SECONDS: Final = 0.1
#: When a second writer helps while the first is busy: when so many wait, or when the first takes so long (seconds).
#: Before that, waiting is cheaper: what shares a statement shares its cost.
_ENOUGH_FOR_TWO: Final = 8
_TOO_LONG_SECONDS: Final = 0.05
#: A message with less time left (seconds) is given up rather than let it shorten the time of those it is stored with.
_LEAST_SECONDS: Final = 1.0


class GroupCommit:
    """Writer greenlets that take whatever waits, bounded in rows and bytes, and insert it in one statement.

    A statement that takes too long is given up, and each of its messages goes on alone: only then it shows which of
    them was the cause, by a lock, a trigger, a large row or a slow look-up. See `relay.postgres.own_transaction`.
    """

    def __init__(self, database: Database, *, writers: int, max_rows: int, max_bytes: int, alone: int) -> None:
        """`alone`: how many messages may be in separate transactions at a time."""
        self._database = database
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        #: How many rows a statement has at present: fewer for a while, when the server is slow for all.
        self._rows = max_rows
        self._waiting: deque[PendingMessage] = deque()
        #: Messages of one user each, that go together but not with others.
        self._apart: deque[list[PendingMessage]] = deque()
        self._idle: list[Event] = []
        self._busy_since = 0.0
        self._alarm: _TimerWatcher | None = None
        self._alarm_set = False
        self._closed = False
        self._wanted = writers
        self._writers: list[Supervised] = []
        self._slow_users = SlowUsers()
        self._alone = OwnTransactions(database, self._slow_users, places=alone, slow_seconds=BATCH_SECONDS)

    def commit(self, message: PendingMessage) -> bool:
        """True: all rows are committed. False: the server took none, because of the guard or of a conflict.

        Raises Unavailable by the message's deadline; the writer sees to that, so no timer is needed here.
        """
        if self._closed:
            raise PostgresUnavailable()
        if not message.alone and not self._slow_users.holds(message.user_id):
            complete = self._commit_with_others(message)
            if complete is not None:
                return complete
        return self._alone.commit(message)

    def _commit_with_others(self, message: PendingMessage) -> bool | None:
        """As `commit`; None: nothing was done, for it took too long."""
        if not self._writers:
            # Not earlier: a greenlet that was spawned before a fork would run on both sides of it.
            self._writers = [supervise("postgres-writer", self._write, longest_pause=1.0) for _ in range(self._wanted)]
            self._alarm = get_hub().loop.timer(_TOO_LONG_SECONDS, _TOO_LONG_SECONDS)
        self._waiting.append(message)
        if self._idle:
            if (
                len(self._waiting) >= _ENOUGH_FOR_TWO
                or len(self._idle) == len(self._writers)
                or time.monotonic() - self._busy_since > _TOO_LONG_SECONDS
            ):
                self._idle.pop().set()
            elif self._alarm is not None and not self._alarm_set:
                self._alarm_set = True
                # Not start: it goes on with what was left of the last time, which is nothing.
                self._alarm.again(self._look_after_waiting, self._alarm)
        return message.done.get()

    def _look_after_waiting(self, alarm: _TimerWatcher) -> None:
        """Runs in the hub: wakes another writer for messages that came just after the first one had begun."""
        if not (self._waiting and self._idle):
            self._alarm_set = False
            alarm.stop()
        elif time.monotonic() - self._busy_since > _TOO_LONG_SECONDS:
            self._idle.pop().set()

    def close(self) -> None:
        """Ends the writers; what still waits is Unavailable."""
        self._closed = True
        for writer in self._writers:
            writer.stop()
        if self._alarm is not None:
            self._alarm.close()
        for message in (*self._waiting, *itertools.chain(*self._apart)):
            message.done.fail(PostgresUnavailable())
        self._waiting.clear()
        self._apart.clear()

    def _write(self) -> None:
        session = _WriterConnection(self._database)
        wake = Event()
        try:
            while True:
                batch = self._take()
                if not batch:
                    self._idle.append(wake)
                    try:
                        wake.wait()
                    finally:
                        # Whatever ended the wait: this writer is no longer one that can be woken.
                        if wake in self._idle:
                            self._idle.remove(wake)
                    wake.clear()
                    continue
                self._busy_since = time.monotonic()
                session.in_hand = batch
                try:
                    self._store(session, batch)
                except Exception:  # a writer that ends leaves every later message waiting
                    log.exception("group_commit_failed", messages=len(batch))
                finally:
                    for message in session.in_hand:
                        if not message.done.settled:
                            message.done.fail(PostgresUnavailable(unclear=True))
        finally:
            session.close()

    def _take(self) -> list[PendingMessage]:
        """What goes into one statement."""
        if self._apart:
            return self._apart.popleft()
        batch: list[PendingMessage] = []
        size = 0
        while self._waiting and len(batch) < self._rows:
            size += len(self._waiting[0].payload)
            if batch and size > self._max_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _store(self, session: _WriterConnection, batch: list[PendingMessage]) -> None:
        """Settles each message of the batch."""
        now = time.monotonic()
        pending = [message for message in batch if message.deadline - now >= _LEAST_SECONDS]
        if len(pending) < len(batch):
            for message in batch:
                if message.deadline - now < _LEAST_SECONDS:
                    message.done.fail(PostgresUnavailable())
            if not pending:
                return
        if any(message.key for message in pending):
            pending.sort(key=lambda message: message.order)
        try:
            there = self._try_twice(session, pending, now)
        except Overran as overran:
            self._part(session, pending, blocked=overran.blocked)
        except ConnectionLost as lost:
            for message in pending:
                message.done.fail(PostgresUnavailable(unclear=lost.unclear))
        except Rejected as rejected:
            self._split(session, pending, rejected)
        else:
            if self._rows < self._max_rows and len(batch) >= self._rows:
                self._rows = min(2 * self._rows, self._max_rows)
            for message in pending:
                message.done.set(there is None or message.ids[0] in there)

    def _try_twice(self, session: _WriterConnection, batch: list[PendingMessage], now: float) -> set[str] | None:
        """The ids of the messages that went in; None: all. The second try has the same ids, so that it can't store
        anything twice."""
        deadline = min([message.deadline for message in batch])
        halfway = now + (deadline - now) / 2
        try:
            session.connect(halfway)
            return self._insert(session, batch, halfway)
        except Overran:
            raise
        except ConnectionLost as first:
            self._database.await_retry()
            try:
                session.reconnect(deadline)
                return self._insert(session, batch, deadline)
            except ConnectionLost as second:
                second.unclear |= first.unclear
                raise

    @staticmethod
    def _insert(session: _WriterConnection, batch: list[PendingMessage], deadline: float) -> set[str] | None:
        payloads = [message.payload for message in batch]
        if session.run(deadline, lambda cursor: session.insert(cursor, payloads)) == len(batch):
            return None
        ids = [message.ids[0] for message in batch]
        try:
            return session.run(deadline, lambda cursor: existing(cursor, ids))
        except ConnectionLost:
            raise ConnectionLost(unclear=True) from None

    def _part(self, session: _WriterConnection, batch: list[PendingMessage], *, blocked: bool) -> None:
        """The batch took too long, and nothing of it is stored: each user's messages go without those of others."""
        if not blocked:
            self._rows = max(1, len(batch) // 2)
        by_user: dict[str, list[PendingMessage]] = {}
        for message in batch:
            by_user.setdefault(message.user_id, []).append(message)
        for messages in by_user.values():
            if len(messages) > 1 and len(by_user) > 1:
                self._apart.append(messages)
                session.in_hand = [message for message in session.in_hand if message not in messages]
            else:
                for message in messages:
                    message.done.set(None)
        if self._apart and self._idle:
            self._idle.pop().set()

    def _split(self, session: _WriterConnection, batch: list[PendingMessage], rejected: Rejected) -> None:
        """One message that the server refuses must not fail the others of its batch."""
        if len(batch) == 1:
            log.error("row_rejected", email_id=batch[0].ids[0], sqlstate=rejected.sqlstate)
            batch[0].done.fail(rejected.consequence())
            return
        half = len(batch) // 2
        self._store(session, batch[:half])
        self._store(session, batch[half:])


class _WriterConnection:
    """A writer's own connection. The INSERT is prepared there, which halves the server's work for a single row."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._prepared = False
        #: The messages that its writer has to settle.
        self.in_hand: list[PendingMessage] = []
        #: Off for good once it failed: a connection pooler hands each statement to another of the server's sessions.
        self._may_prepare = True

    def connect(self, deadline: float) -> None:
        if self._connection is None or self._connection.closed:
            self._prepared = False
            self._connection = self._database.connect(
                deadline, statement_seconds=BATCH_SECONDS, lock_seconds=BATCH_LOCK_SECONDS
            )

    def reconnect(self, deadline: float) -> None:
        self.close()
        self.connect(deadline)

    def run(self, deadline: float, work: Callable[[Cursor], _T]) -> _T:
        if self._connection is None:
            raise ConnectionLost(unclear=False)
        return self._database.run(self._connection, deadline, work)

    def insert(self, cursor: Cursor, payloads: list[bytes]) -> int:
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
