"""What one account lets through: of all processes by way of Redis (`relay.redis.shared_allowance`), or, while Redis is
away, this process's share of it (`relay.core.allowance`). What the account itself says is asked for here.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from relay.core.allowance import ANSWER_SECONDS, ASK_SECONDS, HORIZON, MARGIN, Allowance, Grant, lateness
from relay.core.errors import RedisUnavailable
from relay.delivery.account import Account
from relay.delivery.permit import Lag, Permit, ServerClock
from relay.redis.shared_allowance import SharedAllowance

log = structlog.get_logger(__name__)

#: By so much the permits of an answer are past after the clock of Redis was put forward or back.
_STEPPED_SECONDS: Final = 3600.0


class AccountAllowance:
    """The allowance of one account. `ask`: what the account of a region says; None: it can't be asked just now."""

    def __init__(
        self,
        region: str,
        shared: SharedAllowance | None,
        alone: Allowance,
        *,
        ask: Callable[[str], Account | None],
    ) -> None:
        self._region = region
        self._shared = shared
        self._alone = alone
        self._ask = ask
        #: Whether the share of this process counts, since there is no Redis.
        self._is_alone = shared is None
        #: Recipients a second by the last grant; 0.0: there has been none.
        self._rate = 0.0
        #: What a request for permits takes.
        self._trip = Lag()
        self._clock = ServerClock()
        #: Until when this process holds permits; of time.monotonic().
        self.last_permit = 0.0
        #: What became of calls since the last request.
        self.passed = 0
        self.throttled = 0
        #: Recipients of permits since then that nothing was sent by.
        self.void = 0

    @property
    def lead(self) -> float:
        """Seconds that a request takes: by so much farther ahead permits are asked for."""
        return 0.0 if self._is_alone else self._trip.seconds

    def reserve(self, now: float, recipients: Sequence[int], lead: float) -> Grant:
        """Asks for permits, for mails to so many recipients each."""
        grant = self._reserved(now, recipients, lead)
        self._rate = grant.rate or self._rate
        return grant

    def permits(self, asked: float, grant: Grant, weights: Sequence[int], lag: Lag) -> list[Permit]:
        """The permits of a grant, for a request that was sent at the moment `asked`."""
        if self._is_alone:
            now = grant.now
        else:
            answered = time.monotonic()
            self._trip.add(answered - asked)
            now = self._clock.moment(grant.now, asked, answered)
            if self._clock.stepped:
                # The server takes permits for past that processes still hold: those of this answer are void instead.
                now -= _STEPPED_SECONDS
        return [
            Permit(moment=now + wait, latest=now + wait + lateness(grant.rate, weight), lag=lag)
            for wait, weight in zip(grant.moments, weights, strict=False)
        ]

    def learn(self) -> None:
        """Asks the account, for all processes."""
        account = self._ask(self._region)
        if account is None:
            return
        rate = account.rate or self._alone.fallback
        self._alone.learn(rate, account.left, account.off)
        if self._shared is not None and not self._is_alone:
            with contextlib.suppress(RedisUnavailable):
                self._shared.learn(rate, account.left, account.off)

    def rest(self, kind: str, first: float, longest: float) -> float | None:
        """Has all processes leave the account alone; for how many seconds. None: each finds out for itself."""
        if self._shared is None or self._is_alone:
            return None
        try:
            return self._shared.rest(kind, first, longest)
        except RedisUnavailable:
            return None

    def resume(self) -> None:
        """A mail has passed again after a rest."""
        if self._shared is not None:
            # Without Redis the rest that this would end is of no effect, and afterwards ends with the next mail.
            with contextlib.suppress(RedisUnavailable):
                self._shared.resume()

    def wait_for_octets(self, octets: int) -> float:
        """Seconds until a large mail may be handed over."""
        if self._shared is not None and not self._is_alone:
            try:
                return self._shared.wait_for_octets(octets)
            except RedisUnavailable:
                pass
        return self._alone.wait_for_octets(time.monotonic(), octets)

    def _reserved(self, now: float, recipients: Sequence[int], lead: float) -> Grant:
        passed, throttled, void = self.passed, self.throttled, self.void
        self.passed = self.throttled = self.void = 0
        if self._shared is not None:
            try:
                grant = self._shared.reserve(
                    recipients,
                    passed=passed,
                    throttled=throttled,
                    void=void,
                    lead=lead,
                    returned=self._is_alone,
                    held=self._held(now),
                )
            except RedisUnavailable:
                if not self._is_alone:
                    self._go_alone()
            else:
                if self._is_alone:
                    self._is_alone = False
                    log.info("pace_shared", region=self._region)
                if grant.rate:
                    self._alone.rate = grant.rate / MARGIN
                return grant
        return self._alone.reserve(
            time.monotonic(), recipients, passed=passed, throttled=throttled, void=void, lead=lead
        )

    def _held(self, now: float) -> float:
        """Seconds for which processes may hold permits: this one, and others that have as many."""
        if not self._rate:
            return 0.0
        return max(0.0, self.last_permit - now, self._alone.shares / self._rate)

    def _go_alone(self) -> None:
        """Redis is away: from now on this process has its share, but for what all hold already."""
        self._is_alone = True
        now = time.monotonic()
        self._alone.factor, self._alone.left = 1.0, -1
        self._alone.points.clear()
        if self._alone.rate:
            self._alone.turn = max(now, self.last_permit) + max(HORIZON, self._alone.shares / self._alone.rate)
            # Not all processes at once.
            self._alone.asked = now - random.uniform(0.0, ASK_SECONDS - ANSWER_SECONDS)  # noqa: S311 - spreads load
        log.warning("pace_alone", region=self._region, shares=self._alone.shares)
