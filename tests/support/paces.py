"""What tests of the pace have in common: an account that says what they want, and what Redis was asked."""

from __future__ import annotations

from collections.abc import Callable

import redis

from relay.delivery.account import Account
from relay.delivery.pace import Pace

MakePace = Callable[..., Pace]


class Asked:
    """An account that says what a test wants it to. A stand-in for the call to SES."""

    def __init__(self) -> None:
        self.says: Account | None = Account(rate=1000.0, left=-1, off="")
        self.times = 0

    def __call__(self, _: str) -> Account | None:
        self.times += 1
        return self.says


def scripts_called(url: str) -> int:
    """How many scripts a server of Redis has run."""
    with redis.Redis.from_url(url) as server:
        return sum(int(stats["calls"]) for name, stats in server.info("commandstats").items() if "eval" in name)
