"""The permits of one account in one process: asked for and handed out to the mails that wait.

One request asks for all mails that wait, and where there is room for some that will come, so that most mails of a busy
process cost no call. A single permit is given to a mail when its moment comes: one that has come meanwhile need not
wait for a further permit.
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Final

import gevent
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.allowance import ANSWER_SECONDS, FAR, FARTHEST, HORIZON, LARGE, SHORT
from relay.core.errors import TooLate
from relay.core.supervision import run_once
from relay.delivery.account_allowance import AccountAllowance
from relay.delivery.outcome import Outcome, Sent
from relay.delivery.permit import Lag, Permit, Rest
from relay.delivery.turns import Turns, WaitingMail

log = structlog.get_logger(__name__)

#: Permits that one request asks for at most, those for mail that has not come yet included.
_MOST: Final = 50
#: With fewer recipients left of the day permits are asked for no other mail than what waits.
_SCARCE: Final = 1000
#: A permit that came too late is asked for anew so often before its mail begins to be handed over.
_TRIES: Final = 3
#: Seconds for which mail is put back that holds up no other: the end of the process, an error, a long wait.
_SOON: Final = 1.0
#: A permit with a moment so close (seconds) is one that nothing had to wait for.
_AT_ONCE: Final = 0.001
#: Seconds for which a process that had to hand out permits one by one counts as one that mail waits in.
_FULL_SECONDS: Final = 2.0


class PacedAccount:
    """One account. `closing`: set where nothing waits any more."""

    def __init__(self, region: str, allowance: AccountAllowance, *, closing: Event) -> None:
        self._region = region
        self._allowance = allowance
        self._closing = closing
        self._turns = Turns()
        self._serving = False
        #: Permits for one recipient each that are not asked for yet, and how many are wanted.
        self._spare: deque[Permit] = deque()
        self._wanted = 0
        #: What a mail takes from the end of its wait until it leaves.
        self._lag = Lag()
        #: When to ask next, at the earliest.
        self._again = 0.0
        self._gauge = metrics.DELIVERY_RATE.labels(region)
        #: Until when more mail waits than may leave.
        self.full_until = 0.0

    def wait(self, user_id: str | None, recipients: int, octets: int) -> Permit | Rest:
        """Returns when a mail of so many octets may be handed over; or why it may not for some time."""
        if octets > LARGE and (rest := self._until(time.monotonic() + self._allowance.wait_for_octets(octets))):
            return rest
        tries = _TRIES
        while True:
            spare = self._spare_permit() if recipients == 1 and not self._turns.waiting else None
            permit = spare or self._asked(user_id, recipients)
            if isinstance(permit, Rest):
                return permit
            if rest := self._until(permit.moment - self._lag.seconds):
                return rest
            tries -= 1
            if not tries or time.monotonic() <= permit.latest:
                return permit
            self.unused(recipients)

    def renewed(self, user_id: str | None, recipients: int, until: float) -> Permit:
        """Another permit for a mail that was late for its own, with a moment before `until`. Raises TooLate."""
        self.unused(recipients)
        with gevent.Timeout(max(0.0, until - time.monotonic())) as limit:
            try:
                permit = self._asked(user_id, recipients, ready=True)
            except gevent.Timeout as late:
                if late is not limit:
                    raise
                raise TooLate(_SOON) from None
        if isinstance(permit, Rest):
            raise TooLate(permit.seconds)
        if permit.moment > until:
            self.unused(recipients)
            raise TooLate(_SOON)
        return permit

    def told(self, outcome: Outcome) -> None:
        """What the provider has answered, which moves the pace."""
        if isinstance(outcome, Sent):
            self._allowance.passed += 1
        elif outcome.kind == "throttled":
            self._allowance.throttled += 1

    def unused(self, recipients: int) -> None:
        """Nothing was sent by a permit for so many recipients."""
        self._allowance.void += recipients

    def rest(self, kind: str, first: float, longest: float) -> float | None:
        """As `AccountAllowance.rest`; permits that nothing has used are void."""
        self._spare.clear()
        return self._allowance.rest(kind, first, longest)

    def resume(self) -> None:
        """A mail has passed again after a rest."""
        self._allowance.resume()

    def release(self, rest: Rest) -> None:
        """No mail waits any more."""
        self._turns.release(rest)

    # Waiting.

    def _until(self, moment: float) -> Rest | None:
        """Waits for a moment; a rest where the process ends before."""
        pause = moment - time.monotonic()
        if pause > 0 and self._closing.wait(pause):
            return Rest(0.0, FAR)
        return None

    def _spare_permit(self) -> Permit | None:
        now = time.monotonic()
        while self._spare:
            permit = self._spare.popleft()
            if permit.latest >= now:
                return permit
            self.unused(1)
            self._wanted = 0  # more than what comes
        return None

    def _asked(self, user_id: str | None, recipients: int, *, ready: bool = False) -> Permit | Rest:
        """A permit, in the user's turn."""
        if self._closing.is_set():
            return Rest(0.0, FAR)
        mail = WaitingMail(user_id, recipients, ready=ready)
        self._turns.add(mail)
        if not self._serving:
            self._serving = True
            run_once("delivery_pace", self._serve)
        try:
            return mail.done.get()
        except BaseException:
            self._turns.forget(mail)
            raise

    # Handing out.

    def _serve(self) -> None:
        try:
            while self._turns.waiting:
                # There is no permit before; whatever comes meanwhile is asked for with the same request.
                pause = self._again - time.monotonic()
                if pause > 0:
                    self._closing.wait(pause)
                self._turns.put_back(time.monotonic() - FARTHEST, Rest(_SOON, FAR))
                if self._turns.waiting:
                    self._hand_out()
        finally:
            self._serving = False
            # After an error: no mail may wait for ever.
            self.release(Rest(_SOON, FAR))

    def _hand_out(self) -> None:
        mails = self._turns.in_turn(_MOST)
        # More than what waits only where none has to wait.
        spare = 0 if self._spare or len(mails) > 1 else self._wanted
        weights = [mail.recipients for mail in mails] + [1] * spare
        now = time.monotonic()
        lead = self._allowance.lead
        if not any(mail.ready for mail in mails):
            lead += self._lag.seconds
        grant = self._allowance.reserve(now, weights, lead)
        self._gauge.value = grant.rate
        if grant.lowered:
            log.warning("pace_lowered", region=self._region, recipients_a_second=round(grant.rate, 2))
        if grant.rest:
            self._spare.clear()
            if grant.ask:
                run_once("delivery_account", self._allowance.learn)
            rest = Rest(grant.rest * random.uniform(1.0, 1.2), grant.kind)  # noqa: S311 - spreads load
            if grant.kind == SHORT:
                self._turns.settle(mails[0], rest)
            else:
                self.release(rest)
            return
        permits = self._allowance.permits(now, grant, weights, self._lag)
        learning = run_once("delivery_account", self._allowance.learn) if grant.ask else None
        if len(permits) == 1:
            if len(mails) > 1:
                self.full_until = max(self.full_until, permits[0].moment)
            mails = [self._next_at(permits[0], mails[0])]
        for mail, permit in zip(mails, permits, strict=False):
            self._turns.settle(mail, permit)
        self._spare.extend(permits[len(mails) :])
        if permits:
            self._allowance.last_permit = permits[-1].latest
        # Permits for mail that has not come yet: twice as many each time, as long as all of them are used in time.
        alike = int(grant.rate * HORIZON)
        scarce = 0 <= grant.left < _SCARCE  # one that is not used may be what another mail needs
        at_once = bool(grant.moments) and grant.moments[0] < lead + _AT_ONCE
        self._wanted = min(_MOST - 1, alike, 2 * spare + 1) if at_once and not scarce else 0
        self._again = now + min(grant.again, FARTHEST)
        if self._turns.waiting and grant.rate:
            self.full_until = max(time.monotonic(), self._again) + _FULL_SECONDS
        if learning is not None and not grant.rate:
            learning.join(ANSWER_SECONDS)
            self._again = 0.0

    def _next_at(self, permit: Permit, mail: WaitingMail) -> WaitingMail:
        """The mail that a permit is for, once its moment has come: another user's may come before `mail` by then."""
        if self._until(permit.moment - self._lag.seconds) is None:
            return self._turns.first_to(mail.recipients) or mail
        return mail
