"""A permit to hand a mail over: from which moment on, and until when; or why there is none (`relay.delivery.pace`).

What counts for the rate is when a mail comes to its provider. So the last look at its permit is taken when it is
composed and signed, and its connection open, right before its first octet leaves. A mail that is too late for its
permit gets another one there, so that what held it up on its way, such as the digest of a large mail, is over by then;
unless it would have to wait for long: its connection does not stay open for ever, and its claim does not last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import gevent

from relay.core.errors import TooLate
from relay.core.frozen import frozen

#: Permits that a mail gets right before it leaves; a process that is late for all of them puts it back.
_TRIES: Final = 5
_PUT_BACK_SECONDS: Final = 1.0
#: Seconds for all of these, with their waits: a part of what a call to a provider may take.
_LONGEST: Final = 10.0
#: The weight of the latest of a Lag's values, and seconds below which it is none: timers cost more than it is worth.
_WEIGHT: Final = 0.125
_NONE: Final = 0.005
#: What clocks gain or lose in a second while one of them is slewed to the right time, with a margin.
_DRIFT: Final = 1e-3
#: A clock that is off by so many seconds more than that was put forward or back.
_STEP: Final = 0.1
#: A single value counts as no more (seconds): a process that stood still is not one that always does.
_MOST: Final = 1.0


@dataclass(slots=True)
class Lag:
    """How long something takes as a rule, in seconds; 0.0 where that is nothing to allow for."""

    _value: float = 0.0

    @property
    def seconds(self) -> float:
        """What it takes at present."""
        return self._value if self._value > _NONE else 0.0

    def add(self, seconds: float) -> None:
        """It has taken so long."""
        self._value += _WEIGHT * (min(seconds, _MOST) - self._value)


@dataclass(slots=True)
class ServerClock:
    """When it is what time by the clock of a server that says it in its answers: at a moment of time.monotonic()
    between question and answer. The quicker an answer, the better that is known; an answer that is read late, since
    this process stood still, says when it was given all the same.
    """

    #: The server's time less this process's, how far it may be off, and when that was found; seconds.
    _offset: float = 0.0
    _error: float = math.inf
    _found: float = 0.0
    #: Whether one of the clocks was put forward or back before the last answer.
    stepped: bool = False

    def moment(self, said: float, asked: float, answered: float) -> float:
        """The moment at which the server's clock said this."""
        half = (answered - asked) / 2
        offset = said - asked - half
        error = self._error + _DRIFT * (answered - self._found)
        beyond = abs(offset - self._offset) - error - half
        self.stepped = beyond > _STEP
        if beyond > 0.0 or half <= error:
            self._offset, self._error, self._found = offset, half, answered
        return said - self._offset


@frozen
class Rest:
    """No permit for so long. `kind`: one of `relay.delivery.outcome.KINDS`, for all mails; or `FAR` or `SHORT` of
    `relay.core.allowance`.
    """

    seconds: float
    kind: str


@dataclass(slots=True)
class Permit:
    """`moment`, `latest`: of time.monotonic(), between them a mail may leave. `lag`: gets what the way there takes."""

    moment: float
    latest: float
    lag: Lag
    #: When its mail began to be handed over, and what gets it another permit, whose moment is before a given one of
    #: time.monotonic(); raises TooLate where there is none.
    begun: float = 0.0
    renew: Callable[[float], Permit] | None = None
    #: Whether no other process has taken its mail up by now, for all that this one knows.
    claim_lasts: Callable[[], bool] | None = None

    def use(self) -> None:
        """To be called right before the first octet leaves; waits for the moment. Raises TooLate."""
        now = time.monotonic()
        self.lag.add(now - self.begun)
        until = now + _LONGEST
        permit = self
        for _ in range(_TRIES):
            if now < permit.moment:
                gevent.sleep(permit.moment - now)
                now = time.monotonic()
            if now <= permit.latest:
                break
            if self.renew is None:
                break
            permit = self.renew(until)
            now = time.monotonic()
        if now > permit.latest or not (self.claim_lasts is None or self.claim_lasts()):
            raise TooLate(_PUT_BACK_SECONDS)
