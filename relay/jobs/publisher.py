"""Publishes send jobs (contract section 5) off the reply path: in batches, and again where that fails."""

from __future__ import annotations

import contextlib
import random
import time
from collections import deque
from dataclasses import replace
from typing import Final

import gevent
import gevent.lock
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.errors import QueueUnavailable, RedisUnavailable
from relay.core.supervision import Supervised, run_once, supervise
from relay.jobs.intents import Intents
from relay.jobs.job import BATCH_SIZE, Job
from relay.jobs.sender import JobSender

log = structlog.get_logger(__name__)

_PUBLISHED: Final = metrics.JOBS.labels("published")
_REFUSED: Final = metrics.JOBS.labels("refused")

#: Attempts for a job that the queue refuses alone, before it is left to the sweep, and seconds between them.
_ATTEMPTS: Final = 4
_REFUSED_PAUSE: Final = 0.5
#: Intents that are noted anew in one command.
_PAGE: Final = 1000


class Publisher:
    """Publishes a job for each stored row. One per process; `start()` after the fork.

    While the queue fails, jobs wait in memory, and their intents in Redis are kept young, so that no sweep takes them
    for forgotten; it does once this process is gone. What finds no room here is left to the sweep at once.
    """

    #: Seconds that a job waits for others to share a call with. Longer: fewer calls, later jobs.
    linger = 0.02
    #: Calls at a time.
    senders = 4
    #: A job that has waited for so long (seconds) has its intent noted anew, and again after each such time. A third of
    #: the age from which a sweep takes an intent for forgotten.
    keep_seconds = 10.0

    def __init__(self, sender: JobSender, intents: Intents, *, max_waiting: int = 10_000) -> None:
        self._sender = sender
        self._intents = intents
        self._max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._flying: dict[int, list[Job]] = {}
        self._wake = Event()
        self._idle = Event()
        self._idle.set()
        self._slots = gevent.lock.BoundedSemaphore(self.senders)
        self._not_before = 0.0
        self._stopping = False
        self._dropped = 0
        self._supervised: list[Supervised] = []

    def start(self) -> None:
        """Begins to publish. Neither waits for the queue nor needs it to be there."""
        self._supervised = [
            supervise("job-collector", self._collect, longest_pause=5.0),
            supervise("intent-keeper", self._keep_intents),
        ]

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
        self._sender.hurry()
        self._wake.set()
        self._idle.wait(timeout=deadline)
        left = self._count_pending()
        # Else a sweep would find the last intents, and publish their jobs once more.
        with contextlib.suppress(RedisUnavailable):
            self._intents.settle()
        for supervised in self._supervised:
            supervised.stop()
        return left

    def _collect(self) -> None:
        while True:
            self._wake.wait()
            if not self._waiting:
                self._wake.clear()
                continue
            pause = max(self._not_before - time.monotonic(), self._sender.wait)
            if pause > 0:
                gevent.sleep(min(pause, 0.5))
                continue
            if self._sender.failing:
                # Here and not in a separate greenlet: one call at a time finds out whether the queue is back.
                self._send(self._take(self._sender.most))
                continue
            if len(self._waiting) < BATCH_SIZE and not self._stopping:
                gevent.sleep(self.linger)
            self._slots.acquire()
            if self._sender.failing:  # by now
                self._slots.release()
                continue
            run_once("job-batch", self._send_in_slot, self._take(BATCH_SIZE))

    def _take(self, most: int) -> list[Job]:
        batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self._flying[id(batch)] = batch
        return batch

    def _send_in_slot(self, batch: list[Job]) -> None:
        try:
            self._send(batch)
        finally:
            self._slots.release()

    def _send(self, batch: list[Job]) -> None:
        refused = batch
        unclear = whole = True
        try:
            refused = self._sender.send(batch)
            whole = False
            refused_ids = {job.email_id for job in refused}
            taken = [job.email_id for job in batch if job.email_id not in refused_ids]
            _PUBLISHED.inc(len(taken))
            _REFUSED.inc(len(refused))
            if taken:
                self._intents.drop(taken)
            self._tell_dropped()
        except QueueUnavailable as error:
            unclear = error.unclear
        finally:
            del self._flying[id(batch)]
            if not whole:
                self._retry(refused)
            elif unclear:
                # Behind the others: no job is to be the one that is sent in doubt again and again.
                self._waiting.extend(batch)
            else:
                self._waiting.extendleft(reversed(batch))
            if self._waiting:
                self._wake.set()
            if not self._count_pending():
                self._idle.set()

    def _count_pending(self) -> int:
        """How many jobs the queue has not taken yet; also for the metric."""
        pending = len(self._waiting) + sum(map(len, self._flying.values()))
        metrics.JOBS_PENDING.value = pending
        return pending

    def _retry(self, jobs: list[Job]) -> None:
        """A job that was refused alone gets a few more attempts."""
        again = [replace(job, attempts=job.attempts + 1) for job in jobs]
        self._waiting.extend(job for job in again if job.attempts < _ATTEMPTS)
        given_up = sum(job.attempts >= _ATTEMPTS for job in again)
        if given_up:
            log.error("jobs_given_up", jobs=given_up, note="left to the sweep")
        if again:
            self._not_before = time.monotonic() + random.uniform(0.5, 1.0) * _REFUSED_PAUSE  # noqa: S311

    def _tell_dropped(self) -> None:
        if self._dropped:
            log.warning("jobs_left_to_sweep", jobs=self._dropped)
            self._dropped = 0

    def _keep_intents(self) -> None:
        while True:
            gevent.sleep(self.keep_seconds)
            with contextlib.suppress(RedisUnavailable):
                self._note_anew()

    def _note_anew(self) -> None:
        """Notes the intents of jobs that have waited for long as of now. Raises RedisUnavailable."""
        before = time.time() - self.keep_seconds
        old = [job for job in self._pending() if job.requested_at < before]
        for start in range(0, len(old), _PAGE):
            now = self._intents.now_ms()
            # Between here and the command no other greenlet runs: what the queue has taken by now is not noted again.
            pending = {job.email_id for job in self._pending()}
            ids = [job.email_id for job in old[start : start + _PAGE] if job.email_id in pending]
            if ids:
                self._intents.note(ids, now)

    def _pending(self) -> list[Job]:
        return [*self._waiting, *(job for batch in self._flying.values() for job in batch)]
