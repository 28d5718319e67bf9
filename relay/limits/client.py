"""How much one client may: stands between its dialogue and the services, and knows where the client comes from."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

import gevent

from config.settings import Settings
from relay.core import metrics
from relay.limits.attempts import Attempts, Candidate
from relay.limits.origin import Origins
from relay.redis.link import RedisLink
from relay.smtp import replies
from relay.smtp.replies import Reply
from relay.smtp.submission import Login, Services, Submission, Verdict

if TYPE_CHECKING:
    from relay.limits.rates import Rates


#: How long a key waits until others of its origin have been looked up, and how often that is asked; seconds.
TURN_SECONDS: Final = 10.0
_TURN_INTERVAL: Final = 0.1


class ClientLimits:
    """The services of one client (`relay.smtp.submission.Services`), as far as its origin may use them."""

    def __init__(self, services: Services, origin: bytes, origins: Origins, attempts: Attempts, rates: Rates | None):
        self._services = services
        self._origin = origin
        self._origins = origins
        self._attempts = attempts
        self._rates = rates

    def authenticate(self, password: str) -> Login | Reply:
        """As Services has it, or 421 for a key that is not known to an origin that is refused.

        Whatever is wrong with a key, the reply comes after the same time: it depends on earlier failures alone.
        """
        began = time.monotonic()
        digest = self._origins.digest(password.strip().encode("utf-8", "surrogateescape"))
        candidate = Candidate(self._origin, digest)
        admission = self._attempts.admit(candidate)
        counted = not (admission.known or admission.refused)
        while counted and not self._attempts.begin(candidate):
            if time.monotonic() - began > TURN_SECONDS:
                return replies.AUTH_UNAVAILABLE
            gevent.sleep(random.uniform(0.5, 1.5) * _TURN_INTERVAL)  # noqa: S311 - spreads load
            admission = self._attempts.admit(candidate)
            counted = not (admission.known or admission.refused)
        if admission.looked_at:
            try:
                login = self._services.authenticate(password)
                if isinstance(login, Login):
                    self._attempts.succeeded(candidate)
                    return login
                if login.temporary:
                    return login
                delay = self._attempts.failed(candidate)
            finally:
                if counted:
                    self._attempts.end(candidate)
            if not admission.refused:
                _sleep_until(began + delay)
                return login
        metrics.LIMITED.labels("auth").inc()
        _sleep_until(began + self._attempts.longest_delay)
        return replies.AUTH_REFUSED

    def submit(self, submission: Submission) -> Verdict:
        """As Services has it."""
        return self._services.submit(submission)

    def admit(self, login: Login) -> Reply | None:
        """Counts a message that is about to be sent; why it can't be now, if so."""
        refusal = None if self._rates is None else self._rates.refusal(login.key.id, self._origin)
        if refusal is not None:
            metrics.LIMITED.labels("messages").inc()
        return refusal


class ProcessLimits:
    """Makes the limits of each client of a process; what they count is counted together."""

    def __init__(self, settings: Settings, link: RedisLink, services: Services) -> None:
        self._services = services
        # All processes of an installation have this in common, and who reads Redis alone doesn't know it.
        self.origins = Origins(settings.database_url.encode("utf-8", "surrogateescape"))
        self._attempts = Attempts(
            link,
            most=settings.max_auth_failures_per_address,
            refusal_seconds=settings.auth_refusal_seconds,
            longest_delay=settings.auth_delay_seconds,
        )
        self._rates: Rates | None = None
        if settings.key_messages_per_minute or settings.address_messages_per_minute:
            from relay.limits.rates import Rates  # noqa: PLC0415 - 2 MB for those who want it

            self._rates = Rates(
                link, per_key=settings.key_messages_per_minute, per_origin=settings.address_messages_per_minute
            )

    def of_client(self, origin: bytes) -> ClientLimits:
        """The limits of a client from there."""
        return ClientLimits(self._services, origin, self.origins, self._attempts, self._rates)


def _sleep_until(moment: float) -> None:
    """Lets others run until then (of the monotonic clock)."""
    gevent.sleep(max(0.0, moment - time.monotonic()))
