"""How signals end the service: once to drain, again to end at once. Nothing but the standard library."""

from __future__ import annotations

import signal
import time

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from typing import Final

#: Signals that end the service.
ENDING: Final = frozenset((int(signal.SIGTERM), int(signal.SIGINT)))
#: Workers end their drain by themselves; they are killed so much later than that; seconds.
KILL_GRACE: Final = 2.0
#: A SIGINT and a SIGTERM so close together are one request: Ctrl-C reaches all, and a parent passes it on; seconds.
SAME_REQUEST: Final = 1.0


class Termination:
    """What has been asked for so far."""

    def __init__(self, drain_seconds: float) -> None:
        """`drain_seconds`: how long workers take for a drain, at most."""
        self._drain_seconds = drain_seconds
        self._first = 0
        self._begun = 0.0
        #: Whether the service is to end.
        self.asked = False

    @property
    def deadline(self) -> float:
        """The moment of time.monotonic() at which the drain has taken too long. Only when `asked`."""
        return self._begun + self._drain_seconds + KILL_GRACE

    def ask(self, number: int) -> None:
        """The first signal, one of ENDING."""
        self.asked = True
        self._first = number
        self._begun = time.monotonic()

    def is_another(self, number: int) -> bool:
        """Whether a further signal asks for more than the first one, which is that everything ends at once."""
        return self._first == number or time.monotonic() - self._begun > SAME_REQUEST
