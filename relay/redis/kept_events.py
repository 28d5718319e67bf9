"""Events that came while Postgres was away: kept in Redis in their order, until they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relay.core.errors import RedisUnavailable
from relay.redis.link import RedisLink, Script

_KEEP: Final = Script(
    """
-- KEYS: list. ARGV: the most entries that it may have, entries. All of them are kept, or none.
if redis.call('LLEN', KEYS[1]) + #ARGV - 1 > tonumber(ARGV[1]) then return 0 end
for i = 2, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
return 1
"""
)


class KeptEvents:
    """One list of events. Several processes may read it at a time: to write an event twice is harmless."""

    def __init__(self, link: RedisLink, key: bytes, most: int) -> None:
        """`most`: events that are kept at most, so that Redis has room for all else."""
        self._link = link
        self._key = key
        self._most = most

    def keep(self, events: Sequence[bytes]) -> bool:
        """Whether all of them are kept by now; else none is, as far as one can know."""
        try:
            return bool(_KEEP.run(self._link, [self._key], [self._most, *events]))
        except RedisUnavailable:
            return False

    def first(self, count: int) -> list[bytes]:
        """The oldest events, at most so many; none where Redis does not answer."""
        try:
            found: list[bytes] = self._link.call("LRANGE", self._key, 0, count - 1)
        except RedisUnavailable:
            return []
        return found

    def remove(self, events: Sequence[bytes]) -> None:
        """These have been written. Where Redis does not answer they stay, and are written again."""
        try:
            # By their values: another process may have removed what was first.
            self._link.call_all([("LREM", self._key, 1, event) for event in events])
        except RedisUnavailable:
            return

    def __len__(self) -> int:
        """How many are kept; 0 where Redis does not answer."""
        try:
            return int(self._link.call("LLEN", self._key))
        except RedisUnavailable:
            return 0
