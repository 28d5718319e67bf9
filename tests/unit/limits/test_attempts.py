"""Failed AUTHs: how slowly they are answered, who is refused, and who gets in all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import redis

from relay.limits import attempts
from relay.limits.attempts import Admission, Attempts, Candidate
from relay.redis.link import RedisLink

HERE, ELSEWHERE = b"origin-1", b"origin-2"

WELCOME = Admission(looked_at=True, refused=False)
LOOKED_AT = Admission(looked_at=True, refused=True)
NOT_LOOKED_AT = Admission(looked_at=False, refused=True)

Make = Callable[..., Attempts]


def link_to(url: str | None) -> RedisLink:
    return RedisLink(url, verify_tls=True, timeout=5.0, pause=0.1)


def wrong(number: int, origin: bytes = HERE) -> Candidate:
    return Candidate(origin, f"wrong{number:03}".encode())


GOOD = Candidate(HERE, b"goodkey1")


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["redis", "alone"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Attempts with three failures to refusal; each one is another process's where there is Redis."""
    links: list[RedisLink] = []
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None

    def make(most: int = 3, longest_delay: float = 8.0) -> Attempts:
        links.append(link_to(url))
        return Attempts(links[-1], most=most, refusal_seconds=900, longest_delay=longest_delay)

    yield make
    for link in links:
        link.close()


def test_each_failure_is_answered_later_than_the_one_before_up_to_a_bound(make: Make) -> None:
    counted = make(most=100)
    delays = [counted.failed(wrong(number)) for number in range(9)]
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]


def test_other_origins_are_not_concerned(make: Make) -> None:
    counted = make()
    for number in range(3):
        counted.failed(wrong(number))
    assert counted.admit(wrong(9)).refused
    assert counted.admit(wrong(9, ELSEWHERE)) == WELCOME
    assert counted.failed(wrong(9, ELSEWHERE)) == 0.25


def test_the_same_wrong_key_again_and_again_refuses_no_address(make: Make) -> None:
    counted = make()
    assert {counted.failed(wrong(1)) for _ in range(50)} == {0.25}
    assert counted.admit(wrong(2)) == WELCOME


def test_a_refused_origin_is_looked_at_once_in_a_while(make: Make) -> None:
    counted = make()
    for number in range(3):
        assert counted.admit(wrong(number)) == WELCOME
        counted.failed(wrong(number))
    assert counted.admit(wrong(4)) == LOOKED_AT
    began = time.monotonic()
    refused = counted.admit(wrong(5))
    if time.monotonic() - began < attempts.LOOK_SECONDS / 2:
        assert refused == NOT_LOOKED_AT
    until = began + 20
    while counted.admit(GOOD) == NOT_LOOKED_AT:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_who_was_good_there_before_gets_in(make: Make) -> None:
    counted = make()
    counted.succeeded(GOOD)
    for number in range(5):
        counted.failed(wrong(number))
    counted.admit(wrong(8))
    for _ in range(100):
        assert counted.admit(GOOD).looked_at
    # The same key has not been seen elsewhere.
    assert not counted.admit(wrong(8)).looked_at


def test_a_key_that_went_bad_is_not_known_any_more(make: Make) -> None:
    counted = make()
    counted.succeeded(GOOD)
    for number in range(2):
        counted.failed(wrong(number))
    counted.failed(GOOD)
    assert counted.admit(GOOD).refused


def test_success_forgives_nothing(make: Make) -> None:
    """Or the owner of one key could guess others for ever."""
    counted = make()
    for number in range(3):
        counted.succeeded(GOOD)
        counted.failed(wrong(number))
    assert counted.admit(wrong(9)).refused


def test_switched_off(make: Make) -> None:
    counted = make(most=0)
    assert {counted.failed(wrong(number)) for number in range(50)} == {0.25}
    assert counted.admit(wrong(51)) == WELCOME
    assert make(most=0, longest_delay=0.0).failed(wrong(1)) == 0.0


def test_what_a_process_remembers_by_itself_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST_REMEMBERED", 10)
    counted = Attempts(link_to(None), most=3, refusal_seconds=900, longest_delay=8.0)
    for number in range(100):
        origin = f"{number:08}".encode()
        counted.failed(wrong(1, origin))
        counted.succeeded(Candidate(origin, b"goodkey1"))
    assert len(counted._records) == 10
    assert len(counted._known) == 10


def test_what_is_long_ago_does_not_count(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = make()
    counted.failed(wrong(1))
    counted.failed(wrong(2))
    monkeypatch.setattr(attempts, "WINDOW_SECONDS", 0)
    assert counted.failed(wrong(3)) <= 0.25
    assert counted.admit(wrong(4)) == WELCOME


def test_processes_count_together(redis_url: str) -> None:
    links = [link_to(redis_url) for _ in range(3)]
    processes = [Attempts(link, most=3, refusal_seconds=900, longest_delay=8.0) for link in links]
    processes[0].succeeded(GOOD)
    assert [process.failed(wrong(number)) for number, process in enumerate(processes)] == [0.25, 0.5, 1.0]
    assert all(process.admit(wrong(7)).refused for process in processes)
    assert all(process.admit(GOOD).looked_at for process in processes)
    for link in links:
        link.close()


def test_redis_holds_no_key_and_no_address_and_forgets(redis_url: str, server: redis.Redis) -> None:
    link = link_to(redis_url)
    counted = Attempts(link, most=3, refusal_seconds=900, longest_delay=8.0)
    counted.succeeded(GOOD)
    counted.failed(wrong(1, ELSEWHERE))
    for number in range(3):
        counted.failed(wrong(number))
    counted.admit(wrong(9))
    names = sorted(server.scan_iter())
    kinds = {name.decode().split(":")[2]: server.ttl(name) for name in names}
    assert set(kinds) == {"failures", "known", "look", "refused"}
    assert all(name.startswith(b"smtp-relay:auth:") for name in names)
    assert 0 < kinds["look"] <= 1
    assert 880 < kinds["failures"] <= 900
    assert 880 < kinds["refused"] <= 900
    assert 86_000 < kinds["known"] <= 86_400
    link.close()


def test_failures_count_where_redis_refuses_to_write(redis_url: str, server: redis.Redis) -> None:
    link = link_to(redis_url)
    counted = Attempts(link, most=3, refusal_seconds=900, longest_delay=8.0)
    server.config_set("maxmemory", "1")
    try:
        assert [counted.failed(wrong(number)) for number in range(3)] == [0.25, 0.5, 1.0]
        assert counted.admit(wrong(4)).refused
    finally:
        server.config_set("maxmemory", "0")
    assert counted.admit(wrong(5)).refused
    link.close()
