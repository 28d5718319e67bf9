"""What answers requests, put together: the HTTP process has it, and the command that replays notifications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import gevent

from config.settings import Settings
from relay.aws.sns_host import SnsHost
from relay.core.supervision import run_once
from relay.postgres.database import Database
from relay.postgres.events import Events, Stored
from relay.redis import keys, webhook_wakes
from relay.redis.cache import Cache
from relay.redis.kept_events import KeptEvents
from relay.web import notifications, tracking
from relay.web.event_writer import EventWriter
from relay.web.signing_certificates import SigningCertificates

_R = TypeVar("_R")

#: Connections to Postgres that a process opens at most.
_CONNECTIONS: Final = 4
#: Events of each kind that Redis keeps at most: those of SES come again by themselves, and may have 256 KiB.
MOST_TRACKING: Final = 100_000
MOST_SES: Final = 10_000


class WebParts:
    """Connections to Postgres and Redis, and all that works over them."""

    def __init__(self, settings: Settings, sns_host: SnsHost) -> None:
        """Nothing is connected or spawned before `start`."""
        self.database = Database(settings.database_url, statement_seconds=4.5, idle_limit=_CONNECTIONS)
        self.cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify)
        events = Events(self.database)
        self._clicks: EventWriter[bool] = EventWriter(
            "tracking",
            self._announced(partial(tracking.write, events)),
            KeptEvents(self.cache.link, keys.KEPT_TRACKING_KEY, MOST_TRACKING),
        )
        self._told: EventWriter[Stored] = EventWriter(
            "ses",
            self._announced(partial(notifications.write, events, self.cache)),
            KeptEvents(self.cache.link, keys.KEPT_SES_KEY, MOST_SES),
        )
        secret = (settings.tracking_secret or "").strip() or None
        self.tracking = tracking.Tracking(secret, self._clicks)
        self.notifications = notifications.Notifications(
            settings.ses_events_topic, SigningCertificates(sns_host.get), sns_host.get, self._told
        )

    def _announced(self, write: Callable[[Sequence[bytes]], list[_R]]) -> Callable[[Sequence[bytes]], list[_R]]:
        """`write`, and then a word to the delivery worker: webhooks may want to know."""

        def written(documents: Sequence[bytes]) -> list[_R]:
            results = write(documents)
            webhook_wakes.post(self.cache.link)
            return results

        return written

    def start(self) -> None:
        """Begins to write events."""
        self._clicks.start()
        self._told.start()

    def close(self, seconds: float) -> None:
        """Writes or keeps what waits, and closes all connections."""
        gevent.joinall([run_once("web-close", writer.close, seconds) for writer in (self._clicks, self._told)])
        self.database.close()
        self.cache.close()
