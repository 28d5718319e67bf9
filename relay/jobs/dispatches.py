"""Sends a job for each webhook delivery that an event of this process has made due (contract sections 5 and 9).

A job only makes a delivery come sooner: what finds no room here, or what the queue does not take, is found in Postgres
by the next look of a delivery worker, or by the next scan of OpenSend's. So nothing is kept, and no request waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final

import gevent
from gevent.event import Event

from relay.core import metrics
from relay.core.errors import QueueUnavailable
from relay.core.supervision import Supervised, supervise
from relay.jobs.job import DispatchJob
from relay.jobs.sender import JobSender

#: Deliveries that wait for their job at most. A call takes ten.
_MOST_WAITING: Final = 2_000
#: Seconds after which a job is of no use: OpenSend's workers scan once a minute, ours look once a second.
_USEFUL_SECONDS: Final = 60.0
_RESULTS: Final = {word: metrics.WEBHOOK_JOBS.labels(word) for word in ("published", "refused", "dropped")}


class Dispatches:
    """Publishes jobs of one process, one call at a time."""

    def __init__(self, sender: JobSender) -> None:
        self._sender = sender
        self._waiting: deque[DispatchJob] = deque()
        self._wake = Event()
        self._idle = Event()
        self._idle.set()
        self._loop: Supervised | None = None

    def start(self) -> None:
        """Begins to publish. Neither waits for the queue nor needs it to be there."""
        self._loop = supervise("webhook-jobs", self._send, longest_pause=5.0)

    def publish(self, delivery_ids: Iterable[str]) -> None:
        """These deliveries are due, and committed. Never waits, never raises."""
        now = time.time()
        for delivery_id in delivery_ids:
            if len(self._waiting) >= _MOST_WAITING:
                _RESULTS["dropped"].inc()
                continue
            self._waiting.append(DispatchJob(delivery_id, now))
        if self._waiting:
            self._idle.clear()
            self._wake.set()

    def close(self, seconds: float) -> None:
        """Publishes what waits, as far as that can be done in so many seconds."""
        self._sender.hurry()
        self._idle.wait(seconds)
        if self._loop is not None:
            self._loop.stop()
        _RESULTS["dropped"].inc(len(self._waiting))
        self._waiting.clear()
        self._sender.close()

    def _drop_old(self) -> None:
        before = time.time() - _USEFUL_SECONDS
        while self._waiting and self._waiting[0].requested_at < before:
            self._waiting.popleft()
            _RESULTS["dropped"].inc()

    def _send(self) -> None:
        while True:
            if not self._waiting:
                self._idle.set()
                self._wake.clear()
                self._wake.wait()
                continue
            if self._sender.wait:
                gevent.sleep(min(self._sender.wait, 0.5))
                self._drop_old()
                continue
            batch = [self._waiting.popleft() for _ in range(min(self._sender.most, len(self._waiting)))]
            try:
                refused = self._sender.send(batch)
            except QueueUnavailable:
                _RESULTS["dropped"].inc(len(batch))
                continue
            _RESULTS["refused"].inc(len(refused))
            _RESULTS["published"].inc(len(batch) - len(refused))
