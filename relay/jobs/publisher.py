"""Send jobs (contract section 5): built, published in batches, and handed to the sweep where that fails."""

from __future__ import annotations

import contextlib
import random
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import gevent
import gevent.lock
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.errors import QueueUnavailable, RedisUnavailable
from relay.core.supervision import Supervised, run_once, supervise
from relay.jobs.intents import Intents
from relay.jobs.job import BATCH_SIZE, Job, send_jobs
from relay.postgres.store import Store
from relay.redis.cache import Cache

if TYPE_CHECKING:
    from relay.aws.sqs import Queue


_log = structlog.get_logger(__name__)

_PUBLISHED: Final = metrics.JOBS.labels("published")
_REFUSED: Final = metrics.JOBS.labels("refused")

#: Attempts for a job that the queue refuses alone, before it is left to the sweep.
_ATTEMPTS: Final = 4
#: Seconds to wait after a failure: the first time, and at most. Once the queue is back, jobs are later by no more.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 4.0
#: And while the process waits for its end.
_LAST_PAUSE: Final = 0.1


class Publisher:
    """Publishes a job for each stored row, off the reply path. One per process; `start()` after the fork.

    A job waits in memory for moments only. When the queue fails for longer, or too many wait, they are noted in Redis,
    where the sweep of whichever process finds them later (relay.jobs.sweep); and without Redis Postgres still knows.
    """

    #: Seconds that a job waits for others to share a call with. Longer: fewer calls, later jobs.
    linger = 0.02
    #: Calls at a time.
    senders = 4
    #: Seconds of failure after which what waits is handed to the sweep.
    patience = 5.0

    def __init__(self, queue_url: str, region: str, *, store: Store, cache: Cache, max_waiting: int = 10_000) -> None:
        self._queue_url = queue_url
        self._region = region
        self._store = store
        self._intents = Intents(cache.link)
        self._max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._wake = Event()
        self._idle = Event()
        self._idle.set()
        self._in_flight = 0
        self._slots = gevent.lock.BoundedSemaphore(self.senders)
        self._failing_since: float | None = None
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._stopping = False
        self._dropped = 0
        self._queue: Queue | None = None
        self._greenlets: list[Supervised] = []

    def start(self) -> None:
        """Builds the SQS client, here and not at the first job, because it takes 0.1 s; and starts to publish.

        Where there are no credentials yet, mail is accepted all the same and the client is tried again later.
        """
        self._open()
        self._greenlets.append(supervise("job-collector", self._collect, longest_pause=5.0))

    def publish(self, email_id: str, *, correlation_id: str | None = None, traceparent: str | None = None) -> None:
        """Takes a committed row's id; returns at once. The correlation id defaults to the email id."""
        self._waiting.append(Job.of(email_id, correlation_id, traceparent))
        self._idle.clear()
        self._wake.set()
        if len(self._waiting) > self._max_waiting:
            self._waiting.popleft()  # its intent is in Redis, since before the commit
            self._dropped += 1
        self._count_pending()

    def stop(self, deadline: float) -> int:
        """Publishes what waits, for at most `deadline` seconds. Returns how many jobs are left to a later sweep."""
        self._stopping = True
        self._not_before = 0.0
        self._wake.set()
        self._idle.wait(timeout=deadline)
        left = self._count_pending()
        # Else a sweep would find the last intents, and publish their jobs once more.
        with contextlib.suppress(RedisUnavailable):
            self._intents.settle()
        for greenlet in self._greenlets:
            greenlet.stop()
        if self._queue is not None:
            self._queue.close()
        return left

    def _open(self) -> None:
        # Not at the top: in polling mode nobody needs boto3, nor the memory that it takes.
        from relay.aws.sqs import Queue  # noqa: PLC0415
        from relay.jobs.sweep import Sweep  # noqa: PLC0415

        try:
            self._queue = Queue(self._queue_url, self._region)
        except QueueUnavailable as silent:
            self._failed(silent.code)
            return
        self._succeeded()
        self._greenlets.append(supervise("sweep", Sweep(self._queue, self._store, self._intents).run))

    def _collect(self) -> None:
        while True:
            self._wake.wait()
            if not self._waiting:
                self._wake.clear()
                continue
            pause = self._not_before - time.monotonic()
            if pause > 0:
                gevent.sleep(min(pause, 0.5))
                continue
            if self._failing_since is not None and time.monotonic() - self._failing_since > self.patience:
                self._hand_over()
            if self._queue is None:
                self._open()
                continue
            if len(self._waiting) < BATCH_SIZE and not self._stopping:
                gevent.sleep(self.linger)
            self._slots.acquire()
            batch = [self._waiting.popleft() for _ in range(min(BATCH_SIZE, len(self._waiting)))]
            self._in_flight += len(batch)
            run_once("job-sender", self._send, self._queue, batch)

    def _send(self, queue: Queue, batch: list[Job]) -> None:
        again: list[Job] = batch
        try:
            again = send_jobs(queue, batch)
            self._succeeded()
            refused = {job.email_id for job in again}
            taken = [job.email_id for job in batch if job.email_id not in refused]
            _PUBLISHED.inc(len(taken))
            _REFUSED.inc(len(refused))
            if taken:
                self._intents.drop(taken)
        except QueueUnavailable as silent:
            self._failed(silent.code)
        except Exception as error:  # noqa: BLE001 - it must lead to a pause, or the same jobs come back at once
            _log.exception("publishing_failed")
            self._failed(type(error).__name__)
        finally:
            self._in_flight -= len(batch)
            self._slots.release()
            self._retry(again, whole_batch=again is batch)
            if not self._count_pending():
                self._idle.set()

    def _count_pending(self) -> int:
        """How many jobs the queue has not taken yet; also for the metric."""
        pending = len(self._waiting) + self._in_flight
        metrics.JOBS_PENDING.value = pending
        return pending

    def _retry(self, jobs: list[Job], *, whole_batch: bool) -> None:
        """A job that was refused alone gets a few more attempts; a batch that failed with the queue keeps its place."""
        if whole_batch:
            self._waiting.extendleft(reversed(jobs))
        else:
            again = [replace(job, attempts=job.attempts + 1) for job in jobs]
            self._waiting.extend(job for job in again if job.attempts < _ATTEMPTS)
            given_up = sum(job.attempts >= _ATTEMPTS for job in again)
            if given_up:
                _log.error("jobs_given_up", jobs=given_up, note="left to the sweep")
            if again:
                self._not_before = time.monotonic() + random.uniform(0.5, 1.0) * _FIRST_PAUSE  # noqa: S311
        if self._waiting:
            self._wake.set()

    def _hand_over(self) -> None:
        """The queue fails for longer: the jobs go where any process finds them, also after this one's end.

        One batch stays, to find out when the queue is back.
        """
        handed = [job.email_id for job in self._waiting][BATCH_SIZE:]
        try:
            for start in range(0, len(handed), 1000):
                self._intents.note(handed[start : start + 1000])
        except RedisUnavailable:
            return  # they stay here, up to the limit
        if handed:
            gone = set(handed)
            self._waiting = deque(job for job in self._waiting if job.email_id not in gone)
            self._count_pending()
            _log.info("jobs_handed_to_sweep", jobs=len(handed))

    def _failed(self, code: str) -> None:
        metrics.FAULTS.labels("sqs").inc()
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            _log.warning("queue_unavailable", code=code)
        if now >= self._not_before:  # not for each of the calls that failed together
            pause = _LAST_PAUSE if self._stopping else self._pause
            self._not_before = now + pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)

    def _succeeded(self) -> None:
        if self._failing_since is not None or self._dropped:
            _log.info("queue_back", left_to_sweep=self._dropped)
        self._failing_since = None
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._dropped = 0
