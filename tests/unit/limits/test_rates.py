"""Messages a minute: exact where limits are small, cheap where they are large, shared where there is Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import redis
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from relay.core.outcomes import MessageLimit
from relay.limits.rates import Rate, Rates
from relay.redis.keys import RATE_PREFIX
from relay.redis.link import RedisLink
from scripts.services import free_port


@pytest.fixture
def link_to() -> Iterator[Callable[[str | None], RedisLink]]:
    links: list[RedisLink] = []

    def link_to(url: str | None) -> RedisLink:
        links.append(RedisLink(url, verify_tls=True, timeout=5.0, pause=0.1))
        return links[-1]

    yield link_to
    for link in links:
        link.close()


Links = Callable[[str | None], RedisLink]


def calls(server: redis.Redis) -> int:
    return sum(int(stats["calls"]) for name, stats in server.info("commandstats").items() if "eval" in name)


def test_small_limits_are_exact_over_all_processes(redis_url: str, link_to: Links) -> None:
    processes = [Rate(link_to(redis_url), "test", 10) for _ in range(3)]
    taken = [processes[number % 3].take("key") for number in range(20)]
    assert taken == [True] * 10 + [False] * 10
    assert processes[0].take("another key")


def test_each_limit_has_its_own_count(redis_url: str, link_to: Links) -> None:
    link = link_to(redis_url)
    assert Rate(link, "one", 1).take("key")
    assert Rate(link, "other", 1).take("key")
    assert not Rate(link, "other", 1).take("key")


def test_many_messages_cost_few_calls(redis_url: str, link_to: Links) -> None:
    rate = Rate(link_to(redis_url), "test", 10_000)
    with redis.Redis.from_url(redis_url) as server:
        server.config_resetstat()
        assert all(rate.take("key") for _ in range(9_000))
        assert calls(server) < 300
        assert sum(rate.take("key") for _ in range(2_000)) == 1_000


def test_who_is_refused_costs_nothing(redis_url: str, link_to: Links) -> None:
    rate = Rate(link_to(redis_url), "test", 1)
    assert rate.take("key")
    with redis.Redis.from_url(redis_url) as server:
        server.config_resetstat()
        began = time.monotonic()
        assert not any(rate.take("key") for _ in range(1000))
        assert calls(server) <= 1 + (time.monotonic() - began)


@pytest.mark.parametrize("kind", ["none", "refusing"])
def test_without_redis_each_process_counts_for_itself(kind: str, link_to: Links) -> None:
    rate = Rate(link_to(None if kind == "none" else f"redis://127.0.0.1:{free_port()}"), "test", 5)
    assert [rate.take("key") for _ in range(7)] == [True] * 5 + [False] * 2


def test_the_library_itself_counts_the_same(redis_url: str, link_to: Links) -> None:
    """Under the same names: another release of the relay may have it count by a separate client."""
    item = RateLimitItemPerMinute(6, namespace="test")
    by_library = SlidingWindowCounterRateLimiter(RedisStorage(redis_url, key_prefix=RATE_PREFIX))
    rate = Rate(link_to(redis_url), "test", 6)
    assert [by_library.hit(item, "key"), rate.take("key")] * 2 == [True] * 4
    assert by_library.get_window_stats(item, "key").remaining == 4
    assert by_library.hit(item, "key", cost=4)
    assert not by_library.hit(item, "key")
    assert not Rate(link_to(redis_url), "test", 6).take("key")


def test_redis_holds_neither_key_nor_address_for_long(redis_url: str, link_to: Links) -> None:
    rates = Rates(link_to(redis_url), per_key=2, per_origin=2)
    assert rates.take("key-id", b"\x01" * 8) is None
    with redis.Redis.from_url(redis_url) as server:
        names = sorted(server.scan_iter())
        assert len(names) == 2
        assert all(name.startswith(b"smtp-relay:rate:") for name in names)
        assert all(0 < server.ttl(name) <= 120 for name in names)


def test_the_replies(link_to: Links) -> None:
    rates = Rates(link_to(None), per_key=2, per_origin=3)
    one, other = b"\x01" * 8, b"\x02" * 8
    assert [rates.take("a", one), rates.take("a", one)] == [None, None]
    assert rates.take("a", other) is MessageLimit.KEY
    assert rates.take("b", one) is None
    assert rates.take("b", one) is MessageLimit.ORIGIN
