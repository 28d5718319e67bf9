"""How much one client may use, over any protocol: the limits of its origin."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import gevent

from config.settings import Settings
from relay.core import metrics
from relay.core.outcomes import LoginFailure, MessageLimit
from relay.limits.attempts import Attempts, Candidate
from relay.limits.origin import Origins
from relay.redis.link import RedisLink

if TYPE_CHECKING:
    from relay.limits.rates import Rates

#: What a look-up finds where the key is valid.
Found = TypeVar("Found")

#: How long a key waits until others of its origin have been looked up, and how often that is asked; seconds.
TURN_SECONDS: Final = 10.0
_TURN_INTERVAL: Final = 0.1


class ClientLimits:
    """The limits of one client: see `relay.smtp.submission.Limits`."""

    def __init__(
        self, origin: bytes, origins: Origins, attempts: Attempts, rates: Rates | None, *, address: str | None = None
    ) -> None:
        """`address`: the client's, where the log may name it."""
        self._origin = origin
        self._address = address
        self._origins = origins
        self._attempts = attempts
        self._rates = rates

    def authenticate(self, password: str, look_up: Callable[[str], Found | LoginFailure]) -> Found | LoginFailure:
        """What `look_up` says of a password, or TOO_MANY_FAILURES for one that is not known to an origin that is
        refused.

        Whatever is wrong with a key, the answer comes after the same time: it depends on earlier failures alone.
        """
        began = time.monotonic()
        digest = self._origins.digest(password.strip().encode("utf-8", "surrogateescape"))
        candidate = Candidate(origin=self._origin, key=digest)
        admission = self._attempts.admit(candidate)
        counted = not (admission.known or admission.refused)
        while counted and not self._attempts.begin(candidate):
            if time.monotonic() - began > TURN_SECONDS:
                return LoginFailure.UNAVAILABLE
            gevent.sleep(random.uniform(0.5, 1.5) * _TURN_INTERVAL)  # noqa: S311 - spreads load
            admission = self._attempts.admit(candidate)
            counted = not (admission.known or admission.refused)
        if admission.looked_at:
            try:
                found = look_up(password)
                if not isinstance(found, LoginFailure):
                    self._attempts.succeeded(candidate)
                    return found
                if found is not LoginFailure.WRONG_KEY:
                    return found
                delay = self._attempts.failed(candidate, self._address)
            finally:
                if counted:
                    self._attempts.end(candidate)
            if not admission.refused:
                _sleep_until(began + delay)
                return found
        metrics.LIMITED.labels("auth").inc()
        _sleep_until(began + self._attempts.longest_delay)
        return LoginFailure.TOO_MANY_FAILURES

    def admit(self, key_id: str) -> MessageLimit | None:
        """Counts a message that is about to be sent with this API key; which limit keeps it from that, if one does."""
        limit = None if self._rates is None else self._rates.take(key_id, self._origin)
        if limit is not None:
            metrics.LIMITED.labels("messages").inc()
        return limit


class ProcessLimits:
    """Makes the limits of each client of a process; what they count is counted together."""

    def __init__(self, settings: Settings, link: RedisLink) -> None:
        # All processes of an installation have this in common, and it is not in Redis.
        self.origins = Origins(settings.database_url.encode("utf-8", "surrogateescape"))
        self._attempts = Attempts(
            link,
            most=settings.max_auth_failures_per_address,
            refusal_seconds=settings.auth_refusal_seconds,
            longest_delay=settings.auth_delay_seconds,
        )
        self._rates: Rates | None = None
        if settings.key_messages_per_minute or settings.address_messages_per_minute:
            from relay.limits.rates import Rates  # noqa: PLC0415 - 2 MB, only with a limit

            self._rates = Rates(
                link, per_key=settings.key_messages_per_minute, per_origin=settings.address_messages_per_minute
            )

    def of_client(self, origin: bytes, address: str | None = None) -> ClientLimits:
        """The limits of a client from there. `address`: its IP address, where the log may name it."""
        return ClientLimits(origin, self.origins, self._attempts, self._rates, address=address)


def _sleep_until(moment: float) -> None:
    """Lets others run until then (of the monotonic clock)."""
    gevent.sleep(max(0.0, moment - time.monotonic()))
