"""What waits for its delivery, read so that no statement's work grows with what waits.

The contract has one index for it, (status, created_at). Three things would have a statement read the whole backlog all
the same, and are kept from it here:

    the planner      uses statistics from before the backlog, and sorts all rows of a status, or filters all rows
                     by their age: the range over `status` and its place in ORDER BY leave that one index alone, and
                     PLANNER takes sorting away
    equal times      rows of one transaction have one created_at, and no index has an order among them: nothing asks
                     for such an order, and what lies between them is read through a cursor (Walk)
    rows not due     would be passed over within the statement until enough others are found: they are handed out too
"""

from __future__ import annotations

import time
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from relay.core import deadlines
from relay.core.errors import PostgresUnavailable
from relay.core.frozen import new_tuple
from relay.postgres.database import ConnectionLost, Database, Rejected
from relay.postgres.driver import Connection, Cursor, Row

log = structlog.get_logger(__name__)

#: What the planner may not do on the connections of a delivery process. Where something can't be done otherwise, it is
#: done all the same; `jit` would set in for the cost that is put on it then.
PLANNER: Final = ("enable_seqscan", "enable_sort", "enable_incremental_sort", "jit")

#: Seconds for which one transaction of a walk may be open: for so long nothing of the database is vacuumed.
WALK_SECONDS: Final = 120.0
#: A walk that goes on in another transaction begins so many seconds before the last row that it has seen: more than
#: what a float of seconds since 1970 is off.
_BEFORE: Final = 0.001


class Waiting(NamedTuple):
    """A row that is `queued` or `scheduled`."""

    email_id: str
    user_id: str | None
    #: Unix time, in seconds; infinite where the row says so.
    created: float
    #: Seconds until it may leave: 0 or less, now; infinite, never.
    due_in: float
    #: Whether it has been tried, or put back, before: no job will come for it.
    retried: bool
    #: Seconds since it was made, by the server's clock; infinite where the row says so.
    age: float
    #: What its texts, attachments, recipients and header fields take, as they are stored.
    octets: int


class Processing(NamedTuple):
    """A row that has been claimed."""

    email_id: str
    #: Names the row's version: it is another one as soon as anything of the row has changed.
    version: str
    #: Whether a claim of ours made it so: that is later than the last time at which it was put back.
    ours: bool
    #: Whether our claim is older than a lease.
    expired: bool
    #: Whether the row was made within the last 24 hours.
    recent: bool
    created: float
    #: When our claim was made, in microseconds since 1970; 0 where nothing says so.
    mark: int


Found = TypeVar("Found", Waiting, Processing)

#: What a row's recipients, subject and header fields take, as they are stored: no value is read.
HEADER_SIZE: Final = """
 (coalesce(pg_column_size(e."to"), 0) + coalesce(pg_column_size(e.cc), 0) + coalesce(pg_column_size(e.bcc), 0)
  + coalesce(pg_column_size(e.reply_to), 0) + coalesce(octet_length(e.subject), 0)
  + coalesce(pg_column_size(e.headers), 0))"""
# perf: date_part and not extract, whose numeric costs a sixth of a look (0.92 -> 0.76 ms for 200 rows;
# python -m scripts.benchmark.claims).
_CREATED: Final = "date_part('epoch', e.created_at)"
_WAITING: Final = f"""
 e.id::text, e.user_id, {_CREATED},
 CASE WHEN e.status = 'scheduled' AND e.scheduled_at IS NULL THEN 'Infinity'
      ELSE coalesce(date_part('epoch', greatest(e.scheduled_at, e.provider_next_retry_at))
                    - date_part('epoch', clock_timestamp()), 0) END,
 e.provider_next_retry_at IS NOT NULL,
 date_part('epoch', clock_timestamp()) - {_CREATED},
 coalesce(octet_length(e.html), 0) + coalesce(octet_length(e.text), 0) + coalesce(pg_column_size(e.attachments), 0)
 + {HEADER_SIZE}"""
#: A time that lies ahead, or has no end, says nothing: the server's clock was put back, or another program wrote it.
_PROCESSING: Final = f"""
 e.id::text, e.xmin::text,
 coalesce(e.provider_last_attempted_at <= clock_timestamp() + interval '1 minute', false)
   AND (e.provider_next_retry_at IS NULL OR e.provider_next_retry_at <= e.provider_last_attempted_at),
 coalesce(e.provider_last_attempted_at < clock_timestamp() - interval '15 minutes', false),
 e.created_at > clock_timestamp() - interval '24 hours', {_CREATED},
 CASE WHEN isfinite(e.provider_last_attempted_at)
      THEN (extract(epoch FROM e.provider_last_attempted_at) * 1000000)::bigint ELSE 0 END"""

_OLDEST: Final = """
SELECT {columns} FROM emails e
 WHERE (e.status, e.created_at) >= (%(status)s, {since}) AND e.status <= %(status)s
 ORDER BY e.status, e.created_at"""
_NEWEST: Final = """
SELECT {columns} FROM emails e
 WHERE (e.status, e.created_at) >= (%(status)s, {since}) AND e.status <= %(status)s
 ORDER BY e.status DESC, e.created_at DESC"""


class WaitingRows:
    """Looks at rows. `database`: with PLANNER. Every method raises PostgresUnavailable within about `deadline` s."""

    def __init__(self, database: Database, *, deadline: float = 5.0) -> None:
        self._database = database
        self._deadline = deadline

    def newest(self, most: int, *, seconds: float | None = None) -> list[Waiting]:
        """The newest queued rows, the newest first. `seconds`: only those that were made within the last so many."""
        since = "'-infinity'" if seconds is None else "now() - make_interval(secs => %(seconds)s)"
        statement = _NEWEST.format(columns=_WAITING, since=since) + " LIMIT %(most)s"
        return [new_tuple(Waiting, row) for row in self._select(statement, "queued", most=most, seconds=seconds)]

    def oldest(self, status: str, most: int) -> list[Waiting]:
        """The oldest rows of a status, `queued` or `scheduled`."""
        statement = _OLDEST.format(columns=_WAITING, since="'-infinity'") + " LIMIT %(most)s"
        return [new_tuple(Waiting, row) for row in self._select(statement, status, most=most)]

    def processing(self, most: int) -> list[Processing]:
        """The oldest rows that have been claimed."""
        statement = _OLDEST.format(columns=_PROCESSING, since="'-infinity'") + " LIMIT %(most)s"
        return [new_tuple(Processing, row) for row in self._select(statement, "processing", most=most)]

    def walk(self, status: str) -> Walk[Waiting]:
        """A walk through all rows of a status, `queued` or `scheduled`."""
        return Walk(self._database, status, self._deadline, Waiting)

    def walk_processing(self) -> Walk[Processing]:
        """A walk through all rows that have been claimed."""
        return Walk(self._database, "processing", self._deadline, Processing)

    def _select(self, statement: str, status: str, **values: object) -> list[Row]:
        def select(cursor: Cursor) -> list[Row]:
            cursor.execute(statement, {"status": status, **values})
            return cursor.fetchall()

        return self._database.use(deadlines.after(self._deadline), select)


class Walk(Generic[Found]):
    """All rows of one status from the oldest to the newest, some at a time, on a separate connection.

    What it hands out may be late by WALK_SECONDS: a caller that acts on a row looks at it once more.
    """

    def __init__(self, database: Database, status: str, deadline: float, kind: type[Found]) -> None:
        """`kind`: what rows of this status are."""
        self._database = database
        self._status = status
        self._kind: type[Found] = kind
        self._deadline = deadline
        self._connection: Connection | None = None
        self._opened = 0.0
        #: Where it goes on: unix time in seconds.
        self._since: float | None = None
        self._last: float | None = None

    def read(self, most: int) -> tuple[list[Found], bool]:
        """The next rows, and whether they are the last ones. Raises PostgresUnavailable."""
        rows = [new_tuple(self._kind, row) for row in self._fetch(most)]
        if rows:
            self._last = rows[-1].created
        ended = len(rows) < most
        if ended:
            self.close()
            self._since = self._last = None
        elif time.monotonic() - self._opened > WALK_SECONDS:
            self.close()
            self._go_on()
        return rows, ended

    def close(self) -> None:
        """Ends the transaction; the next `read` goes on from the same place, or from the beginning after the end."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _go_on(self) -> None:
        """More rows than one transaction reads may have one created_at: what is left of them is passed over then."""
        if self._last is None:
            return
        stuck = self._since is not None and self._last - self._since <= 2 * _BEFORE
        self._since = self._last + _BEFORE if stuck else self._last - _BEFORE

    def _fetch(self, most: int) -> list[Row]:
        deadline = deadlines.after(self._deadline)
        try:
            opened = self._connection is not None
            if self._connection is None:
                self._connection = self._database.connect(deadline)
                self._opened = time.monotonic()
            return self._database.run(self._connection, deadline, lambda cursor: self._execute(cursor, most, opened))
        except ConnectionLost:
            self.close()
            raise PostgresUnavailable() from None
        except Rejected as rejected:
            self.close()
            log.error("query_rejected", sqlstate=rejected.sqlstate)
            raise PostgresUnavailable() from None
        except BaseException:
            self.close()
            raise

    def _execute(self, cursor: Cursor, most: int, opened: bool) -> list[Row]:
        statement = f"FETCH {most:d} FROM walk"
        if not opened:
            since = "'-infinity'" if self._since is None else "to_timestamp(%(since)s)"
            columns = _PROCESSING if self._kind is Processing else _WAITING
            declared = _OLDEST.format(columns=columns, since=since)
            statement = f"BEGIN READ ONLY; DECLARE walk NO SCROLL CURSOR FOR {declared}; {statement}"
        cursor.execute(statement, {"status": self._status, "since": self._since})
        return cursor.fetchall()
