"""When mail may leave, so that an account's rate is kept: the arithmetic alone, without clock, network or waiting.

A *permit* is a moment and good for a number of recipients. Permits are spread evenly: what one costs passes before the
next one. Mails to several recipients are lumps in that, so no WINDOW of time may hold more than CAP of the rate either.
An account's state lies in Redis, where `relay.redis.shared_allowance` does the same arithmetic for all processes; a
process without Redis keeps an `Allowance` with its share of the rate. A test compares the answers of both.

The rate that is used is the account's, times a factor. The answers to calls move the factor: what part of them was
throttled lowers it, and while calls pass it rises by RAISE a second. So a few stray refusals cost little, and it takes
seconds to find out that something else sends by the same account.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from relay.core.frozen import frozen

#: The part of the rate that is used: what jitter may move between a permit and the provider's clock is left to it.
MARGIN: Final = 0.97
#: How much more than its rate a provider's account may get in any second, as the answers to calls count it.
TOLERANCE: Final = 1.05
#: From MANY recipients a second on, permits that are closer to each other than GRAIN seconds are one point of the
#: window, at the moment of the first, and have that moment.
#: perf: their mails leave, are answered and recorded together: at 500 a second a mail takes 1.29 ms of Postgres instead
#: of 1.45, and 1.65 of the workers instead of 1.77 (python -m scripts.benchmark.pace --seconds 25).
GRAIN: Final = 0.01
MANY: Final = 50
#: Seconds of the window, with the time that a point stands for, and how much more than the rate it may hold.
WINDOW: Final = 1.03
CAP: Final = 1.03
#: Of fewer than MANY recipients a second lumps fit badly into a window: the permits behind one that WINDOW has held up
#: may be closer to each other, by so many seconds of the time that it waited. No WINDOW holds more by that.
CREDIT: Final = 1.0
#: Permits are given so many seconds ahead, the first one of a request farther ahead than others. A caller that needs
#: some time until it can use them gets those of as much time more, since its next request takes that, too.
HORIZON: Final = 0.05
FARTHEST: Final = 30.0
#: A process comes for more when the next permit is so close (seconds): the closer, the more it gets at once.
NEAR: Final = 0.02
#: Why there is no permit where the next one is too far ahead.
FAR: Final = "far"
#: Why there is none for a mail that has more recipients than are left of the day.
SHORT: Final = "short"
#: Seconds from one question for the account's rate to the next, and where it is not known.
ASK_SECONDS: Final = 60.0
ASK_AGAIN_SECONDS: Final = 10.0
#: Seconds for which mail waits for the first answer; then the rate is that of the setting.
ANSWER_SECONDS: Final = 5.0
#: What the factor rises by in a second in which calls pass, and its least value.
RAISE: Final = 0.01
LEAST: Final = 0.05
#: From so large a part of throttled calls on, and so many, they count after a second; else after PERIOD seconds.
MUCH: Final = 0.1
ENOUGH: Final = 6
PERIOD: Final = 5.0
#: A part up to this one lowers nothing, since what would be lowered for it is raised again in a PERIOD.
LITTLE: Final = RAISE * PERIOD
#: The factor is halved at most, and with fewer calls than this to judge by lowered by a tenth at most.
FEW_CALLS: Final = 10
#: A part from which on it is lowered however often that was of no use.
MOSTLY: Final = 0.5
#: Seconds for which it is not lowered where that was of no use.
SPARED_SECONDS: Final = 60.0
#: Seconds that a call may take on its way from the last look at its permit to the provider's clock, beyond the usual.
WAY: Final = 0.012
#: Seconds after its moment for which a permit is good at most.
LATEST: Final = 0.03
#: Octets a second of mails above LARGE octets.
OCTETS_A_SECOND: Final = 40_000_000.0
LARGE: Final = 10_000_000


@frozen
class Grant:
    """The answer to a request for permits. Times are seconds from now."""

    #: The time by the clock of the account's state.
    now: float
    #: The moments of the permits, for the first ones of the request.
    moments: Sequence[float]
    #: When to come again for more.
    again: float
    #: The caller is to ask the account for its rate: no other does.
    ask: bool
    #: Recipients a second that are sent to at present; 0.0: not known yet.
    rate: float
    #: The rate has just been lowered.
    lowered: bool
    #: Recipients that are left of the day; -1: no limit.
    left: int
    #: No permits for so long, and why: one of `relay.delivery.outcome.KINDS` for all mails, FAR for all of the request,
    #: SHORT for its first one.
    rest: float = 0.0
    kind: str = ""


def lateness(rate: float, weight: int) -> float:
    """Seconds after its moment for which a permit for so many recipients is good. `rate`: a grant's.

    As many recipients as a second may hold are spread over more than a second: by the rest they may be late before a
    second holds too many. What is left of it is WAY. WINDOW is longer than a second for every permit; at MANY
    recipients a second those of mails that are no lumps take longer than that.
    """
    if rate < MANY * MARGIN:
        return WINDOW - 1.0 - WAY
    spread = (rate / MARGIN * TOLERANCE - weight) / rate
    return min(LATEST, max(WINDOW - GRAIN, spread) - 1.0 - WAY)


@dataclass(slots=True)
class Allowance:
    """The state of one account in one process that has no Redis. Times are those of one clock, in seconds.

    `fallback`: recipients a second where the account can't be asked. `shares`: the rate is divided among so many.
    """

    fallback: float
    shares: int = 1
    #: The account's recipients a second; 0.0: not known.
    rate: float = 0.0
    #: Recipients that are left of the day; -1: no limit.
    left: int = -1
    #: Why the account takes no mail.
    off: str = ""
    asked: float = -math.inf
    first_asked: float = math.inf
    #: When the next permit may be.
    turn: float = -math.inf
    #: Moments of the last window, and recipients of each.
    points: deque[tuple[float, int]] = field(default_factory=deque)
    factor: float = 1.0
    since: float = -math.inf
    calls: int = 0
    throttled: int = 0
    raised: float = -math.inf
    #: The part that was throttled when the factor was last lowered (0.0: that helped), by how much it was lowered then,
    #: and the factor before the first time.
    tried: float = 0.0
    ratio: float = 1.0
    before: float = 1.0
    #: The part for which it was lowered in vain, and until when it is not lowered for such a part.
    tried_in_vain: float = 0.0
    spared: float = -math.inf
    octets_turn: float = -math.inf

    def reserve(
        self,
        now: float,
        weights: Sequence[int],
        *,
        passed: int = 0,
        throttled: int = 0,
        void: int = 0,
        lead: float = 0.0,
    ) -> Grant:
        """Asks for a permit for each of these numbers of recipients.

        `passed`, `throttled`: calls that were answered so since the last request. `void`: recipients of permits
        that nothing was sent by. `lead`: seconds before which the caller can't use a permit.
        """
        if self.left >= 0:
            self.left += void
        ask = now - self.asked >= (ASK_SECONDS if self.rate else ASK_AGAIN_SECONDS)
        if ask:
            self.asked, self.first_asked = now, min(now, self.first_asked)
        lowered = self._judge(now, passed, throttled)
        since_asked = now - self.asked
        nothing = partial(Grant, now, (), ask=ask, lowered=lowered, left=self.left)
        if self.off:
            rest = 1.0 if since_asked < ANSWER_SECONDS else max(1.0, ASK_SECONDS - since_asked)
            return nothing(again=rest, rate=0.0, rest=rest, kind=self.off)
        if not self.rate and now - self.first_asked < ANSWER_SECONDS:
            return nothing(again=0.1, rate=0.0)
        whole = (self.rate or self.fallback) / self.shares
        used = whole * self.factor * MARGIN
        moments: list[float] = []
        for weight in weights:
            earliest = max(now + lead, self.turn)
            moment = self._moment(earliest, weight, max(1, math.floor(whole * CAP)))
            if moments and moment > now + 2 * lead + HORIZON:
                break
            if moment > now + FARTHEST:
                rest = moment - now - NEAR
                return nothing(again=rest, rate=used, rest=rest, kind=FAR)
            if 0 <= self.left < weight:
                if not moments:
                    rest = 1.0 if since_asked < ANSWER_SECONDS else max(1.0, ASK_SECONDS - since_asked)
                    again, kind = (0.0, SHORT) if self.left else (rest, "quota")
                    return nothing(again=again, rate=used, rest=rest, kind=kind)
                break
            if self.left > 0:
                self.left -= weight
            self.turn = max(earliest, moment - (CREDIT if whole < MANY else 0.0)) + weight / used
            if self.points and moment - self.points[-1][0] < (GRAIN if whole >= MANY else 0.0):
                moment = max(now + lead, self.points[-1][0])
                self.points[-1] = (self.points[-1][0], self.points[-1][1] + weight)
            else:
                self.points.append((moment, weight))
            moments.append(moment - now)
        again = max(0.0, max(self.turn, self.points[-1][0] if self.points else self.turn) - now - NEAR - lead)
        return Grant(now, tuple(moments), again=again, ask=ask, rate=used, lowered=lowered, left=self.left)

    def learn(self, rate: float, left: int, off: str) -> None:
        """What the account says of itself: see the fields."""
        self.rate, self.off = rate, off
        self.left = left // self.shares if left >= 0 else -1

    def wait_for_octets(self, now: float, octets: int) -> float:
        """Seconds until a mail of so many octets, above LARGE, may ask for its permit. It counts as sent then."""
        moment = max(now, self.octets_turn)
        self.octets_turn = moment + octets / (OCTETS_A_SECOND / self.shares)
        return moment - now

    def _lower(self, now: float, part: float) -> bool:
        """Lowers the factor, unless that was tried in vain."""
        if self.tried and part < MOSTLY and part > (max(0.0, 1.0 - (1.0 - self.tried) / self.ratio) + self.tried) / 2:
            # As large a part as before, of fewer calls: the rate is not what they are throttled for.
            self.factor, self.tried, self.tried_in_vain, self.spared = self.before, 0.0, part, now + SPARED_SECONDS
            return False
        if not self.tried:
            self.before = self.factor
        self.ratio = max(0.5 if self.calls >= FEW_CALLS else 0.9, 1.0 - part)
        self.tried = part
        self.factor = max(LEAST, self.factor * self.ratio)
        return True

    def _moment(self, earliest: float, weight: int, cap: int) -> float:
        """The first moment at which so many recipients fit."""
        moment = earliest
        while self.points and self.points[0][0] <= moment - WINDOW:
            self.points.popleft()
        held = sum(recipients for _, recipients in self.points)
        position = 0
        while held + weight > cap and position < len(self.points):
            # A mail to more than fit into any window waits until it is empty.
            moment = self.points[position][0] + WINDOW
            held -= self.points[position][1]
            position += 1
        return moment

    def _judge(self, now: float, passed: int, throttled: int) -> bool:
        """Moves the factor; whether it was lowered."""
        self.calls += passed + throttled
        self.throttled += throttled
        period = now - self.since
        lowered = False
        part = self.throttled / self.calls if self.throttled else 0.0
        if period >= PERIOD or (period >= 1.0 and self.throttled >= ENOUGH and part >= MUCH):
            if part <= LITTLE:
                self.tried = 0.0
            elif now >= self.spared or part > self.tried_in_vain * 1.5 + LITTLE:
                lowered = self._lower(now, part)
            self.calls = self.throttled = 0
            self.since = now
        if passed and self.factor < 1.0:
            self.factor = min(1.0, self.factor + RAISE * min(1.0, now - self.raised))
        self.raised = now
        return lowered
