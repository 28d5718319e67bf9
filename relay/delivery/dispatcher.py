"""Where the work comes from: jobs of the queue, and rows that wait in Postgres (contract sections 5 and 6).

    queue     a job names a row; the row is claimed, delivered, and the message deleted
    Postgres  without a queue: the newest and the oldest waiting rows, several times a second
    scans     in both modes: due retries, scheduled rows, abandoned claims, rows whose job was lost

A claim decides who delivers a row, so a row that two of these name leaves once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import gevent
import gevent.event
import gevent.lock
import structlog

from relay.aws.sqs_receiver import QueueReceiver
from relay.core import metrics
from relay.core.errors import PostgresUnavailable
from relay.core.supervision import Supervised, run_once, supervise
from relay.delivery.deliverer import Deliverer, email_of
from relay.delivery.queue_jobs import QueueJobs
from relay.postgres.outgoing import Outgoing, Waiting

log = structlog.get_logger(__name__)

#: A claim that is older has been left behind by a worker that died: no send takes nearly so long.
ABANDONED_AFTER: Final = timedelta(minutes=15)
#: A queued row that is older has lost its job.
_LOST_AFTER: Final = timedelta(minutes=15)
#: Rows that one look at one end of the queue reads.
_WINDOW: Final = 200


class Dispatcher:
    """Runs deliveries, at most `concurrency` at a time. `receiver`: None in polling mode."""

    #: Seconds between two looks at Postgres in polling mode, and between two scans in both.
    poll_seconds = 0.25
    scan_seconds = 10.0

    def __init__(
        self, outgoing: Outgoing, deliverer: Deliverer, receiver: QueueReceiver | None, *, concurrency: int
    ) -> None:
        self._outgoing = outgoing
        self._deliverer = deliverer
        self._receiver = receiver
        self._concurrency = concurrency
        self._slots = gevent.lock.BoundedSemaphore(concurrency)
        #: The user of each row that was found in Postgres and is on its way.
        self._in_flight: dict[str, str | None] = {}
        self._not_before = 0.0
        self._draining = False
        self._cursor: tuple[datetime, str] | None = None
        self._loops: list[Supervised] = []
        self._scan_asked = gevent.event.Event()

    def start(self) -> None:
        """Begins to take work."""
        if self._receiver is not None:
            jobs = QueueJobs(
                self._receiver,
                self._slots,
                deliver=self._deliver,
                scan=self._scan_asked.set,
                wait_for_leave=self._wait_for_leave,
                ask_postgres=lambda: self._outgoing.newest(1),
            )
            self._loops.append(supervise("delivery_queue", jobs.receive))
        else:
            self._loops.append(supervise("delivery_poll", self._poll))
        self._loops.append(supervise("delivery_scan", self._scan))

    def pause(self, seconds: float) -> None:
        """Takes no work for so long: the provider, or the account, is in trouble."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    def drain(self, seconds: float) -> int:
        """Takes no more work, and waits for what is being sent. Returns how many mails are left."""
        self._draining = True
        for loop in self._loops:
            loop.stop()
        until = time.monotonic() + seconds
        while self._busy() and time.monotonic() < until:
            gevent.sleep(0.05)
        return self._busy()

    def _busy(self) -> int:
        """How many places are taken, each from before a claim until what became of the mail is recorded."""
        return self._concurrency - self._slots.counter

    # Postgres.

    def _poll(self) -> None:
        while True:
            started = self._look(lambda waiting: waiting.due)
            gevent.sleep(0.0 if started else self.poll_seconds)

    def _look(self, wanted: Callable[[Waiting], bool]) -> int:
        """Delivers what waits at both ends of the queue, each user in turn; how many were begun."""
        self._wait_for_leave()
        try:
            newest = self._outgoing.newest(_WINDOW)
            older: list[Waiting] = []
            if len(newest) == _WINDOW:
                # More than one window waits: a cursor walks from the oldest on, past what is not due.
                older = self._outgoing.waiting(_WINDOW, self._cursor)
                self._cursor = (older[-1].created_at, older[-1].email_id) if len(older) == _WINDOW else None
        except PostgresUnavailable:
            gevent.sleep(1.0)
            return 0
        begun = 0
        for waiting in _fair([w for w in (*older, *newest) if wanted(w) and w.email_id not in self._in_flight]):
            if time.monotonic() < self._not_before or self._draining:
                break
            if self._share_is_used(waiting.user_id):
                continue
            self._begin(waiting)
            begun += 1
            if begun >= self._concurrency:
                break
        return begun

    def _begin(self, waiting: Waiting) -> None:
        """Delivers a row in a greenlet of its own, once there is a place."""
        self._slots.acquire()
        self._in_flight[waiting.email_id] = waiting.user_id
        run_once("delivery_row", self._row, waiting.email_id)

    def _share_is_used(self, user_id: str | None) -> bool:
        """Whether a user has all but one of the places: the last one is for somebody else."""
        return sum(user == user_id for user in self._in_flight.values()) >= max(1, self._concurrency - 1)

    def _row(self, email_id: str) -> None:
        try:
            self._deliver(email_id)
        except PostgresUnavailable:
            metrics.DELIVERIES.labels("unrecorded").inc()
        finally:
            self._in_flight.pop(email_id, None)
            self._slots.release()

    # Scans.

    def _scan(self) -> None:
        while True:
            asked = self._scan_asked.wait(self.scan_seconds)
            self._scan_asked.clear()
            with contextlib.suppress(PostgresUnavailable):
                self.scan()
            if asked:
                gevent.sleep(1.0)  # however many jobs ask for one

    def scan(self) -> None:
        """One look for what no job will come for. Raises PostgresUnavailable."""
        abandoned = self._outgoing.put_back_abandoned(ABANDONED_AFTER, _WINDOW)
        if abandoned:
            metrics.DELIVERIES.labels("abandoned").inc(abandoned)
            log.warning("abandoned_claims", count=abandoned)
        for waiting in self._outgoing.scheduled(_WINDOW):
            if waiting.email_id not in self._in_flight:
                self._begin(waiting)
        lost = datetime.now(UTC) - _LOST_AFTER
        self._look(lambda waiting: waiting.due and (waiting.retried or waiting.created_at < lost))

    # One row.

    def _deliver(self, email_id: str) -> None:
        """Claims a row and delivers it; nothing where another has it, or it is not due."""
        for row in self._outgoing.claim([email_id]):
            self._deliverer.deliver(email_of(row))

    def _wait_for_leave(self) -> None:
        while (pause := self._not_before - time.monotonic()) > 0:
            gevent.sleep(min(pause, 1.0))


def _fair(rows: Sequence[Waiting]) -> list[Waiting]:
    """The rows in turns: each user's first, then each user's second, and so on."""
    turns: dict[str | None, int] = {}
    ranked = []
    for position, waiting in enumerate(rows):
        turn = turns[waiting.user_id] = turns.get(waiting.user_id, -1) + 1
        ranked.append((turn, position, waiting))
    ranked.sort(key=lambda entry: entry[:2])
    return [waiting for _, _, waiting in ranked]
