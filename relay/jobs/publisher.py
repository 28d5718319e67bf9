"""Send jobs (contract section 5): built, published in batches, and handed to the sweep where that fails."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.lock
import orjson
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.frozen import frozen
from relay.jobs.intents import Intents
from relay.postgres.store import Store
from relay.redis.cache import Cache
from relay.redis.link import Silent

if TYPE_CHECKING:
    from relay.aws.sqs import Queue

_log = structlog.get_logger(__name__)

_PUBLISHED: Final = metrics.JOBS.labels("published")
_REFUSED: Final = metrics.JOBS.labels("refused")

#: Jobs a SendMessageBatch. Ten of ours are 8 KB, far below the 256 KB that it may have.
BATCH_SIZE: Final = 10
#: Characters. Keeps ten jobs far below what a call may hold.
_MAX_CORRELATION_ID: Final = 256
#: Attempts for a job that the queue refuses alone, before it is left to the sweep.
_ATTEMPTS: Final = 4
#: Seconds to wait after a failure: the first time, and at most. Once the queue is back, jobs are later by no more.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 4.0
#: And while the process waits for its end.
_LAST_PAUSE: Final = 0.1


@frozen
class Job:
    """One send job. `requested_at` is unix seconds."""

    email_id: str
    correlation_id: str
    traceparent: str
    requested_at: float
    attempts: int = 0

    @classmethod
    def of(cls, email_id: str, correlation_id: str | None = None, traceparent: str | None = None) -> Job:
        """A job as of now; a random traceparent (W3C Trace Context, version 00, sampled) where none is given."""
        if traceparent is None:
            random_hex = os.urandom(24).hex()
            traceparent = f"00-{random_hex[:32]}-{random_hex[32:]}-01"
        return cls(email_id, (correlation_id or email_id)[:_MAX_CORRELATION_ID], traceparent, time.time())

    def entry(self, position: int, *, fifo: bool) -> dict[str, Any]:
        """The entry of a SendMessageBatch, in the contract's form."""
        job_id = f"email.send:{self.email_id}"
        requested_at = datetime.fromtimestamp(self.requested_at, UTC).isoformat(timespec="milliseconds")
        body = {
            "id": job_id,
            "type": "email.send",
            "source": "api",
            "emailId": self.email_id,
            "requestedAt": requested_at.removesuffix("+00:00") + "Z",
            "trace": {"traceparent": self.traceparent, "correlationId": self.correlation_id},
        }
        entry: dict[str, Any] = {
            # Not the position alone: an answer to another call must not be taken for the answer to this one.
            "Id": f"{position}_{self.email_id}",
            "MessageBody": orjson.dumps(body).decode(),
            "MessageAttributes": {
                "jobId": {"DataType": "String", "StringValue": job_id},
                "jobType": {"DataType": "String", "StringValue": "email.send"},
                "source": {"DataType": "String", "StringValue": "api"},
                "correlationId": {"DataType": "String", "StringValue": self.correlation_id},
                "traceparent": {"DataType": "String", "StringValue": self.traceparent},
            },
        }
        if fifo:
            entry |= {"MessageDeduplicationId": job_id, "MessageGroupId": "email.send"}
        return entry


def send_jobs(queue: Queue, jobs: Sequence[Job]) -> list[Job]:
    """Sends at most BATCH_SIZE jobs; returns those that the queue refused. Raises QueueSilent when it took none."""
    fifo = queue.fifo
    refused = queue.send([job.entry(position, fifo=fifo) for position, job in enumerate(jobs)])
    if refused:
        _log.warning("jobs_refused", jobs=len(refused), codes=sorted(set(refused.values())))
    return [jobs[int(entry_id.partition("_")[0])] for entry_id in refused]


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
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        """Builds the SQS client, here and not at the first job, because it takes 0.1 s; and starts to publish.

        Where there are no credentials yet, mail is accepted all the same and the client is tried again later.
        """
        self._open()
        self._greenlets.append(gevent.spawn(self._collect))

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
        with contextlib.suppress(Silent):
            self._intents.settle()
        gevent.killall(self._greenlets)
        if self._queue is not None:
            self._queue.close()
        return left

    def _open(self) -> None:
        # Not at the top: in polling mode nobody needs boto3, nor the memory that it takes.
        from relay.aws.sqs import Queue, QueueSilent  # noqa: PLC0415
        from relay.jobs.sweep import Sweep  # noqa: PLC0415

        try:
            self._queue = Queue(self._queue_url, self._region)
        except QueueSilent as silent:
            self._failed(silent.code)
            return
        self._succeeded()
        self._greenlets.append(gevent.spawn(Sweep(self._queue, self._store, self._intents).run))

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
            gevent.spawn(self._send, self._queue, batch)

    def _send(self, queue: Queue, batch: list[Job]) -> None:
        from relay.aws.sqs import QueueSilent  # noqa: PLC0415 - see _open()

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
        except QueueSilent as silent:
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
        except Silent:
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
