"""What the limits of a client keep it from, and how long it takes to say no."""

from __future__ import annotations

import gevent
import pytest

from config.settings import Settings
from relay.core.outcomes import LoginFailure, MessageLimit
from relay.core.records import ApiKey
from relay.limits import client as client_limits
from relay.limits.client import ClientLimits, ProcessLimits
from relay.redis.link import RedisLink
from relay.smtp.submission import Login

LOGIN = Login("0" * 64, ApiKey("key-id", "user", "full_access", None))
HERE, ELSEWHERE = b"origin-1", b"origin-2"


class Clock:
    """Time that passes when a greenlet sleeps, or a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class KeyServices:
    """Services that know one key; `seconds` is how long it takes to say so, `trouble` that it can't be told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = 0.0
        self.trouble = False
        self.asked = 0

    def authenticate(self, password: str) -> Login | LoginFailure:
        self.asked += 1
        self._clock.now += self.seconds
        if self.trouble:
            return LoginFailure.UNAVAILABLE
        return LOGIN if password == "good" else LoginFailure.WRONG_KEY


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(client_limits, "time", clock)
    monkeypatch.setattr(gevent, "sleep", clock.sleep)
    return clock


@pytest.fixture
def services(clock: Clock) -> KeyServices:
    return KeyServices(clock)


def limits_of(origin: bytes = HERE, **settings: int) -> ClientLimits:
    wanted = Settings(database_url="postgres://localhost/x", **settings)  # type: ignore[arg-type]
    return ProcessLimits(wanted, RedisLink(None, verify_tls=True, timeout=0.1, pause=1.0)).of_client(origin)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05, 0.2])
def test_a_wrong_key_is_refused_after_the_same_time_whatever_it_took_to_find_out(
    services: KeyServices, clock: Clock, seconds: float
) -> None:
    services.seconds = seconds
    client = limits_of()
    before = clock.now
    assert client.authenticate("unknown", services.authenticate) is LoginFailure.WRONG_KEY
    assert clock.now - before == pytest.approx(0.25)
    assert client.authenticate("revoked", services.authenticate) is LoginFailure.WRONG_KEY
    assert clock.now - before == pytest.approx(0.75)


def test_a_good_key_waits_for_nothing(services: KeyServices, clock: Clock) -> None:
    client = limits_of()
    client.authenticate("wrong", services.authenticate)
    before = clock.now
    assert client.authenticate("good", services.authenticate) is LOGIN
    assert clock.now == before


def test_a_failed_look_up_counts_as_no_failure_of_the_client(services: KeyServices, clock: Clock) -> None:
    services.trouble = True
    client = limits_of(max_auth_failures_per_address=2)
    before = clock.now
    for number in range(5):
        assert client.authenticate(f"key {number}", services.authenticate) is LoginFailure.UNAVAILABLE
    assert clock.now == before
    services.trouble = False
    assert client.authenticate("good", services.authenticate) is LOGIN


def test_a_refused_client_can_not_see_whether_its_key_was_looked_at(services: KeyServices, clock: Clock) -> None:
    client = limits_of(max_auth_failures_per_address=2)
    for number in range(2):
        assert client.authenticate(f"wrong {number}", services.authenticate) is LoginFailure.WRONG_KEY
    asked, waits = services.asked, []
    for number in range(6):
        services.seconds = 0.1 * number
        before = clock.now
        assert client.authenticate(f"guess {number}", services.authenticate) is LoginFailure.TOO_MANY_FAILURES
        waits.append(clock.now - before)
    assert waits == pytest.approx([8.0] * 6)
    assert services.asked - asked < 6


def test_a_good_key_gets_in_beside_a_guesser(services: KeyServices) -> None:
    client = limits_of(max_auth_failures_per_address=2)
    client.authenticate("good", services.authenticate)
    for number in range(10):
        client.authenticate(f"wrong {number}", services.authenticate)
        assert client.authenticate("good", services.authenticate) is LOGIN


def test_white_space_around_a_key_makes_no_other_key(services: KeyServices, clock: Clock) -> None:
    client = limits_of()
    for password in ("wrong", " wrong", "wrong\r\n"):
        before = clock.now
        client.authenticate(password, services.authenticate)
        assert clock.now - before == pytest.approx(0.25)


def test_messages_are_counted_by_key_and_origin(services: KeyServices) -> None:
    client = limits_of(key_messages_per_minute=2)
    assert [client.admit("key-id") for _ in range(3)] == [None, None, MessageLimit.KEY]
    client = limits_of(address_messages_per_minute=1)
    assert [client.admit("key-id") for _ in range(2)] == [None, MessageLimit.ORIGIN]
    client = limits_of()
    assert [client.admit("key-id") for _ in range(50)] == [None] * 50
