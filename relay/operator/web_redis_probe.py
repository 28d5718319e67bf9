"""What the HTTP process keeps in Redis, tried once. Nothing stays, and no process sees what was written."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final

from config.settings import Settings
from relay.operator import redis_operations
from relay.operator.finding import Finding
from relay.operator.redis_operations import Operation
from relay.redis import keys
from relay.redis.kept_events import KeptEvents
from relay.redis.link import RedisLink

#: What is lost without Redis.
LOST: Final = "events that arrive while Postgres is away are lost when the process ends"
#: An event that is put on a list and taken off it at once: a process would take it for one that came.
_ON_AND_OFF: Final = "redis.call('RPUSH', KEYS[1], ARGV[1]); return redis.call('LREM', KEYS[1], -1, ARGV[1])"


def findings(settings: Settings, *, timeout: float) -> Iterator[Finding]:
    """What is wrong, a line for each list; or one that says that nothing is. `timeout`: seconds for one reply."""
    link = RedisLink(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=timeout, pause=1.0)
    lists = {"kept clicks and opens": keys.KEPT_TRACKING_KEY, "kept events of SES": keys.KEPT_SES_KEY}
    operations = [Operation(name, LOST, lambda key=key: _keeps(link, key)) for name, key in lists.items()]  # type: ignore[misc]
    try:
        yield from redis_operations.findings(link, operations, away=LOST)
    finally:
        link.close()


def _keeps(link: RedisLink, key: bytes) -> bool:
    kept = KeptEvents(link, key, most=1_000_000)
    event = secrets.token_bytes(16)
    pushed = link.call("EVAL", _ON_AND_OFF, 1, key, event) == 1
    looked = kept.keep([])
    kept.first(1)
    kept.remove([event])
    return pushed and looked
