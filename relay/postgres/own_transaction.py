"""Messages that share no statement: those of several rows, the large ones, and those that would hold up others.

A lock that another open transaction holds (REST, about to store the same idempotency key) is not waited for:
the message tries again and again, and holds no connection in between. So it takes no other message's place, however
long that transaction lasts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Final

import gevent
import structlog
from gevent.lock import BoundedSemaphore

from relay.core.deadlines import seconds_left
from relay.core.errors import PostgresUnavailable
from relay.postgres.database import ConnectionLost, Database, Overran, Rejected
from relay.postgres.driver import Connection, Cursor
from relay.postgres.insert_emails import copy, insert, insert_statement
from relay.postgres.owner_limit import OwnerLimit
from relay.postgres.pending_message import PendingMessage
from relay.postgres.slow_users import SlowUsers

log = structlog.get_logger(__name__)

#: How soon the server has to show that it is there (seconds) before a message is sent.
_GREETING_SECONDS: Final = 2.0
#: How long a lock is waited for; seconds.
_LOCK_SECONDS: Final = 0.05
#: The first and the longest pause between two tries to get a lock; seconds.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.4
#: A try with less time left is not begun: the server could not say in time that it took nothing; seconds.
_LEAST_TRY_SECONDS: Final = 0.3


class OwnTransactions:
    """Carries out transactions of one message each, in the greenlets that ask for them."""

    def __init__(self, database: Database, slow_users: SlowUsers, *, places: int, slow_seconds: float) -> None:
        """`places`: how many at a time; one user has at most half of them. The user of a message that takes longer than
        `slow_seconds`, or waits for a lock, is noted in `slow_users`."""
        self._database = database
        self._slow_users = slow_users
        self._slow_seconds = slow_seconds
        self._places = BoundedSemaphore(places)
        self._owners = OwnerLimit(max(1, places // 2))

    def commit(self, message: PendingMessage) -> bool:
        """True: all rows are committed. False: the server took none, because of the guard or of a conflict.

        Raises Unavailable by the message's deadline, or Unstorable.
        """
        unclear = False
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._try_twice(message)
            except Overran as overran:
                unclear |= overran.unclear
                self._note(message)
                if not overran.blocked or seconds_left(message.deadline) <= pause + _LEAST_TRY_SECONDS:
                    raise PostgresUnavailable(unclear=unclear) from None
            except ConnectionLost as lost:
                raise PostgresUnavailable(unclear=unclear or lost.unclear) from None
            except Rejected as rejected:
                log.error("row_rejected", email_id=message.ids[0], sqlstate=rejected.sqlstate)
                raise rejected.consequence() from None
            gevent.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try_twice(self, message: PendingMessage) -> bool:
        """The second try has the same ids, so that it can't store anything twice."""
        with self._place(message), self._database.borrowed(message.deadline) as borrow:
            try:
                return self._transact(borrow(fresh=False), message)
            except Overran:
                raise
            except ConnectionLost as first:
                self._database.await_retry()
                try:
                    return self._transact(borrow(fresh=True), message)
                except ConnectionLost as second:
                    second.unclear |= first.unclear
                    raise

    @contextmanager
    def _place(self, message: PendingMessage) -> Iterator[None]:
        with self._owners.place(message.user_id, message.deadline) as granted:
            if not granted or not self._places.acquire(timeout=seconds_left(message.deadline)):
                raise ConnectionLost(unclear=False)
            try:
                yield
            finally:
                self._places.release()

    def _transact(self, connection: Connection, message: PendingMessage) -> bool:
        deadline = message.deadline
        run = self._database.run
        try:
            # A separate round trip, so that much is only sent to a server that answers.
            run(
                connection, min(deadline, time.monotonic() + _GREETING_SECONDS), lambda cursor: _begin(cursor, deadline)
            )
            began = time.monotonic()
            try:
                complete = run(connection, deadline, lambda cursor: _insert_together(cursor, message))
            except (ConnectionLost, Rejected):
                if not connection.closed:
                    run(connection, deadline, lambda cursor: cursor.execute("ROLLBACK"))
                raise
            if time.monotonic() - began > self._slow_seconds:
                self._note(message)
            # All rows are there after all if an earlier try was carried out whose answer got lost.
            return complete or run(connection, deadline, lambda cursor: existing(cursor, message.ids)) >= {*message.ids}
        finally:
            if message.large:
                connection.close()

    def _note(self, message: PendingMessage) -> None:
        if not message.alone:  # else it holds up no other, and says nothing about the user's other messages
            self._slow_users.note(message.user_id)


def existing(cursor: Cursor, ids: Collection[str]) -> set[str]:
    """Which emails with these ids exist."""
    cursor.execute("SELECT id FROM emails WHERE id = ANY (%s::uuid[])", (list(ids),))
    return {row[0] for row in cursor}


def _begin(cursor: Cursor, deadline: float) -> None:
    cursor.execute(
        "BEGIN; SET LOCAL statement_timeout = %s; SET LOCAL lock_timeout = %s",
        (max(1, ceil(seconds_left(deadline) * 1000)), ceil(_LOCK_SECONDS * 1000)),
    )


def _insert_together(cursor: Cursor, message: PendingMessage) -> bool:
    payload = message.payload
    complete = (insert_statement(cursor, payload) if message.statement else insert(cursor, [payload])) == 1
    if complete and message.further_rows:
        complete = copy(cursor, message.ids[0], message.further_rows) == len(message.ids) - 1
    cursor.execute("COMMIT" if complete else "ROLLBACK")
    return complete
