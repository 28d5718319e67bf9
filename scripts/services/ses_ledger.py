"""What the double of SES counts of one account: recipients by time, so that a rate can be kept to and looked at."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Final

#: How much more than its rate SES takes in a second.
TOLERANCE: Final = 1.05


@dataclass(slots=True)
class Ledger:
    """Every call within an account. The clock is the caller's; seconds.

    `rate`: recipients a second beyond which calls are refused; 0.0: none is. `daily`: recipients of a day; -1: any
    number. `chance`: the part of the calls that is refused without a reason.
    """

    rate: float = 0.0
    daily: int = -1
    chance: float = 0.0
    seed: int = 0
    recipients: int = 0
    calls: int = 0
    #: Calls refused for the rate, and at random.
    too_fast: int = 0
    at_random: int = 0
    #: The most recipients of any second, refused calls included, and when the first and the last call came.
    most: int = 0
    first: float = 0.0
    last: float = 0.0
    #: The calls of the second that ends with the last one, and those of the second before it.
    _second: deque[tuple[float, int]] = field(default_factory=deque)
    _before: deque[tuple[float, int]] = field(default_factory=deque)
    _in_second: int = 0
    _random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._random.seed(self.seed)

    def take(self, now: float, recipients: int) -> str:
        """Counts a call that came at `now`. Why it is refused, in SES's words; else nothing.

        Calls may be told a little out of order.
        """
        in_second = self._late(now, recipients) if now < self.last else self._next(now, recipients)
        self.first = self.first or now
        self.last = max(self.last, now)
        self.calls += 1
        self.most = max(self.most, in_second)
        if self.rate and in_second > max(self.rate * TOLERANCE, recipients):
            self.too_fast += 1
            return "Maximum sending rate exceeded."
        if self.chance and self._random.random() < self.chance:
            self.at_random += 1
            return "Maximum sending rate exceeded."
        if 0 <= self.daily < self.recipients + recipients:
            return "Daily message quota exceeded."
        self.recipients += recipients
        return ""

    def _next(self, now: float, recipients: int) -> int:
        """Counts a call. Recipients of the second that ends with it."""
        self._forget(self._before, now - 2.0)
        while self._second and self._second[0][0] <= now - 1.0:
            self._before.append(self._second.popleft())
            self._in_second -= self._before[-1][1]
        self._second.append((now, recipients))
        self._in_second += recipients
        return self._in_second

    def _late(self, now: float, recipients: int) -> int:
        """Counts a call that came before the last one. Recipients of the fullest second that holds it."""
        calls = [*self._before, *self._second]
        calls.insert(bisect_right(calls, (now, 0)), (now, recipients))
        half = bisect_right(calls, (self.last - 1.0, 10**9))
        self._before, self._second = deque(calls[:half]), deque(calls[half:])
        self._in_second = sum(count for _, count in self._second)
        most = held = first = 0
        for moment, count in calls:
            held += count
            while calls[first][0] <= moment - 1.0:
                held -= calls[first][1]
                first += 1
            if now <= moment < now + 1.0:
                most = max(most, held)
        return most

    @staticmethod
    def _forget(calls: deque[tuple[float, int]], until: float) -> None:
        while calls and calls[0][0] <= until:
            calls.popleft()

    def quota(self, rate: float) -> dict[str, float]:
        """SendQuota, as GetAccount has it. `rate`: where this ledger has none."""
        return {
            "MaxSendRate": self.rate or rate,
            "Max24HourSend": float(self.daily),
            "SentLast24Hours": float(self.recipients),
        }

    def figures(self) -> dict[str, int | float]:
        """What there is to see."""
        return {
            "recipients": self.recipients,
            "calls": self.calls,
            "too_fast": self.too_fast,
            "at_random": self.at_random,
            "most": self.most,
            "seconds": self.last - self.first,
        }
