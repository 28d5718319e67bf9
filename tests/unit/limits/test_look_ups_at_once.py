"""Many keys at once are looked up no more often than one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent
import pytest

from config.settings import Settings
from relay.core.outcomes import LoginFailure
from relay.core.records import ApiKey
from relay.limits import attempts, client
from relay.limits.client import ProcessLimits
from relay.redis.link import RedisLink
from relay.smtp.submission import Login

LOGIN = Login("0" * 64, ApiKey("key-id", "user", "full_access", None))
HERE, ELSEWHERE = b"origin-1", b"origin-2"


class KeyServices:
    """Takes a while to say that it knows every key that begins with `good`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.trouble = False

    def authenticate(self, password: str) -> Login | LoginFailure:
        self.asked.append(password)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        gevent.sleep(0.02)
        self.at_once -= 1
        if self.trouble:
            return LoginFailure.UNAVAILABLE
        return LOGIN if password.startswith("good") else LoginFailure.WRONG_KEY


@pytest.fixture(params=["redis", "alone"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ProcessLimits]]:
    """A process's limits, with ten wrong keys to refusal; each is another process's where there is Redis."""
    links: list[RedisLink] = []
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    monkeypatch.setattr(client, "_TURN_INTERVAL", 0.01)
    # Refused keys that are looked at all the same, one a second, are not what is counted here.
    monkeypatch.setattr(attempts, "LOOK_SECONDS", 900)

    def made() -> ProcessLimits:
        links.append(RedisLink(url, verify_tls=True, timeout=5.0, pause=0.1))
        return ProcessLimits(Settings(database_url="postgres://h/d", auth_delay_seconds=0.1), links[-1])

    yield made
    for link in links:
        link.close()


def all_at_once(
    services: KeyServices, processes: list[ProcessLimits], passwords: list[str]
) -> list[Login | LoginFailure]:
    waiting = [
        gevent.spawn(processes[number % len(processes)].of_client(HERE).authenticate, password, services.authenticate)
        for number, password in enumerate(passwords)
    ]
    gevent.joinall(waiting, timeout=60, raise_error=True)
    return [each.value for each in waiting]


def test_ninety_wrong_keys_at_once_are_no_more_than_ten(make: Callable[[], ProcessLimits]) -> None:
    services = KeyServices()
    answers = all_at_once(services, [make()], [f"wrong {number}" for number in range(90)])
    assert len(services.asked) <= 11  # one of a refused origin is looked at
    assert answers.count(LoginFailure.WRONG_KEY) == 10
    assert answers.count(LoginFailure.TOO_MANY_FAILURES) == 80


def test_nor_are_they_over_several_processes(make: Callable[[], ProcessLimits], request: pytest.FixtureRequest) -> None:
    if "alone" in request.node.callspec.id:
        pytest.skip("without Redis each process counts for itself")
    services = KeyServices()
    processes = [make() for _ in range(3)]
    processes[0].of_client(HERE).authenticate("wrong before", services.authenticate)
    all_at_once(services, processes, [f"wrong {number}" for number in range(90)])
    assert len(services.asked) <= 11


def test_good_keys_at_once_all_get_in(make: Callable[[], ProcessLimits]) -> None:
    services = KeyServices()
    passwords = [f"good {number}" for number in range(60)]
    assert all_at_once(services, [make()], passwords) == [LOGIN] * 60
    assert services.most_at_once <= 10


def test_one_key_at_once_is_one(make: Callable[[], ProcessLimits]) -> None:
    """A service that starts, with many connections."""
    services = KeyServices()
    assert all_at_once(services, [make()], ["good"] * 50) == [LOGIN] * 50


def test_what_is_known_does_not_wait_for_a_guesser(make: Callable[[], ProcessLimits]) -> None:
    services = KeyServices()
    process = make()
    process.of_client(HERE).authenticate("good", services.authenticate)
    guesser = gevent.spawn(all_at_once, services, [process], [f"wrong {number}" for number in range(90)])
    gevent.sleep(0.01)
    assert process.of_client(HERE).authenticate("good", services.authenticate) is LOGIN
    assert process.of_client(ELSEWHERE).authenticate("good", services.authenticate) is LOGIN
    guesser.join(60)


def test_our_trouble_leaves_nothing_behind(make: Callable[[], ProcessLimits]) -> None:
    services = KeyServices()
    process = make()
    keys = [f"good {number}" for number in range(40)]
    services.trouble = True
    assert all_at_once(services, [process], keys) == [LoginFailure.UNAVAILABLE] * 40
    services.trouble = False
    assert all_at_once(services, [process], keys) == [LOGIN] * 40
