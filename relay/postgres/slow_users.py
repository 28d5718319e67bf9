"""Users whose messages hold up those that they share a statement with: for a while, theirs go alone."""

from __future__ import annotations

import math
import time
from typing import Final

#: How long at first, and at most; seconds. A user that holds up others again soon goes alone for twice as long each
#: time.
_FIRST_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 60.0
#: Beyond this many users the first to be noted are forgotten: that costs others one slow statement at most.
_MOST_USERS: Final = 1000


class SlowUsers:
    """Remembers them by their ids."""

    def __init__(self) -> None:
        #: By user id: until when (time.monotonic()), and for how long that is; seconds.
        self._noted: dict[str, tuple[float, float]] = {}

    def note(self, user_id: str) -> None:
        """A message of this user took long, or waited for a lock."""
        now = time.monotonic()
        until, seconds = self._noted.pop(user_id, (-math.inf, 0.0))
        if now >= until + _LONGEST_SECONDS:
            seconds = _FIRST_SECONDS
        elif now >= until:
            seconds = min(2 * seconds, _LONGEST_SECONDS)
        self._noted[user_id] = now + seconds, seconds
        if len(self._noted) > _MOST_USERS:
            del self._noted[next(iter(self._noted))]

    def holds(self, user_id: str) -> bool:
        """Whether this user's messages go alone now."""
        if not self._noted:
            return False
        until, _ = self._noted.get(user_id, (-math.inf, 0.0))
        return time.monotonic() < until
