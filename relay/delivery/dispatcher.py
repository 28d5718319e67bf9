"""Where the work comes from: jobs of the queue, and rows that wait in Postgres (contract sections 5 and 6).

    queue     `relay.delivery.queue_jobs`: a job names a row; the row is claimed, delivered, and the message deleted
    Postgres  `relay.delivery.row_source`: without a queue all rows, with one those that no job comes for, or too late

A claim decides which of them delivers a row, so a row that both of these name leaves once. A job is a hint, and the row
is what counts: where a row is due and can't be claimed, the job is done with, and the row is tried again from Postgres.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent
import gevent.lock

from relay.core import metrics
from relay.core.errors import PostgresLocked, PostgresRefused
from relay.core.supervision import Supervised, supervise
from relay.delivery.deliverer import Deliverer
from relay.delivery.row import email_of, user_of
from relay.delivery.row_source import RowSource, Turns
from relay.delivery.shares import Share, Shares
from relay.delivery.unclear import LeftBehind
from relay.delivery.webhooks import Webhooks
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import WaitingRows

if TYPE_CHECKING:
    from relay.aws.sqs_receiver import QueueReceiver
    from relay.delivery.queue_jobs import QueueJobs


class Dispatcher:
    """Runs deliveries, at most `concurrency` at a time. `receiver`: None in polling mode.

    `webhooks` gets the jobs that are about them; None where they are another program's. `paced`: see RowSource.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        waiting: WaitingRows,
        deliverer: Deliverer,
        receiver: QueueReceiver | None,
        *,
        left_behind: LeftBehind,
        concurrency: int,
        turns: Turns,
        webhooks: Webhooks | None = None,
        paced: Callable[[], bool] = lambda: False,
    ) -> None:
        self._outgoing = outgoing
        self._waiting = waiting
        self._deliverer = deliverer
        self._receiver = receiver
        self._webhooks = webhooks
        self._concurrency = concurrency
        self._slots = gevent.lock.BoundedSemaphore(concurrency)
        self._shares = Shares(concurrency)
        self._jobs: QueueJobs | None = None
        self._not_before = 0.0
        self._rows = RowSource(
            outgoing,
            waiting,
            self._deliver_row,
            self._slots,
            shares=self._shares,
            left_behind=left_behind,
            queue_works=None if receiver is None else self._queue_works,
            turns=turns,
            wait_for_leave=self._wait_for_leave,
            paced=paced,
        )
        self._loops: list[Supervised] = []

    def start(self) -> None:
        """Begins to take work."""
        if self._receiver is not None:
            from relay.delivery.queue_jobs import QueueJobs  # noqa: PLC0415 - boto3, only where there is a queue

            self._jobs = QueueJobs(
                self._receiver,
                self._slots,
                self._shares,
                deliver=self._deliver,
                scan=self._rows.ask_for_scan,
                wait_for_leave=self._wait_for_leave,
                ask_postgres=lambda: self._waiting.newest(1),
                webhooks=self._webhooks,
            )
            self._loops.append(supervise("delivery_queue", self._jobs.receive))
        self._loops.extend(self._rows.start())

    def pause(self, seconds: float) -> None:
        """Takes no work for so long: the provider fails, or the account is restricted."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    def drain(self, seconds: float) -> int:
        """Takes no more work, and waits for what is being sent. Returns how many mails are left."""
        for loop in self._loops:
            loop.stop()
        until = time.monotonic() + seconds
        while self._busy() and time.monotonic() < until:
            gevent.sleep(0.05)
        return self._busy()

    def _busy(self) -> int:
        """How many places are taken, each from before a claim until what became of the mail is recorded."""
        return self._concurrency - self._slots.counter

    # One row.

    def _deliver(self, email_id: str, share: Share) -> bool:
        """Claims a row and delivers it; nothing where another has it, or it is not due. False: it is tried later."""
        # A user whose rows are locked has a share of the places all the same, and no more.
        try:
            rows = self._outgoing.claim_one(email_id, locked=share.belongs_to)
        except (PostgresLocked, PostgresRefused):
            self._rows.try_later(email_id, share.user)
            return False
        for row in rows:
            share.belongs_to(user_of(row))
            try:
                self._deliver_row(row)
            except PostgresRefused:
                metrics.DELIVERIES.labels("unrecorded").inc()  # it is kept, and tried again without a job
        return True

    def _queue_works(self) -> bool:
        return self._jobs is not None and self._jobs.working

    def _deliver_row(self, row: tuple[object, ...]) -> None:
        self._deliverer.deliver(email_of(row))

    def _wait_for_leave(self) -> None:
        while (pause := self._not_before - time.monotonic()) > 0:
            gevent.sleep(min(pause, 1.0))
