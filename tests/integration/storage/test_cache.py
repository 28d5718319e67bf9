"""Redis makes answers faster and never wrong: hits, misses, rubbish, silence, and users beside one another."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import select
import signal
import socket
import socketserver
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import pytest
import redis

from relay.core import metrics
from relay.core.api_keys import NO_DOMAIN
from relay.core.errors import Unavailable
from relay.intake.lookups import Lookups
from relay.postgres.store import Store
from relay.redis import link as link_module
from relay.redis.cache import Cache
from relay.redis.claims import Claim, Holder, key_of
from scripts.database import NewApiKey
from scripts.services import Valkey, free_port
from tests.support.certificates import write_pair

Query = Callable[..., list[dict[str, Any]]]
MakeKey = Callable[..., NewApiKey]


def hash_of(key: NewApiKey) -> str:
    return hashlib.sha256(key.token.encode()).hexdigest()


def shared_key(token_hash: str) -> str:
    return f"auth:apikey:{token_hash}"


def checked_key(token_hash: str) -> str:
    return f"smtp-relay:key-domain:{token_hash}"


CHECKED = json.dumps({"column": None, "name": None})


def claim(email_id: str, *, user_id: str = "user", message_id: str = "<m@x>", seconds: int = 60) -> Claim:
    return Claim(key_of(user_id, message_id, b"content"), user_id, email_id, seconds)


class CountingStore(Store):
    """A store that knows what it was asked."""

    def __init__(self, database_url: str, **options: Any) -> None:
        super().__init__(database_url, **options)
        self.asked: list[str] = []

    def find_api_key(self, token_hash: str) -> Any:
        self.asked.append("key")
        return super().find_api_key(token_hash)

    def find_suppressions(self, user_id: str, emails: Any) -> dict[str, str]:
        self.asked.append("suppressions")
        return super().find_suppressions(user_id, emails)


@pytest.fixture
def store(postgres_url: str) -> Iterator[CountingStore]:
    store = CountingStore(postgres_url)
    yield store
    store.close()


@pytest.fixture
def lookups(store: CountingStore, cache: Cache) -> Lookups:
    return Lookups(store, cache)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that the test may stop."""
    with Valkey(tmp_path / "valkey") as server:
        yield server


# Keys.


def test_a_key_is_remembered_in_opensends_form_for_a_minute(
    lookups: Lookups, store: CountingStore, cache: Cache, client: redis.Redis, make_api_key: MakeKey
) -> None:
    key = make_api_key(domain="Example.com", permission="sending_access")
    for _ in range(3):
        found = lookups.api_key(hash_of(key))
        assert found is not None
        assert (found.id, found.user_id, found.permission, found.domain) == (
            key.id,
            key.user_id,
            "sending_access",
            "example.com",
        )
        assert cache.ping()
    assert store.asked == ["key"]
    entry = json.loads(client.get(shared_key(hash_of(key))) or "null")
    assert entry == {
        "apiKeyId": key.id,
        "permission": "sending_access",
        "domain": "Example.com",
        "userId": key.user_id,
    }
    assert 0 < client.ttl(shared_key(hash_of(key))) <= 60
    assert all(name.startswith((b"auth:apikey:", b"smtp-relay:")) for name in client.scan_iter())


@pytest.mark.parametrize("domain", [None, "mail.example", "01234567-89ab-cdef-0123-456789abcdef"])
def test_an_entry_that_opensend_wrote_counts_for_a_minute_after_postgres_was_asked(
    lookups: Lookups, store: CountingStore, cache: Cache, client: redis.Redis, make_api_key: MakeKey, domain: str | None
) -> None:
    key = make_api_key(domain=domain) if domain else make_api_key()
    entry = {"apiKeyId": key.id, "permission": "full_access", "domain": domain, "userId": key.user_id, "more": [1]}
    for asked in (1, 2):
        for _ in range(3):
            client.set(shared_key(hash_of(key)), json.dumps(entry), ex=300)
            found = lookups.api_key(hash_of(key))
            assert found is not None
            assert (found.id, found.user_id) == (key.id, key.user_id)
            assert cache.ping()
            assert store.asked == ["key"] * asked
        checked = [name for name in client.scan_iter("smtp-relay:*") if hash_of(key).encode() in name]
        assert all(0 < client.ttl(name) <= 60 for name in checked)
        client.delete(*checked)  # as if the minute were over


def test_a_key_deleted_in_postgres_alone_ends_within_a_minute_whatever_opensend_remembers(
    lookups: Lookups, cache: Cache, client: redis.Redis, make_api_key: MakeKey, query: Query
) -> None:
    key = make_api_key()
    entry = {"apiKeyId": key.id, "permission": "full_access", "domain": None, "userId": key.user_id}
    assert lookups.api_key(hash_of(key)) is not None
    assert cache.ping()
    query("DELETE FROM api_keys")
    client.set(shared_key(hash_of(key)), json.dumps(entry), ex=300)
    for name in client.scan_iter("smtp-relay:*"):
        assert 0 < client.ttl(name) <= 60
        client.delete(name)  # as if the minute were over
    assert lookups.screen(hash_of(key), key.user_id, ["a@x"]).key is None
    assert cache.ping()
    assert client.exists(shared_key(hash_of(key))) == 0, "OpenSend's own app would let it in for minutes yet"
    assert lookups.api_key(hash_of(key)) is None


def test_a_restriction_that_opensend_has_changed_since_is_looked_up(
    lookups: Lookups, cache: Cache, client: redis.Redis, make_api_key: MakeKey, query: Query
) -> None:
    key = make_api_key(domain="old.example")
    assert lookups.api_key(hash_of(key)) is not None
    assert cache.ping()
    query("UPDATE api_keys SET domain = 'new.example'")
    entry = {"apiKeyId": key.id, "permission": "full_access", "domain": "new.example", "userId": key.user_id}
    client.set(shared_key(hash_of(key)), json.dumps(entry), ex=300)
    found = lookups.api_key(hash_of(key))
    assert found is not None
    assert found.domain == "new.example"


def test_a_domains_uuid_is_resolved_once(
    lookups: Lookups, store: CountingStore, cache: Cache, client: redis.Redis, make_api_key: MakeKey, query: Query
) -> None:
    domain_id = str(uuid.uuid4())
    key = make_api_key(user_id="user", domain=domain_id)
    query("INSERT INTO domains (id, name, status, user_id) VALUES (%s, 'Mail.Example', 'verified', 'user')", domain_id)
    entry = {"apiKeyId": key.id, "permission": "full_access", "domain": domain_id, "userId": "user"}
    client.set(shared_key(hash_of(key)), json.dumps(entry), ex=300)
    for _ in range(3):
        found = lookups.screen(hash_of(key), "user", ["a@x"]).key
        assert found is not None
        assert found.domain == "mail.example"
        assert cache.ping()
    assert store.asked == ["key"]
    assert json.loads(client.get(shared_key(hash_of(key))) or "null") == entry


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "null",
        "not json",
        "[]",
        '"text"',
        "{}",
        '{"apiKeyId": 1, "permission": "x", "domain": null, "userId": "u"}',
        '{"apiKeyId": "1", "permission": "x", "domain": null, "userId": ""}',
        '{"apiKeyId": "1", "permission": "x", "domain": null, "userId": null}',
        '{"apiKeyId": "1", "permission": "x", "domain": false, "userId": "u"}',
        '{"apiKeyId": "1", "permission": "x", "domain": ["x"], "userId": "u"}',
        b"\xff\xfe\x00",
    ],
)
def test_rubbish_in_the_shared_entry_is_a_miss(
    lookups: Lookups, client: redis.Redis, make_api_key: MakeKey, rubbish: str | bytes
) -> None:
    key = make_api_key()
    client.set(shared_key(hash_of(key)), rubbish)
    for found in (lookups.api_key(hash_of(key)), lookups.screen(hash_of(key), key.user_id, ["a@x"]).key):
        assert found is not None
        assert found.id == key.id


def test_a_restriction_in_the_shared_entry_that_makes_no_sense_lets_nothing_through(
    lookups: Lookups, client: redis.Redis
) -> None:
    entry = {"apiKeyId": "1", "permission": "x", "domain": "no domain", "userId": "u"}
    client.set(shared_key("h"), json.dumps(entry))
    client.set(checked_key("h"), json.dumps({"column": "no domain", "name": None}))
    found = lookups.api_key("h")
    assert found is not None
    assert found.domain == NO_DOMAIN


def test_a_wrong_password_in_a_loop_asks_postgres_once(
    lookups: Lookups, store: CountingStore, cache: Cache, client: redis.Redis
) -> None:
    for _ in range(20):
        assert lookups.api_key("0" * 64) is None
        assert cache.ping()
    assert store.asked == ["key"]
    assert all(client.ttl(name) <= 10 for name in client.scan_iter())
    assert client.exists(shared_key("0" * 64)) == 0


def test_all_that_miss_the_same_key_share_one_query(
    lookups: Lookups, store: CountingStore, make_api_key: MakeKey
) -> None:
    key = make_api_key()
    greenlets = [gevent.spawn(lookups.api_key, hash_of(key)) for _ in range(50)]
    gevent.joinall(greenlets, raise_error=True, timeout=30)
    assert {greenlet.value.id for greenlet in greenlets} == {key.id}
    assert len(store.asked) < 5


def test_a_revoked_key_ends_with_the_next_message(
    lookups: Lookups, cache: Cache, client: redis.Redis, make_api_key: MakeKey, query: Query
) -> None:
    """As OpenSend's dashboard does it: the row goes, then the shared entry."""
    key = make_api_key()
    mine = claim("id-1", user_id=key.user_id)
    assert lookups.screen(hash_of(key), key.user_id, ["a@x"]).key is not None
    assert cache.ping()
    query("DELETE FROM api_keys")
    client.delete(shared_key(hash_of(key)))
    screening = lookups.screen(hash_of(key), key.user_id, ["a@x"], claim=mine, intents=["id-1"])
    assert screening.key is None
    assert lookups.claim(claim("id-2", user_id=key.user_id), ["a@x"]) == {}
    assert client.zcard("smtp-relay:jobs:intents") == 0
    assert lookups.api_key(hash_of(key)) is None


def test_last_used_at_follows_a_use(lookups: Lookups, make_api_key: MakeKey, query: Query) -> None:
    key = make_api_key()
    found = lookups.api_key(hash_of(key))
    assert found is not None
    for _ in range(100):
        lookups.used(found)
    deadline = time.monotonic() + 10
    while query("SELECT last_used_at FROM api_keys")[0]["last_used_at"] is None and time.monotonic() < deadline:
        gevent.sleep(0.1)
    assert query("SELECT last_used_at FROM api_keys")[0]["last_used_at"] is not None


# Suppressions.


def test_what_the_insert_found_out_is_known_to_the_next_message(
    lookups: Lookups, store: CountingStore, cache: Cache, make_api_key: MakeKey
) -> None:
    key = make_api_key()
    lookups.learned(key.user_id, {"a@x": "complained"})
    screening = lookups.screen(hash_of(key), key.user_id, ["b@x", "a@x"], claim=claim("id-1"))
    assert screening.suppressed == {"a@x": "complained"}
    assert lookups.claim(claim("id-2"), ["a@x", "b@x"]) == {}, "a refused message must not hold its recipients"
    assert "suppressions" not in store.asked


def test_certain_asks_postgres_once_and_remembers_both_answers(
    lookups: Lookups, store: CountingStore, cache: Cache, client: redis.Redis, make_api_key: MakeKey, query: Query
) -> None:
    key = make_api_key()
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (gen_random_uuid(), %s, 'a@x', 'bounced')",
        key.user_id,
    )
    for _ in range(3):
        screening = lookups.screen(hash_of(key), key.user_id, ["a@x", "b@x"], certain=True)
        assert screening.suppressed == {"a@x": "bounced"}
        assert cache.ping()
    assert store.asked == ["key", "suppressions"]
    assert all(0 < client.ttl(name) <= 60 for name in client.keys("smtp-relay:suppression:*"))


def test_what_redis_knows_of_one_recipient_and_postgres_of_another_counts_together(
    lookups: Lookups, make_api_key: MakeKey, query: Query
) -> None:
    key = make_api_key()
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (gen_random_uuid(), %s, 'p@x', 'bounced')",
        key.user_id,
    )
    # Each sequence of: known to Redis, known to Postgres, suppressed by neither.
    for number, kinds in enumerate(itertools.product("rpn", repeat=3)):
        known = {f"{position}-{number}@x": "complained" for position, kind in enumerate(kinds) if kind == "r"}
        lookups.learned(key.user_id, known)
        recipients = ["p@x" if kind == "p" else f"{position}-{number}@x" for position, kind in enumerate(kinds)]
        screening = lookups.screen(hash_of(key), key.user_id, list(dict.fromkeys(recipients)), certain=True)
        assert screening.suppressed == known | ({"p@x": "bounced"} if "p" in kinds else {}), kinds


def test_one_users_suppressions_say_nothing_about_anothers(lookups: Lookups, client: redis.Redis) -> None:
    """Also where user ids are made to look like a part of the key, or like another user's id and address together."""
    users = ["u", "u:", "u:a", "ua", "u\0", "", "*"]
    for user in users:
        entry = {"apiKeyId": "1", "permission": "x", "domain": None, "userId": user or "empty"}
        client.set(shared_key(f"hash-{user or 'empty'}"), json.dumps(entry))
        client.set(checked_key(f"hash-{user or 'empty'}"), CHECKED)
    lookups.learned("u", {"a@x": "bounced"})
    for user in users[1:]:
        user_id = user or "empty"
        for address in ("a@x", ":a@x", "@x", "a@x\0", "u:a@x"):
            assert lookups.screen(f"hash-{user_id}", user_id, [address]).suppressed == {}, (user, address)
    assert lookups.screen("hash-u", "u", ["a@x"]).suppressed == {"a@x": "bounced"}


def test_a_key_never_answers_for_another_user(lookups: Lookups, make_api_key: MakeKey) -> None:
    key = make_api_key()
    assert lookups.screen(hash_of(key), "somebody else", ["a@x"]).key is None


# Claims.


@pytest.fixture
def user_hash(client: redis.Redis) -> str:
    entry = {"apiKeyId": "1", "permission": "x", "domain": None, "userId": "user"}
    client.set(shared_key("user-hash"), json.dumps(entry))
    client.set(checked_key("user-hash"), CHECKED)
    return "user-hash"


def test_recipients_that_have_a_message_are_named_with_the_id_of_the_first(lookups: Lookups, user_hash: str) -> None:
    first = lookups.screen(user_hash, "user", ["a@x", "b@x"], claim=claim("id-1"))
    second = lookups.screen(user_hash, "user", ["b@x", "c@x"], claim=claim("id-2"))
    third = lookups.screen(user_hash, "user", ["c@x", "a@x"], claim=claim("id-3"))
    again = lookups.screen(user_hash, "user", ["a@x", "b@x"], claim=claim("id-1"))
    assert (first.held, again.held) == ({}, {})
    assert {email: holder.email_id for email, holder in second.held.items()} == {"b@x": "id-1"}
    assert {email: holder.email_id for email, holder in third.held.items()} == {"a@x": "id-1", "c@x": "id-2"}
    assert 0 <= second.held["b@x"].age_ms < 60_000


@pytest.mark.parametrize(
    "other",
    [
        {"message_id": "<other@x>"},
        {"user_id": "other"},
    ],
)
def test_another_message_is_another_message(lookups: Lookups, user_hash: str, other: dict[str, str]) -> None:
    lookups.screen(user_hash, "user", ["a@x"], claim=claim("id-1"))
    assert lookups.screen(user_hash, "user", ["a@x"], claim=claim("id-2", **other)).held == {}
    assert key_of("ab", "c", b"") != key_of("a", "bc", b"")
    assert key_of("a", "b", b"1") != key_of("a", "b", b"2")


def test_of_many_at_once_exactly_one_gets_each_recipient(redis_url: str, store: CountingStore, user_hash: str) -> None:
    caches = [Cache(redis_url, timeout=2.0) for _ in range(4)]
    everyone = [f"{number}@x" for number in range(20)]

    def claim_all(number: int) -> set[str]:
        lookups = Lookups(store, caches[number % 4])
        return set(everyone) - lookups.screen(user_hash, "user", everyone, claim=claim(f"id-{number}")).held.keys()

    greenlets = [gevent.spawn(claim_all, number) for number in range(40)]
    gevent.joinall(greenlets, raise_error=True, timeout=30)
    assert sorted(email for greenlet in greenlets for email in greenlet.value) == sorted(everyone)
    for cache in caches:
        cache.close()


def test_a_claim_is_given_back_only_by_its_holder(lookups: Lookups, user_hash: str) -> None:
    lookups.screen(user_hash, "user", ["a@x"], claim=claim("id-1"))
    lookups.release(claim("id-2"), ["a@x"])
    assert lookups.claim(claim("id-3"), ["a@x"])["a@x"].email_id == "id-1"
    lookups.release(claim("id-1"), ["a@x"])
    assert lookups.claim(claim("id-3"), ["a@x"]) == {}


def test_a_dead_holder_is_displaced_by_one_and_no_more(lookups: Lookups, user_hash: str) -> None:
    lookups.screen(user_hash, "user", ["a@x", "b@x"], claim=claim("id-1"))
    stale = {"a@x": Holder("id-1", 0), "b@x": Holder("id-1", 0)}
    assert lookups.take_over(claim("id-2"), stale) == {}
    assert {holder.email_id for holder in lookups.take_over(claim("id-3"), stale).values()} == {"id-2"}


def test_a_claim_ends_also_where_others_keep_its_message_alive(
    lookups: Lookups, user_hash: str, client: redis.Redis
) -> None:
    lookups.screen(user_hash, "user", ["a@x"], claim=claim("id-1", seconds=1))
    (name,) = client.keys("smtp-relay:seen:*")
    client.persist(name)
    gevent.sleep(1.2)
    assert lookups.screen(user_hash, "user", ["a@x"], claim=claim("id-2", seconds=1)).held == {}
    assert 0 < client.pttl(name) <= 1000


def test_intents_are_noted_and_given_back(lookups: Lookups, user_hash: str, client: redis.Redis, cache: Cache) -> None:
    lookups.screen(user_hash, "user", ["a@x"], intents=["id-1", "id-2"])
    assert set(client.zrange("smtp-relay:jobs:intents", 0, -1)) == {b"id-1", b"id-2"}
    lookups.release(None, ["a@x"], ["id-1"])
    assert cache.ping()
    assert client.zrange("smtp-relay:jobs:intents", 0, -1) == [b"id-2"]


# Trouble.


def test_a_server_that_has_lost_the_scripts_is_taught_again(
    lookups: Lookups, user_hash: str, client: redis.Redis
) -> None:
    for number in range(3):
        client.script_flush()
        assert lookups.screen(user_hash, "user", [f"{number}@x"], claim=claim("id-1")).held == {}
        assert lookups.screen(user_hash, "user", [f"{number}@x"], claim=claim("id-2")).held != {}


@pytest.mark.parametrize("url", [None, "refused", "silent"])
def test_without_redis_answers_come_from_postgres(
    store: CountingStore, make_api_key: MakeKey, query: Query, url: str | None
) -> None:
    key = make_api_key()
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (gen_random_uuid(), %s, 'a@x', 'bounced')",
        key.user_id,
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if url is not None:
            port = free_port() if url == "refused" else silent.getsockname()[1]
            url = f"redis://127.0.0.1:{port}"
        cache = Cache(url)
        lookups = Lookups(store, cache)
        assert not cache.ping()
        for _ in range(2):
            found = lookups.api_key(hash_of(key))
            assert found is not None
            screening = lookups.screen(hash_of(key), key.user_id, ["a@x", "b@x"], claim=claim("id"), certain=True)
            assert screening.key == found
            assert (screening.suppressed, screening.held) == ({"a@x": "bounced"}, {})
        assert lookups.api_key("0" * 64) is None
        lookups.release(claim("id"), ["a@x"], ["id"])
        lookups.learned(key.user_id, {"a@x": "bounced"})
        cache.close()


def test_neither_redis_nor_postgres_is_unavailable_and_no_answer() -> None:
    store = Store(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    lookups = Lookups(store, Cache(f"redis://127.0.0.1:{free_port()}"))
    with pytest.raises(Unavailable):
        lookups.api_key("0" * 64)
    with pytest.raises(Unavailable):
        lookups.screen("0" * 64, "user", ["a@x"])


def test_redis_hangs_and_comes_back(own_valkey: Valkey, store: CountingStore, make_api_key: MakeKey) -> None:
    key = make_api_key()
    cache = Cache(own_valkey.url, timeout=0.2, pause=0.1)
    lookups = Lookups(store, cache)
    assert lookups.api_key(hash_of(key)) is not None
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for _ in range(200):
            assert lookups.screen(hash_of(key), key.user_id, ["a@x"]).key is not None
        assert time.monotonic() - started < 20, "each of 200 waited for Redis"
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    assert comes_back(cache)
    cache.close()


def test_redis_dies_and_comes_back(own_valkey: Valkey, store: CountingStore, make_api_key: MakeKey) -> None:
    key = make_api_key()
    cache = Cache(own_valkey.url, timeout=1.0, pause=0.1)
    lookups = Lookups(store, cache)
    assert lookups.screen(hash_of(key), key.user_id, ["a@x"]).key is not None
    own_valkey.kill()
    for _ in range(50):
        assert lookups.screen(hash_of(key), key.user_id, ["a@x"]).key is not None
    own_valkey.start()
    assert comes_back(cache)
    store.asked.clear()
    assert lookups.screen(hash_of(key), key.user_id, ["a@x"]).key is not None
    assert cache.ping()
    assert lookups.screen(hash_of(key), key.user_id, ["a@x"]).key is not None
    assert store.asked == ["key"]
    cache.close()


def test_redis_comes_back_after_any_number_of_attempts(own_valkey: Valkey) -> None:
    """redis-py's pool makes a hundred connections and no more, those that failed included."""
    cache = Cache(own_valkey.url, pause=0.001)
    assert cache.ping()
    own_valkey.kill()
    attempts = metrics.FAULTS.labels("redis")
    before = attempts.value
    deadline = time.monotonic() + 60.0
    cache.ping()
    while attempts.value < before + 150 and time.monotonic() < deadline:
        gevent.sleep(0.01)
    assert attempts.value >= before + 150
    own_valkey.start()
    assert comes_back(cache)
    cache.close()


def test_a_command_that_cant_be_packed_fails_alone(own_valkey: Valkey) -> None:
    cache = Cache(own_valkey.url, timeout=2.0)
    asked = [gevent.spawn(cache.link.call, "GET", key) for key in ("a", "\ud800", "b")]
    gevent.joinall(asked, timeout=10.0)
    assert [type(each.exception) for each in asked] == [type(None), UnicodeEncodeError, type(None)]
    cache.close()


def test_what_waits_for_redis_is_bounded_and_what_was_sent_makes_room(
    cache: Cache, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_MAX_POSTED", 10)
    assert cache.ping()
    faults = metrics.FAULTS.labels("redis")
    sent: list[bytes] = []
    for number in range(12):
        # In turns no more than there is room for, and more.
        before, count = faults.value, 10 + number % 2 * 7
        posted = [b"%d-%d" % (number, each) for each in range(count)]
        for value in posted:
            cache.link.post([("RPUSH", "posted", value)])
        assert faults.value - before == count - 10
        sent += posted[:10]
        assert cache.ping(), "its reply comes behind theirs"
        assert client.lrange("posted", 0, -1) == sent


def comes_back(cache: Cache, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if cache.ping():
            return True
        gevent.sleep(0.05)
    return False


def test_a_connection_that_was_closed_while_idle_costs_no_answer(
    redis_url: str, cache: Cache, client: redis.Redis
) -> None:
    assert cache.ping()
    for _ in range(3):
        client.client_kill_filter(_type="normal", skipme=True)
        gevent.sleep(0.3)
        assert cache.ping()


def test_a_full_or_read_only_redis_is_as_good_as_none(
    own_valkey: Valkey, store: CountingStore, make_api_key: MakeKey
) -> None:
    key = make_api_key()
    cache = Cache(own_valkey.url, timeout=1.0, pause=0.1)
    lookups = Lookups(store, cache)
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory", "1mb")
        client.config_set("maxmemory-policy", "noeviction")
        assert lookups.screen(hash_of(key), key.user_id, ["a@x"], claim=claim("id")).key is not None
        client.config_set("maxmemory", "0")
        client.replicaof("127.0.0.1", str(free_port()))
        for _ in range(3):
            assert lookups.screen(hash_of(key), key.user_id, ["a@x"], claim=claim("id")).key is not None
        client.replicaof("NO", "ONE")
        assert comes_back(cache)
        assert lookups.screen(hash_of(key), key.user_id, ["a@x"], claim=claim("id")).key is not None
    cache.close()


def test_a_server_with_a_self_signed_certificate_is_for_those_who_say_so(own_valkey: Valkey, tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Terminator(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", own_valkey.port)) as behind:
                front = context.wrap_socket(self.request, server_side=True)
                while readable := select.select([front, behind], [], [])[0]:
                    for end in readable:
                        data = end.recv(65536)
                        if not data:
                            return
                        (behind if end is front else front).sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Terminator) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = own_valkey.url.replace("redis://", "rediss://").replace(
            str(own_valkey.port), str(server.server_address[1])
        )
        strict, lenient = Cache(url, timeout=2.0), Cache(url, verify_tls=False, timeout=2.0)
        assert not strict.ping()
        assert lenient.ping()
        strict.close()
        lenient.close()
        server.shutdown()


def test_a_reply_that_came_too_late_is_never_taken_for_the_next_one(own_valkey: Valkey) -> None:
    cache = Cache(own_valkey.url, timeout=0.2, pause=0.05)
    assert cache.ping()
    with redis.Redis.from_url(own_valkey.url) as client:
        client.set(shared_key("one"), json.dumps({"apiKeyId": "1", "permission": "x", "domain": None, "userId": "u"}))
        client.set(checked_key("one"), CHECKED)
        client.client_pause(600)
        assert cache.find_key("one").key is None
        gevent.sleep(1.0)
        assert comes_back(cache)
        assert cache.find_key("none").key is None
        found = cache.find_key("one").key
        assert found is not None
        assert found.id == "1"
    cache.close()


def test_postgres_is_not_asked_twice_for_what_redis_keeps(
    lookups: Lookups, cache: Cache, make_api_key: MakeKey, postgres_url: str
) -> None:
    """Counted by the server itself."""
    key = make_api_key()
    lookups.api_key(hash_of(key))
    assert cache.ping()
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opensend-relay'"
            " AND datname = current_database()"
        )
        assert cursor.fetchone()[0] == 1
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'opensend-relay'"
            " AND datname = current_database()"
        )
        for number in range(100):
            assert lookups.screen(hash_of(key), key.user_id, [f"{number}@x"]).key is not None
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opensend-relay'"
            " AND datname = current_database()"
        )
        assert cursor.fetchone()[0] == 0, "the look-ups made a connection"
    connection.close()
