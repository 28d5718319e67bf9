"""Messages a minute, for each API key and each origin: counted over all processes by the `limits` library.

Only imported where the settings ask for such a limit. Counting in Redis for every message would cost a round trip each,
so a process takes several messages' worth at once for a client that sends many, and hands them out itself: never more
than a fiftieth of the limit, and for LOT_SECONDS at most. Small limits are therefore exact.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from relay.core.errors import RedisUnavailable
from relay.core.outcomes import MessageLimit
from relay.redis import keys
from relay.redis.link import RedisLink, Script

#: The library's own. KEYS: previous and current window. ARGV: limit, seconds of a window, messages. Whether they fit.
_ACQUIRE: Final = Script(RedisStorage.SCRIPT_ACQUIRE_SLIDING_WINDOW.decode("ascii"))

#: A lot is at most this part of a limit.
_LOTS: Final = 50
#: For how long a lot is good; seconds.
LOT_SECONDS: Final = 5.0
#: A lot that is spent sooner is followed by a larger one, and the answer that there is none is repeated for so long.
QUICK_SECONDS: Final = 1.0
#: Lots that a process remembers.
MOST_LOTS: Final = 5_000


@dataclass(slots=True)
class _Lot:
    """Messages that a process may still take without asking; how many it got at once, and when."""

    left: int
    size: int
    taken: float

    def useless(self, now: float) -> bool:
        """Whether another one has to be asked for."""
        age = now - self.taken
        return age >= (LOT_SECONDS if self.left else QUICK_SECONDS) or (self.size > 0 and not self.left)


class Rate:
    """One limit: so many messages a minute for each identifier."""

    def __init__(self, link: RedisLink, name: str, most: int) -> None:
        """`name`: of the limit's keys in Redis."""
        self._item = RateLimitItemPerMinute(most, namespace=name)
        self._link = link
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._largest_lot = max(1, most // _LOTS)
        self._lots: OrderedDict[str, _Lot] = OrderedDict()

    def take(self, identifier: str) -> bool:
        """Takes one message; whether there was one left. At most two round trips, and none within a lot."""
        now = time.monotonic()
        lot = self._lots.get(identifier)
        if lot is None or lot.useless(now):
            lot = self._new_lot(identifier, lot, now)
        if not lot.left:
            return False
        lot.left -= 1
        return True

    def _new_lot(self, identifier: str, last: _Lot | None, now: float) -> _Lot:
        size = 1
        if last is not None and last.size and now - last.taken < LOT_SECONDS:
            size = min(2 * last.size if now - last.taken < QUICK_SECONDS else last.size, self._largest_lot)
        if not self._hit(identifier, size):
            size = 1 if size > 1 and self._hit(identifier, 1) else 0
        lot = self._lots[identifier] = _Lot(left=size, size=size, taken=now)
        self._lots.move_to_end(identifier)
        if len(self._lots) > MOST_LOTS:
            self._lots.popitem(last=False)
        return lot

    def _hit(self, identifier: str, cost: int) -> bool:
        windows = keys.rate_windows(self._item.key_for(identifier))
        try:
            return bool(_ACQUIRE.run(self._link, windows, [self._item.amount, self._item.get_expiry(), cost]))
        except RedisUnavailable:
            return self._alone.hit(self._item, identifier, cost=cost)


class Rates:
    """The limits on messages a minute. 0: no such limit."""

    def __init__(self, link: RedisLink, *, per_key: int, per_origin: int) -> None:
        self._per_key = Rate(link, "smtp-key", per_key) if per_key else None
        self._per_origin = Rate(link, "smtp-origin", per_origin) if per_origin else None

    def take(self, key_id: str, origin: bytes) -> MessageLimit | None:
        """Takes one message of this key from this origin, or says which limit has none left."""
        if self._per_origin is not None and not self._per_origin.take(origin.hex()):
            return MessageLimit.ORIGIN
        if self._per_key is not None and not self._per_key.take(key_id):
            return MessageLimit.KEY
        return None
