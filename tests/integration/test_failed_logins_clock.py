"""Failed log-ins are scored by Redis's clock: relays whose own clocks disagree refuse an origin together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
import redis

from relay.limits.attempts import WINDOW_SECONDS, Attempts, Candidate
from relay.redis.link import RedisLink

MOST = 10
#: Seconds by which one relay's clock is ahead of the other's, or behind it.
OFFSETS = (-1e9, -WINDOW_SECONDS - 300, -WINDOW_SECONDS / 2, 0, 60, WINDOW_SECONDS + 300, 1e9)


@pytest.fixture
def relays(redis_url: str) -> Iterator[list[Attempts]]:
    """What counts in two relays."""
    links = [RedisLink(redis_url, verify_tls=True, timeout=5.0, pause=0.1) for _ in range(2)]
    yield [Attempts(link, most=MOST, refusal_seconds=900, longest_delay=8.0) for link in links]
    for link in links:
        link.close()


def wrong(number: int) -> Candidate:
    return Candidate(b"origin-1", b"wrong%03d" % number)


@pytest.mark.parametrize("offset", OFFSETS)
def test_two_relays_refuse_an_origin_together(
    relays: list[Attempts], monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    """Turn by turn, as a load balancer would deal them out. The second one's clock is off."""
    now = time.time
    delays = []
    for number, relay in zip(range(MOST), itertools.cycle(relays), strict=False):
        monkeypatch.setattr(time, "time", lambda ahead=offset * (number % 2): now() + ahead)
        assert not relay.admit(wrong(number)).refused, number
        delays.append(relay.failed(wrong(number)))
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, *[8.0] * (MOST - 5)]
    assert all(relay.admit(wrong(MOST)).refused for relay in relays)


def test_a_failure_counts_for_its_time_and_no_longer(relays: list[Attempts], redis_url: str) -> None:
    for number in range(MOST - 1):
        relays[0].failed(wrong(number))
    with redis.Redis.from_url(redis_url) as client:
        (name,) = client.keys("smtp-relay:auth:failures:*")
        assert 0 < client.ttl(name) <= WINDOW_SECONDS
        seconds, microseconds = client.time()
        assert all(
            abs(score - seconds - microseconds / 1e6) < 60 for _, score in client.zrange(name, 0, -1, withscores=True)
        )
        # As if they were from before the time that counts.
        for member, score in client.zrange(name, 0, -1, withscores=True):
            client.zadd(name, {member: score - WINDOW_SECONDS})
    assert relays[1].failed(wrong(MOST)) == 0.25
