"""Processes that send by one account, simulated: their clock is a number, so that an hour takes as long as its work.

The allowance is the real one, in Redis or in each process; calls, their jitter and their answers are made up, and
`scripts.services.ses_ledger` judges them as the double of SES does.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from relay.core.allowance import Grant
from scripts.services.ses_ledger import Ledger

#: Mails that a process has in hand at a time; those that wait for a permit are among them.
CONCURRENCY: Final = 20


class Allowed(Protocol):
    """An allowance at a given time."""

    def reserve(self, now: float, weights: Sequence[int], *, passed: int, throttled: int) -> Grant:
        """See `relay.core.allowance.Allowance`."""

    def learn(self, rate: float, left: int, off: str) -> None:
        """See `relay.core.allowance.Allowance`."""


@dataclass(slots=True)
class _Process:
    allowance: Allowed
    #: Recipients of the mails in hand that have no permit yet.
    waiting: list[int] = field(default_factory=list)
    in_hand: int = 0
    passed: int = 0
    throttled: int = 0
    #: Whether it has a time to ask for permits.
    asks: bool = False
    #: There is none before this time.
    not_before: float = 0.0


@dataclass(slots=True)
class Simulation:
    """Mail always waits, in every process. `weight`: the recipients of the next mail. Seconds everywhere.

    `jitter`: the most that a call is late; `answer`: the most that an answer takes.
    """

    allowances: Sequence[Allowed]
    ledger: Ledger
    weight: Callable[[random.Random], int] = lambda _: 1
    jitter: float = 0.01
    answer: float = 0.1
    seed: int = 0
    now: float = 1000.0
    #: Requests for permits.
    requests: int = 0
    _events: list[tuple[float, int, str, int, int]] = field(default_factory=list)
    _number: int = 0

    def run(self, seconds: float) -> float:
        """Goes on for so long. Returns the part of the account's rate that was used: recipients who were taken."""
        chance = random.Random(self.seed)  # noqa: S311 - a simulation
        processes = [_Process(allowance) for allowance in self.allowances]
        end, before = self.now + seconds, self.ledger.recipients
        for index in range(len(processes)):
            self._put(self.now + chance.random() * 0.1, "ask", index)
        while self._events and self._events[0][0] < end:
            self.now, _, kind, index, recipients = heapq.heappop(self._events)
            process = processes[index]
            if kind == "call":
                refused = self.ledger.take(self.now, recipients)
                answer = self.now + chance.uniform(0.02, self.answer)
                self._put(answer, "throttled" if refused else "passed", index, recipients)
                continue
            if kind == "passed":
                process.passed += 1
                process.in_hand -= 1
            elif kind == "throttled":
                process.throttled += 1
                process.in_hand -= 1
            else:
                process.asks = False
            while process.in_hand < CONCURRENCY:
                process.in_hand += 1
                process.waiting.append(self.weight(chance))
            if process.asks or not process.waiting:
                continue
            if self.now < process.not_before:
                process.asks = True
                self._put(process.not_before, "ask", index)
            else:
                self._ask(process, index, chance)
        self._events.clear()
        return (self.ledger.recipients - before) / (self.ledger.rate * seconds)

    def _ask(self, process: _Process, index: int, chance: random.Random) -> None:
        self.requests += 1
        grant = process.allowance.reserve(self.now, process.waiting, passed=process.passed, throttled=process.throttled)
        process.passed = process.throttled = 0
        if grant.ask:
            process.allowance.learn(self.ledger.rate, -1, "")
        for moment in grant.moments:
            self._put(self.now + moment + chance.random() * self.jitter, "call", index, process.waiting.pop(0))
        process.not_before = self.now + max(0.001, grant.again)
        if process.waiting:
            process.asks = True
            self._put(process.not_before, "ask", index)

    def _put(self, when: float, kind: str, index: int, recipients: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, kind, index, recipients))
