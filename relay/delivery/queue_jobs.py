"""Jobs of the queue: what each type asks for, and what becomes of its message (contract section 5).

email.send              the row is claimed and delivered, the message deleted; so it is where the row can't be claimed,
                        which is tried again from Postgres: the message would count towards the redrive policy's limit
scheduled-email.scan    the worker looks at once for what no job comes for, the message is deleted
webhook.dispatch        the delivery is looked at at once; where a person asked for it (`manual`), it is made once more
webhook-delivery.scan   the worker looks at once for deliveries that are due, the message is deleted
both, where webhooks    left to another consumer of the queue, and deleted at the third look; the deliveries are rows in
are OpenSend's work     Postgres (`pending`), so that nothing is lost with the message
anything else           poison: left to the queue's redrive policy; deleted where a FIFO queue has none
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import gevent
import gevent.lock
import orjson
import structlog

from relay.aws.causes import call_cause
from relay.aws.sqs_receiver import MAX_MESSAGES, QueueReceiver, Received
from relay.core import metrics
from relay.core.errors import PostgresUnavailable, QueueUnavailable
from relay.core.ids import is_uuid
from relay.core.supervision import Supervised, run_once, supervise
from relay.delivery.shares import Share, Shares
from relay.delivery.webhooks import Webhooks

log = structlog.get_logger(__name__)

SEND: Final = "email.send"
SCAN: Final = "scheduled-email.scan"
DISPATCH: Final = "webhook.dispatch"
WEBHOOK_SCAN: Final = "webhook-delivery.scan"
WEBHOOKS: Final = (DISPATCH, WEBHOOK_SCAN)

#: Seconds for which no other consumer sees a message in flight; extended while its mail is being sent.
VISIBILITY_SECONDS: Final = 120
#: How often a job of another consumer's is looked at before it is deleted, and the seconds for which it is left after
#: the first look; each further one doubles them. On a FIFO queue it comes back at once: its group would stand still.
_LOOKS: Final = 3
_LEFT_SECONDS: Final = 10
#: Seconds after the last job for which the queue counts as at work: from one message to the next.
_AT_WORK_SECONDS: Final = 1.0
#: Seconds for which it is remembered whether the queue has a redrive policy.
_REDRIVE_SECONDS: Final = 300.0
#: Seconds that the end of the service waits for messages to be given back.
_GIVING_BACK_SECONDS: Final = 2.0
#: Seconds from one look at Postgres to the next while it is away: the first and the longest.
_AWAY: Final = (0.5, 5.0)

for _kind, _result in (
    (SEND, "done"),
    (SEND, "deleted"),
    (SCAN, "done"),
    *((kind, result) for kind in WEBHOOKS for result in ("done", "left", "deleted")),
    ("poison", "left"),
    ("poison", "deleted"),
):
    metrics.DELIVERY_JOBS.labels(_kind, _result)


class Job(NamedTuple):
    """A job, as far as it matters here. `row_id`: the email of `email.send`, the delivery of `webhook.dispatch`."""

    kind: str
    row_id: str = ""
    #: Whether a person asked for it, and when.
    manual: bool = False
    requested: datetime | None = None


class QueueJobs:
    """Takes messages from the queue and does what they ask for, at most as many at a time as there are slots."""

    def __init__(
        self,
        receiver: QueueReceiver,
        slots: gevent.lock.BoundedSemaphore,
        shares: Shares,
        *,
        deliver: Callable[[str, Share], bool],
        scan: Callable[[], None],
        wait_for_leave: Callable[[], None],
        ask_postgres: Callable[[], object],
        webhooks: Webhooks | None,
    ) -> None:
        """`deliver`: claims and delivers a row, and says its user; False: that is left to Postgres. `scan`: has a scan
        begin soon; `wait_for_leave`: returns when work may be taken. `ask_postgres` and `deliver` raise
        PostgresUnavailable. `webhooks`: None where they are OpenSend's.
        """
        self._receiver = receiver
        self._slots = slots
        self._shares = shares
        self._deliver = deliver
        self._scan = scan
        self._wait_for_leave = wait_for_leave
        self._ask_postgres = ask_postgres
        self._webhooks = webhooks
        self._postgres_away = False
        #: Jobs that are being done, and the time (monotonic) at which the last one ended.
        self._begun = 0
        self._ended = float("-inf")
        self._redrives = False
        self._redrives_until = float("-inf")

    @property
    def working(self) -> bool:
        """Whether jobs come and are done: others may have to wait behind them."""
        return self._begun > 0 or time.monotonic() - self._ended < _AT_WORK_SECONDS

    def receive(self) -> None:
        """Works until it is killed. What was received and not begun then is given back."""
        while True:
            self._wait_for_postgres()
            self._wait_for_leave()
            self._shares.wait()
            self._slots.wait()
            most = max(1, min(MAX_MESSAGES, self._slots.counter, self._shares.room)) if not self._receiver.fifo else 1
            try:
                messages = self._receiver.receive(most, visibility_seconds=VISIBILITY_SECONDS)
            except QueueUnavailable as unavailable:
                self._unavailable(unavailable)
                gevent.sleep(1.0)
                continue
            try:
                while messages:
                    share = self._place()
                    self._begun += 1
                    job = run_once("delivery_job", self._job, messages.pop(0), share)
                    if self._receiver.fifo:
                        # All mail is one group: while this one is in flight, the queue has nothing else to give. It is
                        # waited for and not done here: the end of this loop must not be the end of a mail half sent.
                        job.join()
            finally:
                self._give_back_all(messages)

    def _place(self) -> Share:
        """Takes a place for a job, as soon as the user with most mails on their way may have one more."""
        while True:
            self._shares.wait()
            self._slots.acquire()
            if self._shares.room > 0:
                return self._shares.of_unknown()
            self._slots.release()

    def _job(self, received: Received, share: Share) -> None:
        """One message; its place has been taken."""
        try:
            self._do(received, share)
        except PostgresUnavailable:
            # The message comes back; on a FIFO queue nothing may wait for that.
            self._postgres_away = True
            if self._receiver.fifo:
                self._give_back(received)
        except QueueUnavailable as unavailable:
            self._unavailable(unavailable)
        except Exception:
            log.exception("unexpected_error")
            if self._receiver.fifo:
                self._forget(received)  # its row is in Postgres, and is found there
        finally:
            share.end()
            self._begun -= 1
            self._ended = time.monotonic()
            self._slots.release()

    def _do(self, received: Received, share: Share) -> None:
        job = job_of(received.body)
        if job is None:
            self._poison(received)
        elif job.kind in WEBHOOKS and self._webhooks is None:
            self._leave(job.kind, received)
        else:
            done = True
            if job.kind == SEND:
                with _Extending(self._receiver, received):
                    done = self._deliver(job.row_id, share)
            elif self._webhooks is not None and job.kind == WEBHOOK_SCAN:
                self._webhooks.wake()
            elif self._webhooks is not None and job.kind == DISPATCH:
                self._dispatch(self._webhooks, job)
            else:
                self._scan()
            self._receiver.delete(received)
            metrics.DELIVERY_JOBS.labels(job.kind, "done" if done else "deleted").inc()

    @staticmethod
    def _dispatch(webhooks: Webhooks, job: Job) -> None:
        """The delivery is a row in Postgres: nothing is lost with the message once that is as it should be."""
        if job.manual:
            webhooks.retry(job.row_id, job.requested)
        else:
            webhooks.name([job.row_id])

    def _leave(self, kind: str, received: Received) -> None:
        """A job for another consumer of the queue, if there is one."""
        if received.count >= _LOOKS:
            self._receiver.delete(received)
            metrics.DELIVERY_JOBS.labels(kind, "deleted").inc()
            log.info("job_left_to_postgres", type=kind)
        else:
            self._receiver.extend(received, 0 if self._receiver.fifo else _LEFT_SECONDS * 2 ** (received.count - 1))
            metrics.DELIVERY_JOBS.labels(kind, "left").inc()

    def _poison(self, received: Received) -> None:
        """A message that is no job. The redrive policy has it put aside; a FIFO queue without one would stand still."""
        deleted = self._receiver.fifo and not self._knows_redrive()
        if deleted:
            self._receiver.delete(received)
        elif self._receiver.fifo:
            self._receiver.extend(received, 0)
        # Elsewhere it comes back when its time in flight is over: it holds up nothing, and must not come at once.
        metrics.DELIVERY_JOBS.labels("poison", "deleted" if deleted else "left").inc()
        log.error("poison", deleted=deleted)

    def _knows_redrive(self) -> bool:
        """Whether the queue has a redrive policy. False where the role may not know."""
        if time.monotonic() >= self._redrives_until:
            try:
                self._redrives = self._receiver.redrives()
            except QueueUnavailable:
                self._redrives = False
            self._redrives_until = time.monotonic() + _REDRIVE_SECONDS
        return self._redrives

    def _wait_for_postgres(self) -> None:
        """Takes no message that could only be given back: each time counts towards the redrive policy's limit."""
        pause, longest = _AWAY
        while self._postgres_away:
            try:
                self._ask_postgres()
                self._postgres_away = False
            except PostgresUnavailable:
                gevent.sleep(pause)
                pause = min(longest, 2 * pause)

    def _give_back_all(self, messages: Sequence[Received]) -> None:
        with gevent.Timeout(_GIVING_BACK_SECONDS) as limit:
            try:
                for received in messages:
                    self._give_back(received)
            except gevent.Timeout as late:
                if late is not limit:
                    raise

    def _give_back(self, received: Received) -> None:
        try:
            self._receiver.extend(received, 0)
        except QueueUnavailable as unavailable:
            self._unavailable(unavailable)

    def _forget(self, received: Received) -> None:
        try:
            self._receiver.delete(received)
        except QueueUnavailable as unavailable:
            self._unavailable(unavailable)

    @staticmethod
    def _unavailable(unavailable: QueueUnavailable) -> None:
        metrics.FAULTS.labels("sqs").inc()
        log.warning("queue_unavailable", code=unavailable.code, cause=call_cause(unavailable.code))


class _Extending:
    """Keeps a message in flight for as long as its mail is being sent."""

    def __init__(self, receiver: QueueReceiver, received: Received) -> None:
        self._receiver = receiver
        self._received = received
        self._loop: Supervised | None = None

    def __enter__(self) -> None:
        self._loop = supervise("delivery_visibility", self._extend)

    def __exit__(self, *_: object) -> None:
        if self._loop is not None:
            self._loop.stop()

    def _extend(self) -> None:
        while True:
            gevent.sleep(VISIBILITY_SECONDS / 2)
            try:
                self._receiver.extend(self._received, VISIBILITY_SECONDS)
            except QueueUnavailable:
                continue


def job_of(body: str) -> Job | None:
    """The job of a message; None for what is none of the four types of contract section 5."""
    try:
        document: object = orjson.loads(body)
    except (orjson.JSONDecodeError, UnicodeError):
        return None
    if not isinstance(document, dict):
        return None
    kind = document.get("type")
    if kind == SEND:
        email_id = document.get("emailId")
        return Job(SEND, email_id) if is_uuid(email_id) else None
    if kind == DISPATCH:
        delivery_id = document.get("deliveryId")
        if not is_uuid(delivery_id):
            return None
        manual = document.get("source") == "manual"
        return Job(DISPATCH, delivery_id, manual=manual, requested=_moment(document.get("requestedAt")))
    return Job(kind) if kind in (SCAN, WEBHOOK_SCAN) else None


def _moment(text: object) -> datetime | None:
    """A time of ISO 8601 with its offset, as one of UTC; None for anything else.

    Postgres takes no offset of 16 hours and more, which Python does.
    """
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
        return found.astimezone(UTC) if found is not None and found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
