"""How fast mail leaves: each waits for a permit of its account, the users of a process in a circle.

The permits of an account are those of all processes of all machines (`relay.delivery.account_allowance`);
`relay.core.allowance` says when permits are, `relay.delivery.paced_account` which mail gets them.

A permit is void soon after its moment (`relay.core.allowance.lateness`), which is looked at right before a mail leaves
(`relay.delivery.permit`): a process that stood still does not make up for it. What takes long as a rule is allowed for:
Redis is asked for permits so much farther ahead, and a mail begins so much sooner. Mail that can't leave within half a
minute is put back, and uses up no attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from gevent.event import Event

from relay.core import metrics
from relay.core.allowance import FAR, Allowance
from relay.core.supervision import run_once
from relay.delivery.account import Account
from relay.delivery.account_allowance import AccountAllowance
from relay.delivery.outcome import Outcome
from relay.delivery.paced_account import PacedAccount
from relay.delivery.permit import Permit, Rest
from relay.redis.link import RedisLink
from relay.redis.shared_allowance import SharedAllowance

__all__ = ["Pace", "Rest"]


class Pace:
    """The paces of all accounts that one process sends by."""

    def __init__(
        self,
        link: RedisLink | None,
        provider: str,
        ask: Callable[[str], Account | None],
        *,
        fallback: float,
        shares: int,
    ) -> None:
        """`ask`: what the account of a region says; None: it can't be asked just now. `fallback`: recipients a second
        where it does not say. `shares`: the processes of all machines, each of which has its share without Redis.
        """
        self._link = link
        self._provider = provider
        self._ask = ask
        self._fallback = fallback
        self._shares = shares
        self._accounts: dict[str, PacedAccount] = {}
        self._closing = Event()

    def wait(self, region: str, user_id: str | None, recipients: int, octets: int) -> Permit | Rest:
        """Returns when a mail of so many octets may be handed over; or why it may not for some time."""
        began = time.monotonic()
        account = self._of(region)
        answer = account.wait(user_id, recipients, octets)
        now = time.monotonic()
        metrics.DELIVERY_PACE_SECONDS.observe(now - began)
        if isinstance(answer, Permit):
            answer.begun = now
            answer.renew = partial(account.renewed, user_id, recipients)
        return answer

    def told(self, region: str, outcome: Outcome) -> None:
        """What the provider has answered, which moves the pace."""
        self._of(region).told(outcome)

    def unused(self, region: str, recipients: int) -> None:
        """Nothing was sent by a permit for so many recipients, although it was in time."""
        self._of(region).unused(recipients)

    def rest(self, region: str, kind: str, first: float, longest: float) -> float | None:
        """Has all processes leave an account alone; for how many seconds. None: each finds out for itself."""
        return self._of(region).rest(kind, first, longest)

    def resume(self, region: str) -> None:
        """A mail has passed again after a rest."""
        run_once("delivery_pace_resume", self._of(region).resume)

    def full(self) -> bool:
        """Whether more mail waits than may leave."""
        now = time.monotonic()
        return any(now < account.full_until for account in self._accounts.values())

    def close(self) -> None:
        """Nothing waits any more: mail is put back."""
        self._closing.set()
        for account in self._accounts.values():
            account.release(Rest(0.0, FAR))

    def _of(self, region: str) -> PacedAccount:
        account = self._accounts.get(region)
        if account is None:
            name = f"{self._provider}:{region}"
            shared = None
            if self._link is not None:
                shared = SharedAllowance(self._link, name, fallback=self._fallback, shares=self._shares)
            alone = Allowance(fallback=self._fallback, shares=self._shares)
            allowance = AccountAllowance(region, shared, alone, ask=self._ask)
            account = self._accounts[region] = PacedAccount(region, allowance, closing=self._closing)
        return account
