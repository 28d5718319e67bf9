"""Who hears of deliveries that are due, and how soon: by a word in Redis, on a real Valkey, and within the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import gevent
import pytest
import redis

from relay.postgres.database import Database
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import Event
from relay.redis import keys, webhook_wakes
from relay.redis.link import RedisLink
from relay.redis.webhook_wakes import WakeListener
from tests.support.webhook_rows import add_webhook


class Heard(Exception):
    """Ends the listener: nothing is patched in the tests' process, where it would stop all greenlets."""


def hear() -> None:
    raise Heard


def named(ids: Sequence[str]) -> None:
    raise Heard(*ids)


def say(redis_url: str, times: int = 1, ids: Sequence[str] = ()) -> None:
    link = RedisLink(redis_url, verify_tls=False, timeout=5.0, pause=0.1)
    for _ in range(times):
        webhook_wakes.post(link, ids)
    link.call("PING")  # what was posted before it has been carried out
    link.close()


def test_a_word_is_heard_once(redis_url: str) -> None:
    say(redis_url)
    with pytest.raises(Heard):
        WakeListener(redis_url, verify_tls=False, wake=hear, name=named).listen()
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(keys.WEBHOOK_WAKES_KEY.decode()) == 0


@pytest.mark.parametrize("count", [0, 1, 100, 101])
def test_a_word_names_the_deliveries_unless_they_are_many(redis_url: str, count: int) -> None:
    ids = [str(uuid4()) for _ in range(count)]
    say(redis_url, ids=ids)
    with pytest.raises(Heard) as heard:
        WakeListener(redis_url, verify_tls=False, wake=hear, name=named).listen()
    assert list(heard.value.args) == (ids if count <= 100 else [])


@pytest.mark.parametrize(
    "word",
    [b"", b"1", b"x" * 36, b"\xff\x00", b",", b"3f0c8a52-6d1e-4b7a-9c25-1e8f70b4d6a3,x", b"a," * 100_000],
    ids=lambda word: word[:8].hex(),
)
def test_a_word_that_names_no_deliveries_is_one_all_the_same(redis_url: str, word: bytes) -> None:
    """Of another version of the relay, or of another program: no statement is made of it."""
    with redis.Redis.from_url(redis_url) as client:
        client.rpush(keys.WEBHOOK_WAKES_KEY.decode(), word)
    with pytest.raises(Heard) as heard:
        WakeListener(redis_url, verify_tls=False, wake=hear, name=named).listen()
    assert heard.value.args == ()


def test_announcements_without_a_listener_take_no_room(redis_url: str) -> None:
    say(redis_url, 500)
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(keys.WEBHOOK_WAKES_KEY.decode()) == 8
        assert 0 < int(client.ttl(keys.WEBHOOK_WAKES_KEY.decode())) <= 10


def test_a_listener_goes_on_when_redis_is_back(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_wakes, "_PAUSES", (0.01, 0.02))
    listener = WakeListener(redis_url, verify_tls=False, wake=hear, name=named)
    answer: Any = listener._next
    failures: list[Exception] = [redis.ConnectionError(), OSError("gone"), redis.ResponseError("NOPERM")]

    def failing(connection: Any) -> Any:
        if failures:
            raise failures.pop()
        return answer(connection)

    monkeypatch.setattr(listener, "_next", failing)
    say(redis_url)
    with pytest.raises(Heard):
        listener.listen()
    assert failures == []


def test_without_redis_a_word_is_nothing() -> None:
    webhook_wakes.post(RedisLink(None, verify_tls=False, timeout=1.0, pause=1.0))
    gevent.sleep(0)


def test_an_event_of_this_process_is_announced_where_a_webhook_has_its_type(
    database: Database, add_email: Callable[..., str], postgres_url: str
) -> None:
    told: list[str] = []
    outgoing = Outgoing(database, deliveries_due=lambda: told.append("due"))

    def send(number: int) -> None:
        email_id = add_email()
        assert outgoing.claim([email_id])
        outgoing.sent(email_id, Event(type="sent", source_id=f"provider-sent:{number}", payload={}))

    send(1)
    assert told == []
    add_webhook(postgres_url, "https://hooks.example.com/")
    send(2)
    assert told == ["due"]
    outgoing.record(add_email(), Event(type="sent", source_id="other", payload={}))
    assert told == ["due", "due"]
