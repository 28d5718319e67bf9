"""Sends jobs to the queue for the publisher and the sweep of a process, and knows for both when it fails.

While the queue fails, one call at a time finds out whether it is back, with one job, after pauses that grow. A call
whose answer was lost may have been carried out: its jobs come twice, whatever one does. So that they come no more often
than that, once an answer was lost the next ones are awaited to a call that asks for nothing (`Queue.await_answer`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from relay.aws.causes import call_cause
from relay.core import metrics
from relay.core.errors import QueueUnavailable
from relay.jobs.job import BATCH_SIZE, QueueJob, send_jobs

if TYPE_CHECKING:
    from relay.aws.sqs import Queue

log = structlog.get_logger(__name__)
_FAULTS: Final = metrics.FAULTS.labels("sqs")
_J = TypeVar("_J", bound=QueueJob)


class JobSender:
    """Sends to one queue. Any number of greenlets may call."""

    #: Seconds to wait after a failure: the first time, and at most. Once the queue is back, jobs are later by no more.
    first_pause = 0.5
    longest_pause = 4.0
    #: The most where the answer to a job is lost although the probe before it was answered: each such try makes a job
    #: come once more.
    longest_lost_pause = 30.0
    #: The pause while the process waits for its end.
    last_pause = 0.1

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._failing = False
        #: The codes that were logged since it fails.
        self._codes: set[str] = set()
        #: Since it fails, an answer was lost to a call that may have been carried out.
        self._unclear = False
        #: A greenlet is trying a call, to find out whether the queue answers again.
        self._trying = False
        self._pause = self.first_pause
        self._not_before = 0.0
        self._hurried = False

    @property
    def failing(self) -> bool:
        """Whether the last call failed."""
        return self._failing

    @property
    def wait(self) -> float:
        """Seconds until the next call may be made; 0: now."""
        if not self._failing:
            return 0.0
        left = self._not_before - time.monotonic()
        return max(left, self.last_pause) if self._trying else max(left, 0.0)

    @property
    def most(self) -> int:
        """How many jobs the next call may have."""
        return 1 if self._failing else BATCH_SIZE

    def check(self) -> None:
        """Raises QueueUnavailable where no call may be made now."""
        if self.wait:
            raise QueueUnavailable("failing")

    def send(self, jobs: Sequence[_J]) -> list[_J]:
        """Sends jobs, `most` at most; returns those that the queue refused.

        Raises QueueUnavailable: it took none; with `unclear`, as far as one can know.
        """
        self.check()
        finding_out = self._trying = self._failing
        asked = False
        try:
            if finding_out and self._unclear:
                self._queue.await_answer()
            asked = True
            refused = send_jobs(self._queue, jobs)
        except QueueUnavailable as error:
            error.unclear = asked and error.unclear
            self._failed(error.code, lost=error.unclear, finding_out=finding_out)
            raise
        except Exception as error:  # it must lead to a pause, or the same jobs come back at once
            code = type(error).__name__
            if code not in self._codes:
                log.exception("publishing_failed")
            self._failed(code, lost=asked, finding_out=finding_out)
            raise QueueUnavailable(code, unclear=asked) from None
        finally:
            if finding_out:
                self._trying = False
        self._succeeded()
        return refused

    def hurry(self) -> None:
        """The process waits for its end: the next calls come soon."""
        self._hurried = True
        self._not_before = 0.0

    def close(self) -> None:
        """Closes the connections that are idle."""
        self._queue.close()

    def _failed(self, code: str, *, lost: bool, finding_out: bool) -> None:
        """`lost`: the queue may have taken the jobs. `finding_out`: it was known to fail."""
        _FAULTS.inc()
        if code not in self._codes:
            self._codes.add(code)
            log.warning("queue_unavailable", code=code, cause=call_cause(code))
        now = time.monotonic()
        if not self._failing or now >= self._not_before:  # not for each of the calls that failed together
            pause = self.last_pause if self._hurried else self._pause
            self._not_before = now + pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
            longest = self.longest_lost_pause if finding_out and lost else self.longest_pause
            self._pause = min(longest, self._pause * 2)
        self._failing = True
        self._unclear = self._unclear or lost

    def _succeeded(self) -> None:
        if self._failing:
            log.info("queue_back")
        self._failing = self._unclear = False
        self._codes.clear()
        self._pause = self.first_pause
        self._not_before = 0.0
