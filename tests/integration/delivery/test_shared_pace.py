"""One account and several processes, each with its own connection to Valkey: octets, and permits of a killed one.

What is looked at can only be later than it is asked to be on a busy machine, never earlier.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from relay.core.allowance import HORIZON, LARGE, MANY, MARGIN, OCTETS_A_SECOND
from relay.delivery.account import Account
from relay.delivery.pace import Pace
from relay.delivery.permit import Permit
from relay.redis.keys import PACE_PREFIX
from relay.redis.link import RedisLink
from relay.redis.shared_allowance import SharedAllowance
from scripts.services.relay import ROOT

#: A process that asks each account of its arguments for all permits that it can get, says until when it holds some, and
#: waits to be killed.
_HOLDER = """
import json, sys, time
from relay.redis.link import RedisLink
from relay.redis.shared_allowance import SharedAllowance
link = RedisLink(sys.argv[1], verify_tls=True, timeout=5.0, pause=0.1)
held = []
for name, lead in json.loads(sys.argv[2]):
    shared = SharedAllowance(link, name, fallback=1.0, shares=3)
    grants = [shared.reserve([1] * 50, passed=0, throttled=0, lead=lead) for _ in range(2)]
    held.append(max(grant.now + grant.moments[-1] for grant in grants))
print(json.dumps(held), flush=True)
time.sleep(60)
"""


@pytest.fixture
def links(redis_url: str) -> Iterator[Callable[[], RedisLink]]:
    made: list[RedisLink] = []

    def make() -> RedisLink:
        made.append(RedisLink(redis_url, verify_tls=True, timeout=5.0, pause=0.1))
        return made[-1]

    yield make
    for link in made:
        link.close()


def test_large_mails_of_three_processes_keep_one_rate_in_octets(links: Callable[[], RedisLink]) -> None:
    def ask(_: str) -> Account:
        return Account(rate=1000.0, left=-1, off="")

    paces = [Pace(links(), "ses", ask, fallback=1.0, shares=3) for _ in range(3)]
    octets = LARGE + 1_000_000
    left: list[float] = []

    def send(pace: Pace, octets: int) -> None:
        assert isinstance(pace.wait("r", "user", 1, octets), Permit)
        left.append(time.monotonic())

    for pace in paces:
        pace.wait("r", "user", 1, 1000)  # the account is known
    began = time.monotonic()
    large = [gevent.spawn(send, pace, octets) for pace in paces for _ in range(3)]
    gevent.joinall(large, raise_error=True)
    for number, moment in enumerate(sorted(left)):
        # Half of one is for timers that are early, and the clock of Valkey, which stands still during a round of calls.
        assert moment - began >= (number - 0.5) * octets / OCTETS_A_SECOND
    # One octet less, and only recipients count.
    link, account = links(), PACE_PREFIX + b"ses:other"
    paces[0].wait("other", "user", 1, LARGE)
    assert link.call("HGET", account, "octets") is None
    paces[0].wait("other", "user", 1, LARGE + 1)
    assert link.call("HGET", account, "octets") is not None


def test_what_a_killed_process_holds_is_not_given_out_again_and_over_in_a_moment(
    links: Callable[[], RedisLink], redis_url: str
) -> None:
    """`lead`: what Redis and the way to the provider take, for which permits are asked for farther ahead."""
    kinds = [(rate, lead) for rate in (0.5, 14.0, 500.0) for lead in (0.0, 0.2, 1.0)]
    accounts = [(f"ses:{rate}:{lead}", lead) for rate, lead in kinds]
    link = links()
    survivors = [SharedAllowance(link, name, fallback=1.0, shares=3) for name, _ in accounts]
    for survivor, (rate, _) in zip(survivors, kinds, strict=True):
        survivor.reserve([1], passed=0, throttled=0)
        survivor.learn(rate, -1, "")
    arguments = [sys.executable, "-c", _HOLDER, redis_url, json.dumps(accounts)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        held = json.loads(holder.stdout.readline())
        holder.kill()
    for survivor, (rate, lead), last in zip(survivors, kinds, held, strict=True):
        grant = survivor.reserve([1] * 50, passed=0, throttled=0)
        one = 1 / (rate * MARGIN)
        # Permits that are close to each other have one moment, those of two processes too.
        assert grant.now + grant.moments[0] >= last + (one if rate < MANY else 0.0) - 1e-6
        # It asked twice: each time for what is as far ahead, or for one permit.
        assert grant.moments[0] <= 2 * lead + HORIZON + 2 * one
