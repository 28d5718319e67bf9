"""Webhook deliveries: found, claimed when there is a place, made, and recorded (contract section 9).

    wake   a job of the queue, a word in Redis or an event of this process names deliveries: they are looked at at once
    look   once a second, and less often where that takes long: what is due, some of each webhook; where much is
           pending, in one part of the table soon after the other (webhook_looks)

What waits is in Postgres. In memory are the names of what the last look saw, and the calls that are being made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final

import gevent
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.errors import PostgresUnavailable, Unstorable
from relay.core.supervision import Supervised, run_once, supervise
from relay.delivery.row_source import Turns
from relay.delivery.webhook_attempts import WebhookAttempts
from relay.delivery.webhook_looks import WebhookLooks
from relay.delivery.webhook_places import WebhookPlaces
from relay.postgres.webhook_deliveries import LEASE_SECONDS, ClaimedDelivery, Due, WebhookDeliveries, WebhookResult

log = structlog.get_logger(__name__)

#: Seconds between two looks of all processes of a machine together.
LOOK_SECONDS: Final = 1.0
#: Deliveries that a look names. One webhook may have them all: a look of a long backlog takes long, so the next one
#: comes late, and what it names has to last until then.
LOOK_MOST: Final = 2_000
#: Deliveries of a webhook that are known: with so many it is left out of a look at a part. And of all webhooks: with
#: more, those of the last part alone are known.
ENOUGH: Final = 200
MOST_KNOWN: Final = 2 * LOOK_MOST
#: The part of the time that looks may take of Postgres, and the shortest time between two of them, in seconds.
_LOOK_SHARE: Final = 0.1
_LOOK_PAUSE: Final = 0.05
#: Deliveries of one claim, and of one look at those that were named.
_CLAIMED: Final = 100
_NAMED: Final = 200
#: Names that are kept until they are looked at. What is beyond is found by a look.
_MOST_NAMED: Final = 5_000
#: Results of one statement.
_RECORDED: Final = 100
#: Seconds from a claim for which its result is kept while it can't be recorded. After its lease it still counts, unless
#: the delivery was claimed again.
_KEPT_SECONDS: Final = 60.0
#: Seconds until a locked row is tried again.
_LOCKED_PAUSE: Final = 0.1

#: Until when (time.monotonic()) a result is of use, the result, and whether the call was quick.
_Recorded = tuple[float, WebhookResult, bool]


class Webhooks:
    """Makes webhook deliveries, each in a separate greenlet."""

    def __init__(self, deliveries: WebhookDeliveries, attempts: WebhookAttempts, turns: Turns) -> None:
        self._deliveries = deliveries
        self._attempts = attempts
        self._turns = turns
        self._places = WebhookPlaces()
        self._looks = WebhookLooks(deliveries)
        #: Something has changed for the loop that hands out.
        self._changed = Event()
        #: Deliveries that were named, in order.
        self._named: dict[str, None] = {}
        self._next_look = 0.0
        self._look_wanted = False
        self._not_before = 0.0
        #: Webhooks of which more may be due than the last look named.
        self._many: set[str] = set()
        self._results: list[_Recorded] = []
        self._to_record = Event()
        self._loops: list[Supervised] = []
        self._recording: Supervised | None = None

    def start(self) -> None:
        """Begins to take work."""
        self._recording = supervise("webhook_results", self._record)
        self._loops.append(supervise("webhook_deliveries", self._hand_out))

    def drain(self, seconds: float) -> int:
        """Takes no more work, and waits for the calls that are being made. Returns how many are left."""
        for loop in self._loops:
            loop.stop()
        until = time.monotonic() + seconds
        while self._places.busy and time.monotonic() < until:
            gevent.sleep(0.05)
        if self._recording is not None:
            self._recording.stop()
        return self._places.busy

    def wake(self) -> None:
        """Something may be due: has a look begin soon."""
        self._look_wanted = True
        self._changed.set()

    def name(self, delivery_ids: Iterable[str]) -> None:
        """These deliveries may be due: has them looked at now."""
        for delivery_id in delivery_ids:
            if len(self._named) >= _MOST_NAMED:
                self._look_wanted = True
                break
            self._named[delivery_id] = None
        self._changed.set()

    def retry(self, delivery_id: str, requested: datetime | None) -> None:
        """Makes a delivery once more (see `WebhookDeliveries.retry`). Raises PostgresUnavailable."""
        self._deliveries.retry(delivery_id, requested)
        self.name([delivery_id])

    # Handing out.

    def _hand_out(self) -> None:
        while True:
            self._changed.clear()
            try:
                self._look_at_named()
                self._look_if_due()
                self._claim_some()
            except PostgresUnavailable:
                gevent.sleep(1.0)
            next_look = self._not_before if self._wants_look() else self._next_look
            self._changed.wait(min(1.0, max(0.0, next_look - time.monotonic())))

    def _wants_look(self) -> bool:
        """Whether a look is to begin as soon as it may."""
        return self._look_wanted or self._looks.in_parts or self._places.wants_more(self._many)

    def _look_at_named(self) -> None:
        while self._named:
            ids = list(self._named)[:_NAMED]
            self._places.add(self._deliveries.look_at(ids))
            for delivery_id in ids:
                del self._named[delivery_id]
            self._claim_some()

    def _look_if_due(self) -> None:
        began = time.monotonic()
        if began < self._not_before or not (self._wants_look() or began >= self._next_look):
            return
        self._look_wanted = False
        due, whole = self._looks.look(LOOK_MOST, self._places.well_known(ENOUGH))
        self._many = {each.webhook_id for each in due} if whole and len(due) == LOOK_MOST else set()
        if whole or len(self._places) + len(due) > MOST_KNOWN:
            self._places.replace(due)
        else:
            self._places.add(due)
        ended = time.monotonic()
        # The processes of a machine take turns at looks at all; at parts each of them looks by itself.
        share = _LOOK_SHARE if whole else _LOOK_SHARE / self._turns.processes
        self._not_before = ended + max(_LOOK_PAUSE, (ended - began) / share)
        self._next_look = max(self._not_before, self._turns.next(LOOK_SECONDS))

    def _claim_some(self) -> None:
        """Claims what there are places for."""
        due = self._places.take()
        for start in range(0, len(due), _CLAIMED):
            # In a separate greenlet: the end of this loop must not be the end of a claim.
            run_once("webhook_claim", self._claim, due[start : start + _CLAIMED]).join()

    def _claim(self, due: list[Due]) -> None:
        left = {each.delivery_id for each in due}
        began = time.monotonic()
        try:
            for claimed in self._deliveries.claim(left):
                left.discard(claimed.id)
                run_once("webhook_call", self._make, claimed, began)
        except PostgresUnavailable:
            gevent.sleep(1.0)
        finally:
            for delivery_id in left:
                self._done(delivery_id, quick=None)

    def _make(self, claimed: ClaimedDelivery, began: float) -> None:
        """`began`: when its lease did, at the latest."""
        metrics.WEBHOOKS_IN_FLIGHT.value += 1
        recorded = False
        try:
            made = self._attempts.make(claimed, until=began + LEASE_SECONDS)
            if made is not None:
                self._results.append((began + _KEPT_SECONDS, *made))
                self._to_record.set()
                recorded = True
        except PostgresUnavailable:
            metrics.FAULTS.labels("postgres").inc()
        finally:
            metrics.WEBHOOKS_IN_FLIGHT.value -= 1
            if not recorded:
                self._done(claimed.id, quick=None)

    def _done(self, delivery_id: str, *, quick: bool | None) -> None:
        self._places.give_back(delivery_id, quick=quick)
        self._changed.set()

    # Recording.

    def _record(self) -> None:
        """Records results, as many at a time as there are; places are free when that is done.

        A statement that fails is followed by smaller ones, so that the result that was the cause ends up alone. That
        one, and one whose row is locked, go behind the others.
        """
        size, failures = _RECORDED, 0
        while True:
            self._to_record.wait()
            self._to_record.clear()
            while self._results:
                some = self._results[:size]
                try:
                    dealt_with = self._deliveries.record([result for _, result, _ in some])
                except (PostgresUnavailable, Unstorable):
                    dealt_with, size, failures = set(), 1, failures + 1
                else:
                    size, failures = min(2 * size, _RECORDED), 0
                done = [entry for entry in some if entry[1].delivery.id in dealt_with]
                behind = [entry for entry in some if entry[1].delivery.id not in dealt_with]
                self._results = self._results[len(some) :] + behind
                self._tell(done)
                if not done:
                    # All of them are locked, or more than one result fails: then it may be Postgres.
                    gevent.sleep(1.0 if failures > 1 else _LOCKED_PAUSE)
                self._give_up_late()

    def _tell(self, recorded: Iterable[_Recorded]) -> None:
        for _, result, quick in recorded:
            log.info(
                "webhook_delivery",
                delivery=result.delivery.id,
                outcome=result.status,
                attempt=result.attempt,
                status=result.status_code,
            )
            self._done(result.delivery.id, quick=quick)

    def _give_up_late(self) -> None:
        """What could not be recorded for so long is made again, by any worker, with the same id."""
        now = time.monotonic()
        late = [result for until, result, _ in self._results if until < now]
        self._results = [entry for entry in self._results if entry[0] >= now]
        for result in late:
            log.warning("webhook_result_lost", delivery=result.delivery.id)
            self._done(result.delivery.id, quick=None)
