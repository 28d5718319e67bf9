"""How fast mail leaves: each waits for a permit of its account, the users of a process in a circle.

A user that has had nothing to send comes next, with every second permit at most. A single permit is given to a mail
when its moment comes: one that has come meanwhile need not wait for a further permit.

The permits of an account are those of all processes of all machines, by way of Redis (`relay.redis.shared_allowance`);
without Redis each process takes its share. `relay.core.allowance` says when permits are. One request asks for all mails
that wait, and where there is room for some that will come, so that most mails of a busy process cost no call.

A permit is void soon after its moment (`relay.core.allowance.lateness`), which is looked at right before a mail leaves
(`relay.delivery.permit`): a process that stood still does not make up for it. What takes long as a rule is allowed for:
Redis is asked for permits so much farther ahead, and a mail begins so much sooner. Mail that can't leave within half a
minute is put back, and uses up no attempt.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Final

import gevent
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.allowance import (
    ANSWER_SECONDS,
    ASK_SECONDS,
    FAR,
    FARTHEST,
    HORIZON,
    LARGE,
    MARGIN,
    SHORT,
    Allowance,
    Grant,
    lateness,
)
from relay.core.errors import RedisUnavailable, TooLate
from relay.core.frozen import frozen
from relay.core.handoff import Handoff
from relay.core.supervision import run_once
from relay.delivery.account import Account
from relay.delivery.outcome import Outcome, Sent
from relay.delivery.permit import Lag, Permit, ServerClock
from relay.redis.link import RedisLink
from relay.redis.shared_allowance import SharedAllowance

log = structlog.get_logger(__name__)

#: Permits that one request asks for at most, those for mail that has not come yet included.
_MOST: Final = 50
#: With fewer recipients left of the day permits are asked for no other mail than what waits.
_SCARCE: Final = 1000
#: A permit that came too late is asked for anew so often before its mail begins to be handed over.
_TRIES: Final = 3
#: Seconds for which mail is put back that holds up no other: the end of the process, an error, a long wait.
_SOON: Final = 1.0
#: By so much the permits of an answer are past after the clock of Redis was put forward or back.
_STEPPED_SECONDS: Final = 3600.0
#: A permit with a moment so close (seconds) is one that nothing had to wait for.
_AT_ONCE: Final = 0.001
#: Seconds for which a process that had to hand out permits one by one counts as one that mail waits in.
_FULL_SECONDS: Final = 2.0


@frozen
class Rest:
    """No permit for so long. `kind`: one of `relay.delivery.outcome.KINDS`, for all mails; or FAR or SHORT."""

    seconds: float
    kind: str


class _Mail:
    """A mail that waits for its permit."""

    __slots__ = ("done", "ready", "recipients", "since", "user_id")

    def __init__(self, user_id: str | None, recipients: int, *, ready: bool) -> None:
        self.user_id = user_id
        self.recipients = recipients
        #: Whether it leaves as soon as it has its permit: its connection is open, and waits.
        self.ready = ready
        self.since = time.monotonic()
        self.done: Handoff[Permit | Rest] = Handoff()


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
        self._accounts: dict[str, _Paced] = {}
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
        if isinstance(outcome, Sent):
            self._of(region).passed += 1
        elif outcome.kind == "throttled":
            self._of(region).throttled += 1

    def unused(self, region: str, recipients: int) -> None:
        """Nothing was sent by a permit for so many recipients, although it was in time."""
        self._of(region).void += recipients

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

    def _of(self, region: str) -> _Paced:
        account = self._accounts.get(region)
        if account is None:
            name = f"{self._provider}:{region}"
            shared = None
            if self._link is not None:
                shared = SharedAllowance(self._link, name, fallback=self._fallback, shares=self._shares)
            alone = Allowance(fallback=self._fallback, shares=self._shares)
            account = self._accounts[region] = _Paced(region, shared, alone, ask=self._ask, closing=self._closing)
        return account


class _Paced:
    """One account."""

    def __init__(
        self,
        region: str,
        shared: SharedAllowance | None,
        alone: Allowance,
        *,
        ask: Callable[[str], Account | None],
        closing: Event,
    ) -> None:
        self._region = region
        self._shared = shared
        self._alone = alone
        self._ask = ask
        self._closing = closing
        #: Whether the share of this process counts, since there is no Redis.
        self._is_alone = shared is None
        #: The mails that wait, by user. The next user in turn comes first.
        self._users: OrderedDict[str | None, deque[_Mail]] = OrderedDict()
        #: How many permits go to the users as they stand before one that had nothing to send may come next again.
        self._kept_turns = 0
        self._serving = False
        #: Permits for one recipient each that are not asked for yet, and how many are wanted.
        self._spare: deque[Permit] = deque()
        self._wanted = 0
        self._last_permit = 0.0
        #: Recipients a second by the last grant; 0.0: there has been none.
        self._rate = 0.0
        #: What a request for permits takes, and a mail from the end of its wait until it leaves.
        self._trip = Lag()
        self._clock = ServerClock()
        self._lag = Lag()
        #: When to ask next, at the earliest.
        self._again = 0.0
        self._gauge = metrics.DELIVERY_RATE.labels(region)
        #: What became of calls since the last request.
        self.passed = 0
        self.throttled = 0
        #: Recipients of permits since then that nothing was sent by.
        self.void = 0
        self.full_until = 0.0

    def wait(self, user_id: str | None, recipients: int, octets: int) -> Permit | Rest:
        """See Pace."""
        if octets > LARGE and (rest := self._until(time.monotonic() + self._wait_for_octets(octets))):
            return rest
        tries = _TRIES
        while True:
            spare = self._spare_permit() if recipients == 1 and not self._users else None
            permit = spare or self._asked(user_id, recipients)
            if isinstance(permit, Rest):
                return permit
            if rest := self._until(permit.moment - self._lag.seconds):
                return rest
            tries -= 1
            if not tries or time.monotonic() <= permit.latest:
                return permit
            self.void += recipients

    def renewed(self, user_id: str | None, recipients: int, until: float) -> Permit:
        """Another permit for a mail that was late for its own, with a moment before `until`. Raises TooLate."""
        self.void += recipients
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
            self.void += recipients
            raise TooLate(_SOON)
        return permit

    def rest(self, kind: str, first: float, longest: float) -> float | None:
        """See Pace."""
        self._spare.clear()
        if self._shared is None or self._is_alone:
            return None
        try:
            return self._shared.rest(kind, first, longest)
        except RedisUnavailable:
            return None

    def resume(self) -> None:
        """See Pace."""
        if self._shared is not None:
            # Without Redis the rest that this would end is of no effect, and afterwards ends with the next mail.
            with contextlib.suppress(RedisUnavailable):
                self._shared.resume()

    def release(self, rest: Rest) -> None:
        """No mail waits any more."""
        self._kept_turns = 0
        while self._users:
            for mail in self._users.popitem(last=False)[1]:
                mail.done.set(rest)

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
            self.void += 1
            self._wanted = 0  # more than what comes
        return None

    def _asked(self, user_id: str | None, recipients: int, *, ready: bool = False) -> Permit | Rest:
        """A permit, in the user's turn."""
        if self._closing.is_set():
            return Rest(0.0, FAR)
        mail = _Mail(user_id, recipients, ready=ready)
        queue = self._users.get(user_id)
        if queue is None:
            queue = self._users[user_id] = deque()
            # A user that has had nothing to send comes next, with every second permit at most.
            if len(self._users) > 1 and not self._kept_turns:
                self._users.move_to_end(user_id, last=False)
                self._kept_turns = 2
        if ready:
            queue.appendleft(mail)
        else:
            queue.append(mail)
        if not self._serving:
            self._serving = True
            run_once("delivery_pace", self._serve)
        try:
            return mail.done.get()
        except BaseException:
            self._forget(mail)
            raise

    def _forget(self, mail: _Mail) -> None:
        """A mail waits no more."""
        if mail.done.settled:
            return
        mail.done.settled = True
        queue = self._users[mail.user_id]
        queue.remove(mail)
        if not queue:
            del self._users[mail.user_id]

    def _serve(self) -> None:
        try:
            while self._users:
                # There is no permit before; whatever comes meanwhile is asked for with the same request.
                pause = self._again - time.monotonic()
                if pause > 0:
                    self._closing.wait(pause)
                self._put_back_late(time.monotonic() - FARTHEST)
                if self._users:
                    self._hand_out()
        finally:
            self._serving = False
            # After an error: no mail may wait for ever.
            self.release(Rest(_SOON, FAR))

    def _put_back_late(self, since: float) -> None:
        """Mails that have waited since before then, behind others, wait in Postgres: their claims grow old here, and
        all would be too old in the end for the permits that they get.
        """
        late = [
            mail
            for queue in self._users.values()
            for mail in takewhile(lambda mail: mail.ready or mail.since < since, queue)
            if not mail.ready
        ]
        for mail in late:
            self._forget(mail)
            mail.done.set(Rest(_SOON, FAR))

    def _hand_out(self) -> None:
        mails = self._in_turn()
        # More than what waits only where none has to wait.
        spare = 0 if self._spare or len(mails) > 1 else self._wanted
        weights = [mail.recipients for mail in mails] + [1] * spare
        now = time.monotonic()
        lead = 0.0 if self._is_alone else self._trip.seconds
        if not any(mail.ready for mail in mails):
            lead += self._lag.seconds
        grant = self._reserve(now, weights, lead)
        self._gauge.value = grant.rate
        self._rate = grant.rate or self._rate
        if grant.lowered:
            log.warning("pace_lowered", region=self._region, recipients_a_second=round(grant.rate, 2))
        if grant.rest:
            self._spare.clear()
            if grant.ask:
                run_once("delivery_account", self._learn)
            rest = Rest(grant.rest * random.uniform(1.0, 1.2), grant.kind)  # noqa: S311 - spreads load
            if grant.kind == SHORT:
                self._leaves(mails[0], rest)
            else:
                self.release(rest)
            return
        permits = self._permits(now, grant, weights)
        learning = run_once("delivery_account", self._learn) if grant.ask else None
        if len(permits) == 1:
            if len(mails) > 1:
                self.full_until = max(self.full_until, permits[0].moment)
            mails = [self._next_at(permits[0], mails[0])]
        for mail, permit in zip(mails, permits, strict=False):
            self._leaves(mail, permit)
        self._spare.extend(permits[len(mails) :])
        if permits:
            self._last_permit = permits[-1].latest
        # Permits for mail that has not come yet: twice as many each time, as long as all of them are used in time.
        alike = int(grant.rate * HORIZON)
        scarce = 0 <= grant.left < _SCARCE  # one that is not used may be what another mail needs
        at_once = bool(grant.moments) and grant.moments[0] < lead + _AT_ONCE
        self._wanted = min(_MOST - 1, alike, 2 * spare + 1) if at_once and not scarce else 0
        self._again = now + min(grant.again, FARTHEST)
        if self._users and grant.rate:
            self.full_until = max(time.monotonic(), self._again) + _FULL_SECONDS
        if learning is not None and not grant.rate:
            learning.join(ANSWER_SECONDS)
            self._again = 0.0

    def _next_at(self, permit: Permit, mail: _Mail) -> _Mail:
        """The mail that a permit is for, once its moment has come: another user's may come before `mail` by then."""
        if self._until(permit.moment - self._lag.seconds) is None:
            for queue in self._users.values():
                if queue[0].recipients == mail.recipients:
                    return queue[0]
        return mail

    def _permits(self, asked: float, grant: Grant, weights: Sequence[int]) -> list[Permit]:
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
            Permit(moment=now + wait, latest=now + wait + lateness(grant.rate, weight), lag=self._lag)
            for wait, weight in zip(grant.moments, weights, strict=False)
        ]

    def _in_turn(self) -> list[_Mail]:
        """The mails that are next, of each user in turn."""
        mails: list[_Mail] = []
        queues = [iter(queue) for queue in self._users.values()]
        while queues and len(mails) < _MOST:
            left = []
            for queue in queues:
                mail = next(queue, None)
                if mail is not None:
                    mails.append(mail)
                    left.append(queue)
            queues = left
        return mails[:_MOST]

    def _leaves(self, mail: _Mail, answer: Permit | Rest) -> None:
        queue = self._users.get(mail.user_id)
        if mail.done.settled or queue is None:
            return  # the process ends, or the mail waits no more
        queue.remove(mail)  # the first one as a rule
        if queue:
            self._users.move_to_end(mail.user_id)
        else:
            del self._users[mail.user_id]
        self._kept_turns = max(0, self._kept_turns - 1)
        mail.done.set(answer)

    # The allowance.

    def _reserve(self, now: float, recipients: Sequence[int], lead: float) -> Grant:
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
        return max(0.0, self._last_permit - now, self._alone.shares / self._rate)

    def _go_alone(self) -> None:
        """Redis is away: from now on this process has its share, but for what all hold already."""
        self._is_alone = True
        now = time.monotonic()
        self._alone.factor, self._alone.left = 1.0, -1
        self._alone.points.clear()
        if self._alone.rate:
            self._alone.turn = max(now, self._last_permit) + max(HORIZON, self._alone.shares / self._alone.rate)
            # Not all processes at once.
            self._alone.asked = now - random.uniform(0.0, ASK_SECONDS - ANSWER_SECONDS)  # noqa: S311 - spreads load
        log.warning("pace_alone", region=self._region, shares=self._alone.shares)

    def _learn(self) -> None:
        """Asks the account, for all processes."""
        account = self._ask(self._region)
        if account is None:
            return
        rate = account.rate or self._alone.fallback
        self._alone.learn(rate, account.left, account.off)
        if self._shared is not None and not self._is_alone:
            with contextlib.suppress(RedisUnavailable):
                self._shared.learn(rate, account.left, account.off)

    def _wait_for_octets(self, octets: int) -> float:
        if self._shared is not None and not self._is_alone:
            try:
                return self._shared.wait_for_octets(octets)
            except RedisUnavailable:
                pass
        return self._alone.wait_for_octets(time.monotonic(), octets)
