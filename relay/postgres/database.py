"""Connections to Postgres: made under a deadline, given up when they fail, and made again without a stampede.

Works in a process that gevent and psycogreen have patched, and in a plain one (a script), where gevent.Timeout can't
interrupt a query and the server's statement_timeout has to.
"""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Final, TypeVar

import gevent
import gevent.lock
import psycopg2
import psycopg2.extensions
import structlog

from relay.core import metrics
from relay.core.deadlines import seconds_left
from relay.core.errors import PostgresLocked, PostgresRefused, PostgresUnavailable, Unstorable
from relay.core.supervision import Supervised, supervise
from relay.postgres.causes import postgres_cause
from relay.postgres.driver import Connection, Cursor
from relay.postgres.owner_limit import OwnerLimit

_T = TypeVar("_T")
log = structlog.get_logger(__name__)
_FAULTS: Final = metrics.FAULTS.labels("postgres")

#: SQLSTATE classes and codes that say "not now", whatever the statement was: connection exceptions, transaction
#: rollback, insufficient resources (disk full, too many connections), lock not available, operator intervention (shut
#: down, cancelled, cannot connect now), system errors, and the read-only server that a failover leaves behind.
_PASSING_CLASSES: Final = ("08", "40", "53", "55", "57", "58")
_READ_ONLY: Final = "25006"
#: Codes that say "never": the database's encoding has no such character (untranslatable, not in its repertoire).
_UNSTORABLE_CODES: Final = ("22P05", "22021")
#: A time limit: for a lock (lock_timeout), and for the whole statement (statement_timeout; or it was cancelled from
#: outside).
_LOCK_NOT_AVAILABLE, _QUERY_CANCELED = "55P03", "57014"
#: How long a connection may take to come about, at most.
_CONNECT_SECONDS: Final = 2.0
#: A server that does not answer within so long has had its chance; within less, it may just be that the wait was too
#: short.
_FAIR_SECONDS: Final = 1.0
#: While there is no connection to be had, the log says so once in so many seconds.
_REPORT_SECONDS: Final = 60.0
#: Seconds until a lock is tried for once more: the first and the longest pause.
_LOCKED_PAUSE: Final = 0.05
_LONGEST_LOCKED_PAUSE: Final = 0.5
#: With less time than this a question is not worth asking.
_LEAST_SECONDS: Final = 0.02


class ConnectionLost(Exception):
    """A statement got no answer, or one that says "not now". `unclear`: the server may have carried it out."""

    def __init__(self, *, unclear: bool) -> None:
        super().__init__("lost")
        self.unclear = unclear


class Overran(ConnectionLost):
    """The server gave a statement up for its time limit: nothing was carried out, and the connection is as before.

    `blocked`: all that it did was wait for a lock, which another open transaction holds.
    """

    def __init__(self, *, blocked: bool) -> None:
        super().__init__(unclear=False)
        self.blocked = blocked


class Rejected(Exception):
    """The server refused the statement for what is in it: trying it again would not help."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate

    def consequence(self) -> PostgresRefused | Unstorable:
        """What it means for the message: as a rule a fault of ours, which may be mended, else one of what is in it."""
        return Unstorable(self.sqlstate) if self.sqlstate in _UNSTORABLE_CODES else PostgresRefused()


class Database:
    """Hands out connections, and remembers for a moment that there is none to be had."""

    #: After a failure to connect there is no other try for so long (seconds): the first and the longest pause.
    first_pause = 0.1
    longest_pause = 1.0

    def __init__(
        self,
        url: str,
        *,
        statement_seconds: float,
        idle_limit: int,
        switched_off: Sequence[str] = (),
        lock_seconds: float | None = None,
    ) -> None:
        """`statement_seconds`: the server gives up on a statement then. `idle_limit`: connections that the pool keeps,
        and the most that it opens; one owner has at most half of them at a time. `switched_off`: settings of the server
        that are off on every connection, where it knows them. `lock_seconds`: what waits longer for a lock gives its
        connection back to the pool and tries again, until its deadline; None: it keeps the connection.
        """
        self._url = url
        self._statement_ms = math.ceil(statement_seconds * 1000)
        self._switched_off = list(switched_off)
        self._lock_seconds = lock_seconds
        self._idle: list[Connection] = []
        self._slots = gevent.lock.BoundedSemaphore(idle_limit)
        self._owners = OwnerLimit(max(1, idle_limit // 2))
        self._closed = False
        self._failures = 0
        self._not_before = 0.0
        self._probing = False
        #: Since when there has been no connection, and when the log last said so: moments of the monotonic clock.
        self._away_since = self._reported = 0.0
        self._watch: Supervised | None = None

    def watch(self) -> None:
        """Looks for the server now, and each minute while it is away, so that the log says so without any client."""
        self._watch = supervise("postgres-watch", self._look_each_minute)

    def connect(
        self, deadline: float, *, statement_seconds: float | None = None, lock_seconds: float | None = None
    ) -> Connection:
        """A new connection in autocommit mode. Raises ConnectionLost(unclear=False).

        The server gives up on a statement after `statement_seconds` (0: never), and after it has waited for one lock
        for `lock_seconds` (None: no such limit).
        """
        if self._closed:
            raise ConnectionLost(unclear=False)
        if self._failures and (self._probing or time.monotonic() < self._not_before):
            raise ConnectionLost(unclear=False)
        self._probing = True
        seconds = min(_CONNECT_SECONDS, seconds_left(deadline))
        try:
            connection = self._connect(seconds, statement_seconds, lock_seconds)
        except (psycopg2.Error, OSError, gevent.Timeout) as error:
            # That one caller's time is over says nothing about the server, and must not keep others from it.
            if seconds >= _FAIR_SECONDS or not isinstance(error, gevent.Timeout):
                self._failed(error)
            raise ConnectionLost(unclear=False) from error
        finally:
            self._probing = False
        if self._failures:
            seconds = round(time.monotonic() - self._away_since)
            log.info("postgres_back", failures=self._failures, seconds=seconds)
            self._failures = 0
        return connection

    def await_retry(self) -> None:
        """To be called between two tries: after the first failure to connect, waits until the next may be made.

        Returns at once when it has failed for longer: then the second try will not be made either.
        """
        if self._failures == 1:
            gevent.sleep(seconds_left(self._not_before))

    def run(self, connection: Connection, deadline: float, work: Callable[[Cursor], _T]) -> _T:
        """`work(cursor)` on a connection that no other greenlet uses.

        Raises ConnectionLost, Overran or Rejected; the connection is closed then unless it is still good.
        """
        seconds = seconds_left(deadline)
        limit = gevent.Timeout(seconds)
        try:
            with limit, connection.cursor() as cursor:
                return work(cursor)
        except gevent.Timeout as timeout:
            connection.close()
            if timeout is not limit:
                raise
            if seconds >= _FAIR_SECONDS:
                _FAULTS.inc()
            raise ConnectionLost(unclear=True) from None
        except psycopg2.Error as error:
            raise self._fault(connection, error) from None
        except BaseException:
            connection.close()
            raise

    def use(self, deadline: float, work: Callable[[Cursor], _T], *, owner: str = "") -> _T:
        """`work(cursor)` on one of the pool's connections; tried a second time on a fresh one when it gets lost, so it
        must be harmless to repeat. Raises PostgresUnavailable; PostgresRefused or Unstorable where it is refused for
        what is in it, which is logged; and PostgresLocked where another transaction holds what it needs.

        `owner`: the user that it is about, or empty.
        """
        try:
            return self.use_shared(deadline, work, owner=owner)
        except Rejected as rejected:
            log.error("query_rejected", sqlstate=rejected.sqlstate)
            raise rejected.consequence() from None

    def use_shared(self, deadline: float, work: Callable[[Cursor], _T], *, owner: str = "") -> _T:
        """As `use`, for a statement about many, of which the caller finds the culprit: raises Rejected, unlogged."""
        if seconds_left(deadline) < _LEAST_SECONDS:
            raise PostgresUnavailable()  # rather than spoil a good connection
        pause = _LOCKED_PAUSE
        locked = False
        try:
            while True:
                try:
                    return self._use_once(deadline, work, owner)
                except Overran as overran:
                    # What another transaction holds is waited for without a connection: others need it meanwhile.
                    # Without a limit of the server's own, each try would leave a statement that still waits there.
                    locked = locked or overran.blocked
                    impatient = overran.blocked and self._lock_seconds is not None
                    if not impatient or seconds_left(deadline) < pause + _LEAST_SECONDS:
                        raise
                gevent.sleep(pause)
                pause = min(_LONGEST_LOCKED_PAUSE, 2 * pause)
        except ConnectionLost:
            # The last try may have had too little time for the server to say so.
            raise (PostgresLocked() if locked else PostgresUnavailable()) from None

    def _use_once(self, deadline: float, work: Callable[[Cursor], _T], owner: str) -> _T:
        halfway = time.monotonic() + seconds_left(deadline) / 2
        with self.borrowed(deadline, owner) as borrow:
            try:
                return self.run(borrow(fresh=False), halfway, work)
            except ConnectionLost as lost:
                if self._lock_seconds is not None and isinstance(lost, Overran) and lost.blocked:
                    raise
                self.await_retry()
                return self.run(borrow(fresh=True), deadline, work)

    def close(self) -> None:
        """Closes what is idle; nothing connects from now on."""
        self._closed = True
        if self._watch is not None:
            self._watch.stop()
        while self._idle:
            self._idle.pop().close()

    def _look_each_minute(self) -> None:
        self._look()
        while True:
            gevent.sleep(_REPORT_SECONDS)
            if self._failures:
                self._look()

    def _look(self) -> None:
        """Makes a connection for the pool, if it has none."""
        with suppress(ConnectionLost), self.borrowed(time.monotonic() + _CONNECT_SECONDS) as borrow:
            borrow(fresh=False)

    @contextmanager
    def borrowed(self, deadline: float, owner: str = "") -> Iterator[Callable[..., Connection]]:
        """Lends a place in the pool; the function that it yields gives a connection for it: `borrow(fresh=False)`.

        A second call closes the first connection. `owner`: the user that it is about, or empty. A user with
        half of all places waits. Raises ConnectionLost(unclear=False), as the function does.
        """
        with self._owners.place(owner, deadline) if owner else nullcontext(True) as granted:
            if not granted or not self._slots.acquire(timeout=seconds_left(deadline)):
                raise ConnectionLost(unclear=False)
            taken: list[Connection] = []

            def borrow(*, fresh: bool) -> Connection:
                if taken:
                    taken.pop().close()
                # The newest first: what is seldom needed grows old, and is what a firewall cuts.
                taken.append(
                    self._idle.pop()
                    if self._idle and not fresh
                    else self.connect(deadline, lock_seconds=self._lock_seconds)
                )
                return taken[0]

            try:
                yield borrow
            finally:
                self._slots.release()
                for connection in taken:
                    if connection.closed or self._closed:
                        connection.close()
                    else:
                        self._idle.append(connection)

    def _connect(self, seconds: float, statement_seconds: float | None, lock_seconds: float | None) -> Connection:
        green = psycopg2.extensions.get_wait_callback() is not None
        parameters: dict[str, str | int] = {
            "fallback_application_name": "opensend-relay",
            "client_encoding": "UTF8",
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # Unacknowledged data for so long: the connection is lost, though no reset ever came.
            "tcp_user_timeout": self._statement_ms + 1000,
        }
        with gevent.Timeout(seconds):
            if green:
                parameters |= _resolved(self._url)
            else:
                parameters["connect_timeout"] = max(1, math.ceil(seconds))
            connection: Connection = psycopg2.connect(psycopg2.extensions.make_dsn(self._url, **parameters))
            try:
                connection.autocommit = True
                milliseconds = self._statement_ms if statement_seconds is None else math.ceil(statement_seconds * 1000)
                limits = f"SET statement_timeout = {milliseconds}"
                if lock_seconds is not None:
                    limits += f"; SET lock_timeout = {math.ceil(lock_seconds * 1000)}"
                with connection.cursor() as cursor:
                    # Not as a startup parameter, which connection poolers refuse.
                    cursor.execute(limits)
                    if self._switched_off:
                        cursor.execute(
                            "SELECT set_config(name, 'off', false) FROM pg_settings WHERE name = ANY (%s)",
                            (self._switched_off,),
                        )
            except BaseException:
                connection.close()
                raise
        return connection

    def _failed(self, error: BaseException) -> None:
        _FAULTS.inc()
        pause = min(self.longest_pause, self.first_pause * 2**self._failures)
        now = time.monotonic()
        self._not_before = now + pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
        if self._failures == 0:
            self._away_since = now
        if self._failures == 0 or now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            log.warning("postgres_unavailable", cause=postgres_cause(error), seconds=round(now - self._away_since))
        self._failures = min(self._failures + 1, 30)

    @staticmethod
    def _fault(connection: Connection, error: psycopg2.Error) -> ConnectionLost | Rejected:
        code: str | None = error.pgcode
        if code in {_LOCK_NOT_AVAILABLE, _QUERY_CANCELED} and not connection.closed:
            return Overran(blocked=code == _LOCK_NOT_AVAILABLE)
        _FAULTS.inc()
        if code is None or connection.closed:
            connection.close()
            return ConnectionLost(unclear=True)
        if code == _READ_ONLY or code[:2] in _PASSING_CLASSES:
            log.warning("postgres_refused", sqlstate=code)
            if code[:2] != "40":
                connection.close()  # after a failover or a shutdown another server answers under the same name
            return ConnectionLost(unclear=False)
        return Rejected(code)


def _resolved(url: str) -> dict[str, str]:
    """libpq looks names up without asking the hub, which then stands still. Looks them up here, as `hostaddr`."""
    given = psycopg2.extensions.parse_dsn(url)
    hosts, ports = given.get("host", "").split(","), given.get("port", "").split(",")
    if "hostaddr" in given or not all(hosts) or any(host.startswith(("/", "@")) for host in hosts):
        return {}
    if len(ports) != len(hosts):
        ports = [ports[0]] * len(hosts)
    names, addresses, numbers = [], [], []
    for host, port in zip(hosts, ports, strict=True):
        for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            names.append(host)
            addresses.append(str(address[0]))
            numbers.append(port)
    return {"host": ",".join(names), "hostaddr": ",".join(addresses), "port": ",".join(numbers)}
