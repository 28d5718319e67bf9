"""What answers requests, put together: the HTTP process has it, and the command that replays notifications."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Final

import gevent

from config.settings import Settings
from relay.aws.sns_host import SnsHost
from relay.core.errors import QueueUnavailable
from relay.core.supervision import run_once
from relay.jobs.dispatches import Dispatches
from relay.jobs.sender import JobSender
from relay.postgres.database import Database
from relay.postgres.events import Events, Stored
from relay.redis import keys, webhook_wakes
from relay.redis.cache import Cache
from relay.redis.kept_events import KeptEvents
from relay.web import notifications, tracking
from relay.web.event_writer import EventWriter
from relay.web.signing_certificates import SigningCertificates

#: Connections to Postgres that a process opens at most.
_CONNECTIONS: Final = 4
#: Events of each kind that Redis keeps at most: those of SES come again by themselves, and may have 256 KiB.
MOST_TRACKING: Final = 100_000
MOST_SES: Final = 10_000
#: Seconds at the end for jobs that are not sent yet.
_JOBS_SECONDS: Final = 1.0
#: Seconds at the start for what the queue's client needs to know.
_OPEN_SECONDS: Final = 2.0


def _dispatches(settings: Settings) -> Dispatches | None:
    """What sends jobs for webhook deliveries; None where there is no queue."""
    if settings.queue_url is None:
        return None
    from relay.aws.sqs import Queue  # noqa: PLC0415 - boto3, and the memory that it takes, only where there is a queue

    queue = Queue(settings.queue_url, settings.aws_region)
    with contextlib.suppress(QueueUnavailable):  # then with the first job
        queue.open(_OPEN_SECONDS)
    return Dispatches(JobSender(queue))


class WebParts:
    """Connections to Postgres and Redis, and all that works over them."""

    def __init__(self, settings: Settings, sns_host: SnsHost) -> None:
        """Nothing is connected or spawned before `start`."""
        self.database = Database(settings.database_url, statement_seconds=4.5, idle_limit=_CONNECTIONS)
        self.cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify)
        self._dispatches: Dispatches | None = None
        self._settings = settings
        events = Events(self.database, deliveries_due=self._say_due)
        self._clicks: EventWriter[bool] = EventWriter(
            "tracking",
            partial(tracking.write, events),
            KeptEvents(self.cache.link, keys.KEPT_TRACKING_KEY, MOST_TRACKING),
        )
        self._told: EventWriter[Stored] = EventWriter(
            "ses",
            partial(notifications.write, events, self.cache),
            KeptEvents(self.cache.link, keys.KEPT_SES_KEY, MOST_SES),
        )
        secret = (settings.tracking_secret or "").strip() or None
        self.tracking = tracking.Tracking(secret, self._clicks)
        self.notifications = notifications.Notifications(
            settings.ses_events_topic, SigningCertificates(sns_host.get), sns_host.get, self._told
        )

    def _say_due(self, delivery_ids: Sequence[str]) -> None:
        """To the delivery worker by Redis, and to whichever worker by a job where there is a queue."""
        webhook_wakes.post(self.cache.link, delivery_ids)
        if self._dispatches is not None:
            self._dispatches.publish(delivery_ids)

    def start(self) -> None:
        """Begins to write events, and to look for Postgres."""
        self.database.watch()
        self._dispatches = _dispatches(self._settings)
        if self._dispatches is not None:
            self._dispatches.start()
        self._clicks.start()
        self._told.start()

    def close(self, seconds: float) -> None:
        """Writes or keeps what waits, and closes all connections."""
        gevent.joinall([run_once("web-close", writer.close, seconds) for writer in (self._clicks, self._told)])
        if self._dispatches is not None:
            self._dispatches.close(_JOBS_SECONDS)
        self.database.close()
        self.cache.close()
