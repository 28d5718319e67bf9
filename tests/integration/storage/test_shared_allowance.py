"""One rate for all processes, in a real Valkey: the answers of the arithmetic in Python, by a clock of the test's."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import redis

from relay.core.allowance import HORIZON, Allowance, Grant
from relay.redis.link import RedisLink
from relay.redis.shared_allowance import BEHIND_PROBE, MIXED_SECONDS, PROBE_SECONDS, SharedAllowance
from scripts.benchmark.pace import Timed
from scripts.benchmark.pace_simulation import Simulation
from scripts.services.ses_ledger import TOLERANCE, Ledger


@pytest.fixture
def link(redis_url: str) -> Iterator[RedisLink]:
    link = RedisLink(redis_url, verify_tls=True, timeout=5.0, pause=0.1)
    yield link
    link.close()


@pytest.fixture
def shared(link: RedisLink) -> SharedAllowance:
    return SharedAllowance(link, "ses:r", fallback=2.0, shares=3)


def ask(shared: SharedAllowance, now: float, *weights: int, returned: bool = False) -> Grant:
    return shared.reserve(weights or (1,), passed=0, throttled=0, now=now, returned=returned)


def known(shared: SharedAllowance, rate: float, left: int = -1, off: str = "") -> None:
    """The account has been asked at the time 100, as far as the allowance knows."""
    ask(shared, 100.0)
    shared.learn(rate, left, off)


@pytest.mark.parametrize("seed", range(12))
def test_the_answers_are_those_of_the_arithmetic_in_python(shared: SharedAllowance, redis_url: str, seed: int) -> None:
    chance = random.Random(seed)
    server = redis.Redis.from_url(redis_url, decode_responses=True)
    now = 1_800_000_000.0 + chance.random()
    alone = Allowance(fallback=2.0, turn=now + HORIZON)
    # Mails that fit into a second, or do not; an account that is at its rate, and seldom another one, or pauses.
    lumps = (1, 1, 2, 5, 11) if seed % 3 == 0 else (1, 1, 2, 7, 50)
    pauses, change = ((0.0, 0.001, 0.03, 0.5, 7.0), 0.1) if seed % 3 == 2 else ((0.0, 0.001), 0.01)
    rate = chance.choice((14.0, 49.0, 60.0, 500.0))
    shared.learn(rate, -1, "")
    alone.learn(rate, -1, "")
    for _ in range(150):
        if chance.random() < change:
            rate, left = chance.choice((0.7, 14.0, 500.0)), chance.choice((-1, -1, 0, 7, 10_000))
            off = chance.choice(("", "", "", "paused"))
            shared.learn(rate, left, off)
            alone.learn(rate, left, off)
        weights = [chance.choice(lumps) for _ in range(chance.randrange(1, 12))]
        passed, throttled = chance.randrange(20), chance.choice((0, 0, 0, 1, 5))
        void, lead = chance.choice((0, 0, 3)), chance.choice((0.0, 0.0, 0.2))
        if chance.random() < 0.1:  # a process of an earlier version wrote no sum behind the points
            for account in server.scan_iter():
                server.hset(account, "points", str(server.hget(account, "points") or "").partition("=")[0])
        grant = shared.reserve(weights, passed=passed, throttled=throttled, void=void, lead=lead, now=now)
        assert grant == alone.reserve(now, weights, passed=passed, throttled=throttled, void=void, lead=lead)
        now += chance.choice(pauses) if chance.random() < 0.5 else grant.again
    assert shared.wait_for_octets(20_000_000, now=now) == alone.wait_for_octets(now, 20_000_000)
    assert shared.wait_for_octets(20_000_000, now=now) == pytest.approx(alone.wait_for_octets(now, 20_000_000))
    server.close()


@pytest.mark.parametrize(("rate", "seconds"), [(14.0, 120.0), (500.0, 15.0)])
def test_three_processes_keep_one_rate_and_use_it_while_calls_are_refused_at_random(
    link: RedisLink, rate: float, seconds: float
) -> None:
    ledger = Ledger(rate=rate, chance=0.002, seed=5)
    simulation = Simulation([Timed(link, "ses:r") for _ in range(3)], ledger)
    simulation.run(3.0)
    assert simulation.run(seconds) >= 0.95
    assert ledger.most <= rate * TOLERANCE
    assert ledger.too_fast == 0
    if rate > 100:
        assert simulation.requests < ledger.calls / 3  # one request brings permits for several mails


@pytest.mark.parametrize("rate", [14.0, 500.0])
def test_processes_that_are_killed_again_and_again_pass_no_rate_and_lose_little_of_it(
    link: RedisLink, rate: float
) -> None:
    """All at once: whatever permits they hold are not used."""
    ledger = Ledger(rate=rate, seed=7)
    simulation = Simulation([Timed(link, "ses:r") for _ in range(3)], ledger)
    simulation.run(3.0)
    used = [simulation.run(2.0) for _ in range(10)]
    assert ledger.most <= rate * TOLERANCE
    assert min(used) >= 0.75
    assert sum(used) / len(used) >= 0.8


def test_one_of_all_processes_asks_the_account(link: RedisLink) -> None:
    processes = [SharedAllowance(link, "ses:r", fallback=2.0, shares=3) for _ in range(3)]
    grants = [ask(process, 100.0) for process in processes]
    assert [grant.ask for grant in grants] == [True, False, False]
    assert all(not grant.moments for grant in grants)
    processes[0].learn(14.0, -1, "")
    assert ask(processes[2], 100.2).moments


def test_each_account_has_its_own_rate(link: RedisLink, shared: SharedAllowance) -> None:
    known(shared, 1.0)
    other = SharedAllowance(link, "ses:other", fallback=2.0, shares=3)
    known(other, 1.0)
    assert ask(shared, 101.0).moments == (0.0,)
    assert ask(other, 101.0).moments == (0.0,)


def test_all_processes_pause_and_one_mail_of_all_is_tried_after_it(link: RedisLink, shared: SharedAllowance) -> None:
    other = SharedAllowance(link, "ses:r", fallback=2.0, shares=3)
    known(shared, 500.0)
    rests, now = [], 101.0
    for _ in range(4):
        rests.append(shared.rest("paused", 60.0, 300.0, now=now))
        assert other.rest("paused", 60.0, 300.0, now=now + 1) == pytest.approx(rests[-1] - 1)  # it was on its way
        told = ask(other, now + 2)
        assert (told.moments, told.kind, told.rest) == ((), "paused", pytest.approx(rests[-1] - 2))
        now += rests[-1]
        assert len(ask(other, now, 1, 1, 1).moments) == 1
        assert ask(shared, now + 0.1, 1, 1).rest == BEHIND_PROBE
        now += 0.5
    assert rests == [60.0, 120.0, 240.0, 300.0]
    # The process with the one mail dies: the next one is tried.
    assert len(ask(shared, now + PROBE_SECONDS, 1, 1).moments) == 1
    shared.resume()
    assert len(ask(other, now + PROBE_SECONDS + 1, 1, 1).moments) == 2
    assert shared.rest("paused", 60.0, 300.0, now=now + PROBE_SECONDS + 2) == 60.0


def test_a_server_that_has_forgotten_all_passes_no_rate(
    link: RedisLink, shared: SharedAllowance, redis_url: str
) -> None:
    known(shared, 500.0)
    held = [101.0 + moment for moment in ask(shared, 101.0, *[1] * 50).moments]
    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    assert ask(shared, 101.0).ask
    shared.learn(500.0, -1, "")
    later = [101.01 + moment for moment in ask(shared, 101.01, *[1] * 50).moments]
    assert min(later) > max(held)


@pytest.mark.parametrize("rate", [1.0, 14.0, 500.0])
def test_permits_that_processes_hold_still_count_for_a_server_that_has_forgotten_them(
    link: RedisLink, redis_url: str, rate: float
) -> None:
    processes = [SharedAllowance(link, "ses:r", fallback=2.0, shares=3) for _ in range(3)]
    known(processes[0], rate)
    held = [101.0 + moment for process in processes for moment in ask(process, 101.0, 1, 1).moments]
    used = ask(processes[0], 101.0).rate
    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    processes[0].reserve([1], passed=0, throttled=0, held=3 / used, now=101.0)
    processes[0].learn(rate, -1, "")
    later = 101.0 + ask(processes[1], 101.0).moments[0]
    assert later - held[-1] >= 0.9 / used


def test_a_clock_that_is_put_back_stops_nothing(shared: SharedAllowance) -> None:
    known(shared, 500.0)
    ask(shared, 10_000.0, *[1] * 50)
    shared.rest("paused", 60.0, 300.0, now=10_000.0)
    assert ask(shared, 500.0, 1, 1).ask
    assert len(ask(shared, 501.0, 1).moments) <= 1  # tried after the rest
    shared.resume()
    assert ask(shared, 502.0, 1, 1).moments


def test_who_comes_back_from_a_time_without_redis_has_others_behind(shared: SharedAllowance) -> None:
    known(shared, 90.0)
    whole = ask(shared, 101.0).rate
    assert ask(shared, 102.0, returned=True).rate == pytest.approx(whole / 3)
    assert ask(shared, 102.0 + MIXED_SECONDS / 2).rate == pytest.approx(whole / 3)
    assert ask(shared, 102.1 + MIXED_SECONDS).rate == pytest.approx(whole)


def test_by_redis_own_clock(shared: SharedAllowance) -> None:
    assert shared.reserve([1], passed=0, throttled=0).ask
    shared.learn(14.0, -1, "")
    grant = shared.reserve([1, 1], passed=0, throttled=0)
    assert 1 <= len(grant.moments) <= 2
    assert all(0 <= moment <= 1 for moment in grant.moments)
