"""A relay without Redis: no sweep waits for a service that is not configured, and the log names none as away."""

from __future__ import annotations

from typing import Any, cast

import gevent
import pytest
import structlog

from relay.aws.sqs import Queue
from relay.jobs.intents import Intents
from relay.jobs.sender import JobSender
from relay.jobs.sweep import Sweep
from relay.postgres.store import Store
from relay.redis.link import RedisLink
from tests.support.queue_double import QueueDouble


class _EmptyStore:
    """Postgres without an overdue row."""

    def __init__(self) -> None:
        self.looked = gevent.event.Event()

    def overdue(self, *_arguments: object) -> list[tuple[str, str]]:
        self.looked.set()
        return []


@pytest.mark.parametrize("url", [None, "redis://127.0.0.1:1"])
def test_only_a_configured_redis_is_named_as_away(url: str | None) -> None:
    store = _EmptyStore()
    link = RedisLink(url, verify_tls=True, timeout=0.2, pause=0.1)
    sweep = Sweep(JobSender(cast(Queue, QueueDouble())), cast(Store, store), Intents(link))
    sweep.interval = sweep.reminder_interval = 0.02
    with structlog.testing.capture_logs() as lines:
        sweep.start()
        try:
            with gevent.Timeout(20):
                for _ in range(5):
                    store.looked.clear()
                    store.looked.wait()
                while url is not None and not named(lines):
                    gevent.sleep(0.01)
        finally:
            sweep.stop()
            link.close()
    assert bool(named(lines)) == (url is not None)


def named(lines: list[Any]) -> list[Any]:
    """The lines that name Redis as away."""
    return [line for line in lines if line.get("service") == "redis" or line["event"].startswith("redis")]
