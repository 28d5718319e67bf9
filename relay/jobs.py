"""Send jobs (contract section 5): built, published in batches, and published again where that failed."""

from __future__ import annotations

from relay.cache import Cache
from relay.store import Store


class Publisher:
    """Publishes a job for each stored row, off the reply path. One per process; `start()` after the fork."""

    def __init__(
        self, queue_url: str, region: str, *, store: Store, cache: Cache, max_waiting: int = 10_000
    ) -> None: ...

    def start(self) -> None:
        """Builds the SQS client and starts the senders and the sweep."""
        raise NotImplementedError

    def publish(self, email_id: str, *, correlation_id: str | None = None, traceparent: str | None = None) -> None:
        """Takes a committed row's id; returns at once. Without a traceparent a random one is made; the correlation id
        defaults to the email id."""
        raise NotImplementedError

    def stop(self, deadline: float) -> int:
        """Publishes what waits, for at most `deadline` seconds. Returns how many jobs are left to a later sweep."""
        raise NotImplementedError
