"""A right that is missing is missing for one command alone, and a cluster is refused aloud."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import redis
import structlog
from structlog.testing import LogCapture

from relay.core import metrics
from relay.core.errors import RedisUnavailable
from relay.redis.cache import Cache
from relay.redis.link import RedisLink
from scripts.services import Valkey

MakeLink = Callable[..., RedisLink]


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged from now on."""
    capture = LogCapture()
    structlog.configure(processors=[capture])
    yield capture.entries
    structlog.reset_defaults()


@pytest.fixture
def administrator(valkey_server: Valkey, redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.execute_command("ACL", "DELUSER", "relay")


@pytest.fixture
def make_link(administrator: redis.Redis, valkey_server: Valkey) -> Iterator[MakeLink]:
    """A link of a user with the rights given, in Redis's words."""
    links: list[RedisLink] = []

    def make(*rights: str) -> RedisLink:
        administrator.execute_command("ACL", "SETUSER", "relay", "reset", "on", ">pw", *rights)
        url = f"redis://relay:pw@{valkey_server.host}:{valkey_server.port}"
        links.append(RedisLink(url, verify_tls=True, timeout=1.0, pause=0.1))
        return links[-1]

    yield make
    for link in links:
        link.close()


def connections(administrator: redis.Redis) -> int:
    return int(administrator.info("stats")["total_connections_received"])


def test_a_command_that_is_not_permitted_takes_nothing_from_the_others(
    make_link: MakeLink, administrator: redis.Redis, logged: list[Any]
) -> None:
    link = make_link("~*", "+@all", "-zrem", "-hset")
    assert link.call("SET", "a", "1") == b"OK"
    before = connections(administrator)
    for _ in range(20):
        link.post([("ZREM", "a", "b")])
        with pytest.raises(RedisUnavailable) as raised:
            link.call("HSET", "h", "a", "b")
        assert raised.value.code == "NOPERM"
        assert link.call("GET", "a") == b"1"
        assert link.up
    assert connections(administrator) == before
    said = [(entry["event"], entry.get("code"), entry.get("command")) for entry in logged]
    assert sorted(said) == [("redis_error_reply", "NOPERM", "HSET"), ("redis_error_reply", "NOPERM", "ZREM")]


def test_each_question_of_one_packet_gets_its_answer(make_link: MakeLink) -> None:
    link = make_link("~*", "+@all", "-incr")
    link.call("SET", "a", "1")

    def ask(number: int) -> Any:
        if number % 3 == 0:
            with pytest.raises(RedisUnavailable):
                link.call("INCR", "a")
            return None
        return link.call("ECHO", str(number))

    greenlets = [gevent.spawn(ask, number) for number in range(60)]
    gevent.joinall(greenlets, raise_error=True, timeout=30)
    assert [greenlet.value for greenlet in greenlets if greenlet.value is not None] == [
        str(number).encode() for number in range(60) if number % 3
    ]


def test_of_several_commands_the_one_that_is_not_permitted_is_named(make_link: MakeLink, logged: list[Any]) -> None:
    link = make_link("~*", "+@all", "-zcard")
    *_, refused, after = link.call_all([("ZADD", "z", 1, b"\r\n$4\r\nPING\r\n"), ("ZCARD", "z"), ("EXPIRE", "z", 60)])
    assert (refused.code, after) == ("NOPERM", 1)
    assert [entry["command"] for entry in logged] == ["ZCARD"]


def test_a_user_who_may_not_ping_is_connected_all_the_same(make_link: MakeLink) -> None:
    assert make_link("~*", "+@all", "-ping").call("SET", "a", "1") == b"OK"


def test_a_user_who_may_do_nothing_at_all(make_link: MakeLink) -> None:
    link = make_link("-@all")
    for _ in range(3):
        with pytest.raises(RedisUnavailable):
            link.call("GET", "a")
    assert link.up


def test_commands_without_a_waiting_caller_are_bounded_and_dropped_ones_are_counted(
    make_link: MakeLink, administrator: redis.Redis, logged: list[Any]
) -> None:
    link = make_link("~*", "+@all")
    assert link.call("SET", "a", "0") == b"OK"
    before = metrics.FAULTS.labels("redis").value
    for _ in range(10_025):  # no turn for the greenlet that sends them
        link.post([("INCR", "a")])
    assert metrics.FAULTS.labels("redis").value == before + 25
    assert link.call("GET", "a") == b"10000"
    assert [entry["event"] for entry in logged] == ["redis_commands_dropped"]


# Cluster.


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Valkey]:
    """A server in cluster mode that has all slots."""
    with Valkey(tmp_path / "cluster", settings=["--cluster-enabled", "yes"]) as server:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            until = time.monotonic() + 20
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok" and time.monotonic() < until:
                time.sleep(0.05)
        yield server


def test_a_cluster_is_as_good_as_no_redis_and_said_aloud_once(cluster: Valkey, logged: list[Any]) -> None:
    cache = Cache(cluster.url, timeout=1.0, pause=0.05)
    for _ in range(5):
        assert cache.screen("hash", "user", ["a@x.example"], claim=None, intents=()) is None
        gevent.sleep(0.1)
    assert not cache.link.up
    cache.close()
    errors = [entry["event"] for entry in logged if entry["log_level"] == "error"]
    assert errors == ["redis_cluster_not_supported"]


def test_a_proxy_of_a_cluster_is_said_aloud_as_well(make_link: MakeLink, logged: list[Any]) -> None:
    """It hides the cluster until a script's keys lie on two of its servers."""
    link = make_link("~*", "+@all")
    for _ in range(3):
        with pytest.raises(RedisUnavailable) as raised:
            link.call("EVAL", "return redis.error_reply('CROSSSLOT Keys in request')", 0)
        assert raised.value.code == "CROSSSLOT"
    assert [(entry["event"], entry["log_level"]) for entry in logged] == [("redis_cluster_not_supported", "error")]
