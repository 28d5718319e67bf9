"""How much CPU time a message may take to parse in a worker, where all others wait meanwhile.

A timer of the process's CPU time ticks whether or not a message is parsed, so that a message costs two assignments. It
is a hint and no bound: it is looked at between two steps of the interpreter, and an exception that it raises in a
destructor is lost (the next tick raises another). What holds is the kill of a child: see `relay.process.bulk_child`.
"""

from __future__ import annotations

import signal
from typing import Final

from gevent import getcurrent

from relay.mail import Limits, Message, parse

#: CPU time that a message may take, and how often it is looked at; seconds.
PARSE_SECONDS: Final = 0.25
_TICK_SECONDS: Final = 0.05


class ParseOverrun(BaseException):
    """The message took too long. No Exception, so that nothing in a parser takes it for damage to the message."""


class ParseClock:
    """Parses for the greenlets of a process, one at a time, since parsing never gives way to another greenlet."""

    def __init__(self) -> None:
        self._parsing: object = None
        self._ticks = 0

    def start(self) -> None:
        """Begins to tick. In the main thread; after any fork, which a timer does not survive."""
        signal.signal(signal.SIGPROF, self._tick)
        # System calls go on as if nothing had been, where they can.
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, _TICK_SECONDS, _TICK_SECONDS)

    def stop(self) -> None:
        """Ticks no more."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def parse(self, raw: bytes, limits: Limits, reverse_path: str = "") -> Message:
        """As `relay.mail.parse`. Raises ParseOverrun besides."""
        self._ticks = 0
        self._parsing = getcurrent()
        try:
            try:
                return parse(raw, limits, reverse_path)
            finally:
                self._parsing = None
        except ParseOverrun:
            # The tick may have come just before the line above.
            self._parsing = None
            raise

    def _tick(self, _number: int, _frame: object) -> None:
        """Runs in whichever greenlet runs."""
        if self._parsing is not None and self._parsing is getcurrent():
            self._ticks += 1
            # The first tick may come at once.
            if self._ticks * _TICK_SECONDS > PARSE_SECONDS:
                raise ParseOverrun
