"""What Redis remembers about jobs: rows that will need one, the lock of the sweep, and rows that got a second job
(contract section 5).

An intent is noted before the row is committed, in the round trip that screens the message, and goes when SQS has taken
the job. So whatever a crash leaves without a job is on this list, as long as Redis keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relay.redis.keys import INTENTS_KEY, REMINDED_KEY
from relay.redis.link import RedisLink, Script

_HOLD = Script(
    """
-- KEYS: lock. ARGV: token, milliseconds. Takes the lock, or keeps it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)

_LEAVE = Script(
    """
-- KEYS: lock. ARGV: token
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
)


class Intents:
    """Every method that does not say otherwise raises RedisUnavailable when Redis does not answer."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    @property
    def kept(self) -> bool:
        """Whether a Redis is configured that keeps them."""
        return self._link.configured

    def note(self, ids: Sequence[str], now: int) -> None:
        """Notes rows that need a job, as of a moment of `now_ms`."""
        self._link.call("ZADD", INTENTS_KEY, *(part for email_id in ids for part in (now, email_id)))

    def drop(self, ids: Sequence[str]) -> None:
        """Forgets rows whose job SQS has taken. Never blocks; when it gets lost, the sweep publishes once more."""
        self._link.post([("ZREM", INTENTS_KEY, *ids)])

    def settle(self) -> None:
        """Returns when what was dropped so far is dropped in Redis. Raises RedisUnavailable."""
        self._link.call("PING")  # commands are carried out in their order

    def older_than(self, seconds: float, *, skip: int, limit: int) -> list[tuple[str, float]]:
        """Rows noted at least that long ago, with their age in seconds, oldest first."""
        now = self.now_ms()
        flat = self._link.call(
            "ZRANGEBYSCORE", INTENTS_KEY, "-inf", now - int(seconds * 1000), "WITHSCORES", "LIMIT", skip, limit
        )
        return [
            (email_id.decode(), (now - float(score)) / 1000)
            for email_id, score in zip(flat[::2], flat[1::2], strict=True)
        ]

    def hold_lock(self, lock: bytes, token: str, seconds: float) -> bool:
        """Whether this process is the one that does the work of this lock, for so long from now."""
        return bool(_HOLD.run(self._link, [lock], [token, int(seconds * 1000)]))

    def leave_lock(self, lock: bytes, token: str) -> None:
        """Lets another process do it."""
        _LEAVE.run(self._link, [lock], [token])

    def reminded(self, ids: Sequence[str], within_seconds: float) -> set[str]:
        """Which of these were marked within that time. Older marks are thrown away."""
        before = self.now_ms() - int(within_seconds * 1000)
        self._link.call("ZREMRANGEBYSCORE", REMINDED_KEY, "-inf", before)
        scores = self._link.call("ZMSCORE", REMINDED_KEY, *ids)
        return {email_id for email_id, score in zip(ids, scores, strict=True) if score is not None}

    def mark_reminded(self, ids: Iterable[str]) -> None:
        """Marks rows that got a further job."""
        now = self.now_ms()
        self._link.call("ZADD", REMINDED_KEY, *(part for email_id in ids for part in (now, email_id)))

    def unmark_reminded(self, ids: Iterable[str]) -> None:
        """Takes marks away. Never blocks; when it gets lost, a row waits for its time."""
        self._link.post([("ZREM", REMINDED_KEY, *ids)])

    def now_ms(self) -> int:
        """Redis's clock, unix milliseconds: one clock for all processes on all machines."""
        seconds, microseconds = self._link.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000
