"""What took too long to parse: keys that are kept out of the workers for a while, and messages that come again.

Each process has its own: with several workers, each finds out for itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

#: A key that overruns so many times within so many seconds
_TIMES: Final = 3
_WITHIN_SECONDS: Final = 60.0
#: … is kept out for so long.
_OUT_SECONDS: Final = 600.0
#: How long a message is known as one that ended its child; longer than clients go on trying.
_KNOWN_SECONDS: Final = 7 * 86_400.0
#: Keys, and messages, that are remembered; beyond it the oldest is forgotten.
_MOST: Final = 1000


class KeyOverruns:
    """Whose messages took too long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Key -> when its last overruns were, oldest first.
        self._times: dict[str, deque[float]] = {}
        #: Key -> until when it is kept out.
        self._out: dict[str, float] = {}

    def note(self, key_id: str) -> bool:
        """One more; whether the key is kept out from now on."""
        now = self._clock()
        times = self._times.pop(key_id, None) or deque(maxlen=_TIMES)
        times.append(now)
        self._times[key_id] = times
        if len(self._times) > _MOST:
            del self._times[next(iter(self._times))]
        if len(times) < _TIMES or now - times[0] > _WITHIN_SECONDS:
            return False
        self._out.pop(key_id, None)
        self._out[key_id] = now + _OUT_SECONDS
        if len(self._out) > _MOST:
            del self._out[next(iter(self._out))]
        return True

    def keeps_out(self, key_id: str) -> bool:
        """Whether its messages are to be parsed elsewhere."""
        if not self._out:
            return False
        until = self._out.get(key_id)
        if until is None:
            return False
        if self._clock() < until:
            return True
        del self._out[key_id]
        return False


class MessageOverruns:
    """Which messages ended the child that read them, and how often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: (user, size) -> digest of the octets -> (how often, when last)
        self._known: dict[tuple[str, int], dict[bytes, tuple[int, float]]] = {}

    def suspects(self, user_id: str, size: int) -> bool:
        """Whether a message of that user and size may be one of them, so that its octets are worth a look."""
        return bool(self._known) and (user_id, size) in self._known

    def note(self, user_id: str, size: int, digest: bytes) -> None:
        """One more end of a child by this message."""
        times, _ = self._known.get((user_id, size), {}).get(digest, (0, 0.0))
        alike = self._known.pop((user_id, size), {})
        alike.pop(digest, None)
        alike[digest] = times + 1, self._clock()
        self._known[user_id, size] = alike
        while sum(map(len, self._known.values())) > _MOST:
            oldest = next(iter(self._known))
            del self._known[oldest][next(iter(self._known[oldest]))]
            if not self._known[oldest]:
                del self._known[oldest]

    def times(self, user_id: str, size: int, digest: bytes) -> int:
        """How often this message has ended a child."""
        times, when = self._known.get((user_id, size), {}).get(digest, (0, 0.0))
        return times if self._clock() - when < _KNOWN_SECONDS else 0
