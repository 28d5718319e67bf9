"""Publishes what was missed: rows whose job is not known to be in the queue (contract section 5).

Two nets. The first are the intents in Redis: one that is still there half a minute after it was noted belongs to a
process that ended. The second needs nothing but Postgres: a row that has had no attempt at delivery for a quarter of an
hour gets a further job, at most one in six hours, because as a rule it means that the workers are behind and its job
waits in the queue as it should. A job too many is harmless: workers claim the row.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final

import gevent
import structlog

from relay.core import metrics
from relay.core.errors import QueueUnavailable, RedisUnavailable, Unavailable
from relay.core.supervision import Supervised, supervise
from relay.jobs.intents import Intents
from relay.jobs.job import Job
from relay.jobs.sender import JobSender
from relay.postgres.store import Store
from relay.redis.keys import REMIND_LOCK_KEY, SWEEP_LOCK_KEY

log = structlog.get_logger(__name__)
_SWEPT: Final = metrics.JOBS.labels("swept")

_PAGE: Final = 200
#: An intent whose row is not there is kept for so long (seconds): its message may still wait to be stored.
_HOPELESS_SECONDS: Final = 600.0
#: An intent that can't be published for so long is dropped; the second net remains.
_FORGET_SECONDS: Final = 86_400.0
_LOCK_SECONDS: Final = 60.0
#: Marks kept in memory while Redis is away.
_MAX_MARKS: Final = 10_000


class Sweep:
    """Runs in every process; a lock in Redis lets one of them work at a time."""

    #: Seconds between two rounds over the intents, and between two looks at Postgres.
    interval = 10.0
    reminder_interval = 60.0
    #: Age in seconds from which an intent is taken for forgotten. Publishers keep theirs younger (`keep_seconds`).
    forgotten_after = 30.0
    #: How long a row waits until it gets a further job, how long until yet another, and how many at most a second.
    overdue_after = timedelta(minutes=15)
    remind_again_after = 6 * 3600.0
    reminders_per_second = 20.0
    #: Rows that one look at Postgres reads.
    reminder_rows = 4000

    def __init__(self, sender: JobSender, store: Store, intents: Intents) -> None:
        self._sender = sender
        self._store = store
        self._intents = intents
        self._token = uuid.uuid4().hex
        self._marks: dict[str, float] = {}
        self._seen_to: tuple[str, str] | None = None
        self._supervised: list[Supervised] = []

    def start(self) -> None:
        """Begins to sweep. Each of the two has a separate greenlet, so that neither waits for the other."""
        self._supervised = [supervise("overdue-sweep", self._run, self.remind, self.reminder_interval)]
        if self._intents.kept:
            self._supervised.append(supervise("intent-sweep", self._run, self.publish_forgotten, self.interval))

    def stop(self) -> None:
        """Ends the sweep; what it has in hand is left to another."""
        for supervised in self._supervised:
            supervised.stop()

    @staticmethod
    def _run(look: Callable[[], int], interval: float) -> None:
        gevent.sleep(interval * random.uniform(0.1, 1.0))  # noqa: S311 - spreads load
        while True:
            try:
                look()
            except Unavailable as unavailable:
                log.info("sweep_postponed", service=unavailable.service, code=unavailable.code)
            gevent.sleep(interval * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load

    def publish_forgotten(self) -> int:
        """One round over the intents; how many jobs were published. Raises Unavailable."""
        self._sender.check()
        if not self._intents.hold_lock(SWEEP_LOCK_KEY, self._token, _LOCK_SECONDS):
            return 0
        published = kept = 0
        try:
            while True:
                page = self._intents.older_than(self.forgotten_after, skip=kept, limit=_PAGE)
                if not page:
                    break
                count, stays = self._publish_page(dict(page))
                published += count
                kept += stays
                if len(page) < _PAGE:
                    break
        finally:
            if published:
                log.info("forgotten_jobs_published", jobs=published)
        self._intents.leave_lock(SWEEP_LOCK_KEY, self._token)
        return published

    def remind(self) -> int:
        """One look at what Postgres says is overdue; how many jobs were published. Raises Unavailable."""
        self._sender.check()
        # Without Redis there is no lock, and each process looks for itself.
        with contextlib.suppress(RedisUnavailable):
            if not self._intents.hold_lock(REMIND_LOCK_KEY, self._token, _LOCK_SECONDS):
                return 0
        published = 0
        for _ in range(self.reminder_rows // _PAGE):
            page = self._store.overdue(self.overdue_after, _PAGE, self._seen_to)
            published += self._remind_page([email_id for _, email_id in page])
            # Not before: a page that the queue did not take is looked at again.
            self._seen_to = page[-1] if len(page) == _PAGE else None
            if self._seen_to is None:
                break
        if published:
            log.warning("overdue_jobs_published", jobs=published)
        with contextlib.suppress(RedisUnavailable):
            self._intents.leave_lock(REMIND_LOCK_KEY, self._token)
        return published

    def _publish_page(self, ages: dict[str, float]) -> tuple[int, int]:
        """Publishes, drops or keeps these intents; how many were published, and how many stay on the list."""
        ids = list(ages)
        queued = self._store.queued(ids)
        missing = set(ids) - queued
        missing -= self._store.rows_exist(missing) if missing else set()
        young = {email_id for email_id in missing if ages[email_id] < _HOPELESS_SECONDS}
        forgotten = {email_id for email_id in queued if ages[email_id] > _FORGET_SECONDS}
        if forgotten:
            log.error("intents_dropped", rows=len(forgotten))
        dropped = [email_id for email_id in ids if email_id in forgotten or email_id not in queued | young]
        if dropped:
            self._intents.drop(dropped)
        due = [email_id for email_id in ids if email_id in queued - forgotten]
        refused = self._send(due)
        return len(due) - refused, refused + len(young)

    def _send(self, ids: Sequence[str]) -> int:
        """Publishes these rows; how many the queue refused."""
        refused = 0
        for batch in self._batches(ids):
            if not self._intents.hold_lock(SWEEP_LOCK_KEY, self._token, _LOCK_SECONDS):
                raise RedisUnavailable("lock lost")  # the queue was slow, and another process sweeps now
            failed = {job.email_id for job in self._sender.send([Job.of(email_id) for email_id in batch])}
            taken = [email_id for email_id in batch if email_id not in failed]
            if taken:
                self._intents.drop(taken)
            refused += len(failed)
            _SWEPT.inc(len(taken))
        return refused

    def _remind_page(self, ids: list[str]) -> int:
        due = self._unmarked(ids) if ids else []
        for batch in self._batches(due):
            self._mark(batch)  # before, not after: an error in between must not make a flood
            try:
                failed = self._sender.send([Job.of(email_id) for email_id in batch])
            except QueueUnavailable:
                self._unmark(batch)  # the sender sees to it that there is no flood
                raise
            self._unmark([job.email_id for job in failed])
            with contextlib.suppress(RedisUnavailable):
                self._intents.hold_lock(REMIND_LOCK_KEY, self._token, _LOCK_SECONDS)
            _SWEPT.inc(len(batch) - len(failed))
            gevent.sleep(len(batch) / self.reminders_per_second)
        return len(due)

    def _batches(self, ids: Sequence[str]) -> Iterator[list[str]]:
        """The rows in batches as large as the sender takes at that moment."""
        left = list(ids)
        if self._sender.failing:
            # The one that is sent in doubt is to be another each time.
            random.shuffle(left)
        while left:
            count = self._sender.most
            yield left[:count]
            del left[:count]

    def _unmarked(self, ids: list[str]) -> list[str]:
        now = time.monotonic()
        known = {email_id for email_id in ids if now - self._marks.get(email_id, -math.inf) < self.remind_again_after}
        with contextlib.suppress(RedisUnavailable):
            known |= self._intents.reminded(ids, self.remind_again_after)
        return [email_id for email_id in ids if email_id not in known]

    def _mark(self, ids: Sequence[str]) -> None:
        self._marks |= dict.fromkeys(ids, time.monotonic())
        while len(self._marks) > _MAX_MARKS:
            del self._marks[next(iter(self._marks))]
        with contextlib.suppress(RedisUnavailable):
            self._intents.mark_reminded(ids)

    def _unmark(self, ids: Sequence[str]) -> None:
        for email_id in ids:
            self._marks.pop(email_id, None)
        if ids:
            self._intents.unmark_reminded(ids)
