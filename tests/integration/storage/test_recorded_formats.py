"""What another release has left in Redis means the same here, and what is written here means the same there.

`recorded/format-N.json` holds every key that a release of format N (`relay.redis.keys.FORMAT`) writes for the inputs
below: octets as latin-1, times as of `recorded_at`. It is data of the past, made by running that release, and never
changed to please a test: where names or values change, the format gets a new number and a new file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from relay.core.api_keys import KeyRecord
from relay.core.records import ApiKey
from relay.intake.lookups import Lookups
from relay.jobs.intents import Intents
from relay.limits.attempts import WINDOW_SECONDS, Attempts, Candidate
from relay.operator.outbox import Outbox
from relay.postgres.store import Store
from relay.redis import keys, suppression_lists
from relay.redis.cache import Cache
from relay.redis.claims import Claim, key_of
from relay.redis.suppression_lists import ListWriter

RECORDED = Path(__file__).parent / "recorded"

PLAIN_HASH, NAMED_HASH, UNKNOWN_HASH = "a" * 64, "b" * 64, "c" * 64
DOMAIN_ID = "01234567-89ab-cdef-0123-456789abcdef"
PLAIN = KeyRecord(
    ApiKey("11111111-1111-4111-8111-111111111111", "user-1", "full_access", "mail.example"), "Mail.Example"
)
NAMED = KeyRecord(
    ApiKey("22222222-2222-4222-8222-222222222222", "user-1", "sending_access", "named.example"), DOMAIN_ID
)
CONTENT = b"Message-ID: <m@example.com>\r\nSubject: S\r\n\r\nHello\r\n"
RECIPIENTS = ["to@x.example", "cc@xn--bcher-kva.example"]
FIRST_ID, NOTED_ID, REMINDED_ID = (f"{digit * 8}-{digit * 4}-4{digit * 3}-8{digit * 3}-{digit * 12}" for digit in "345")
LISTED = {"user-2": ["listed@x.example"], "user-3": [f"p{number}@x.example" for number in range(300)]}


def claim(email_id: str) -> Claim:
    return Claim(key_of("user-1", "<m@example.com>", CONTENT), "user-1", email_id, 3600)


def wrong(origin: bytes, number: int) -> Candidate:
    return Candidate(origin, b"wrong-%02d" % number)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def dump(client: redis.Redis) -> dict[str, Any]:
    """Every key with its value, as recorded."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": lambda name: text(client.get(name)),
        b"hash": lambda name: {text(field): text(value) for field, value in client.hgetall(name).items()},
        b"zset": lambda name: {text(member): score for member, score in client.zrange(name, 0, -1, withscores=True)},
        b"set": lambda name: sorted(text(member) for member in client.smembers(name)),
    }
    return {text(name): readers[client.type(name)](name) for name in client.scan_iter()}


def text(octets: Any) -> str:
    return bytes(octets).decode("latin-1")


def document(number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"format-{number}.json").read_text())
    return found


def shifted(value: Any, seconds: float) -> Any:
    """The same, so many seconds later: scores are unix seconds or milliseconds, claims end with milliseconds."""
    if isinstance(value, float):
        return value + seconds * (1000 if value > 1e11 else 1)
    if isinstance(value, dict):
        return {key: shifted(member, seconds) for key, member in value.items()}
    if isinstance(value, str) and value.rpartition(":")[2].isdigit() and len(value.rpartition(":")[2]) == 13:
        head, _, stamp = value.rpartition(":")
        return f"{head}:{int(stamp) + int(seconds * 1000)}"
    return value


def restore(client: redis.Redis, recorded: dict[str, Any]) -> None:
    """What the other release wrote, as if it had just done so."""
    later = time.time() - recorded["recorded_at"]
    for key in recorded["keys"]:
        name, value = key["name"].encode("latin-1"), shifted(key["value"], later)
        if key["type"] == "string":
            client.set(name, value.encode("latin-1"))
        elif key["type"] == "hash":
            client.hset(name, mapping={f.encode("latin-1"): v.encode("latin-1") for f, v in value.items()})
        elif key["type"] == "zset":
            client.zadd(name, {member.encode("latin-1"): score for member, score in value.items()})
        else:
            client.sadd(name, *(member.encode("latin-1") for member in value))
        if key["seconds"] > 0:
            client.expire(name, key["seconds"])


def write(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded inputs, by this version."""
    monkeypatch.setattr(suppression_lists.secrets, "token_hex", lambda octets: "0123456789ab"[: 2 * octets])
    cache.store_key(PLAIN_HASH, PLAIN)
    cache.store_key(NAMED_HASH, NAMED)
    cache.store_unknown_key(UNKNOWN_HASH)
    cache.remember("user-1", {"gone@x.example": "bounced", "clear@x.example": None})
    cache.screen(NAMED_HASH, "user-1", RECIPIENTS, claim=claim(FIRST_ID), intents=[FIRST_ID])
    outbox = Outbox(cache.link)
    outbox.load(suppression_lists.SCRIPTS)
    for user_id, emails in LISTED.items():
        writer = ListWriter(outbox, user_id, len(emails), 86_400)
        writer.add(emails)
        writer.finish()
    outbox.settle()
    intents = Intents(cache.link)
    intents.note([NOTED_ID], intents.now_ms())
    intents.mark_reminded([REMINDED_ID])
    intents.hold_lock(keys.SWEEP_LOCK_KEY, "another process", 60.0)
    attempts = Attempts(cache.link, most=3, refusal_seconds=900, longest_delay=8.0)
    for number in range(2):
        attempts.failed(wrong(b"origin-1", number))
    for number in range(3):
        attempts.failed(wrong(b"origin-2", number))
    attempts.admit(wrong(b"origin-2", 9))
    attempts.succeeded(Candidate(b"origin-2", b"goodkey1"))
    assert cache.ping()


def test_the_format_is_recorded() -> None:
    assert document(keys.FORMAT)["format"] == keys.FORMAT


@pytest.mark.parametrize("number", [keys.FORMAT])
def test_what_is_written_here_is_what_that_format_says(
    cache: Cache, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """So the other release reads it: names, types and values are its own, but for the time."""
    recorded = document(number)
    later = time.time() - recorded["recorded_at"]
    write(cache, monkeypatch)
    written = dump(client)
    # Added since, and no business of the other's: it asks for the domain of keys that hold a uuid alone.
    written.pop(f"smtp-relay:key-domain:{PLAIN_HASH}")
    expected = {key["name"]: shifted(key["value"], later) for key in recorded["keys"]}
    assert written.keys() == expected.keys()
    for name, value in written.items():
        if isinstance(value, dict):
            assert value.keys() == expected[name].keys(), name
            for member, found in value.items():
                assert close(found, expected[name][member]), (name, member)
        else:
            assert value == expected[name], name
    lives = {key["name"]: key["seconds"] for key in recorded["keys"] if key["seconds"] > 1}
    for name, seconds in lives.items():
        assert seconds - 30 < client.ttl(name.encode("latin-1")) <= seconds, name


def close(found: Any, expected: Any) -> bool:
    """Whether two times are the same moment, give or take a minute."""
    if isinstance(found, str):
        head, _, stamp = found.rpartition(":")
        expected_head, _, expected_stamp = expected.rpartition(":")
        return head == expected_head and abs(int(stamp) - int(expected_stamp)) < 60_000
    return bool(abs(found - expected) < (60_000 if expected > 1e11 else 60))


@pytest.mark.parametrize("number", range(max(1, keys.FORMAT - 1), keys.FORMAT + 1))
def test_what_that_format_has_left_means_the_same_here(
    cache: Cache, client: redis.Redis, store: Store, number: int
) -> None:
    restore(client, document(number))
    assert cache.find_key(NAMED_HASH).key == NAMED.key
    assert cache.find_key(UNKNOWN_HASH).unknown
    screened = cache.screen(NAMED_HASH, "user-1", [*RECIPIENTS, "new@x.example"], claim=claim(NOTED_ID), intents=[])
    assert screened is not None
    assert {email: holder.email_id for email, holder in screened.held.items()} == dict.fromkeys(RECIPIENTS, FIRST_ID)
    assert all(holder.age_ms < 60_000 for holder in screened.held.values())
    stale = dict.fromkeys(RECIPIENTS, FIRST_ID)
    assert cache.take(claim(NOTED_ID), stale) == {}, "a dead holder of the other release's is displaced"
    screened = cache.screen(NAMED_HASH, "user-1", ["gone@x.example", "clear@x.example"], claim=None, intents=[])
    assert screened is not None
    assert (screened.suppressed, screened.unknown) == ({"gone@x.example": "bounced"}, [])
    for user_id, emails in LISTED.items():
        screened = cache.screen("d" * 64, user_id, [emails[-1], "nobody@x.example"], claim=None, intents=[])
        assert screened is not None
        assert (screened.listed, screened.unknown) == ([emails[-1]], [])
    intents = Intents(cache.link)
    assert {email_id for email_id, age in intents.older_than(0, skip=0, limit=9) if age < 60} == {FIRST_ID, NOTED_ID}
    assert intents.reminded([REMINDED_ID], timedelta(hours=6).total_seconds()) == {REMINDED_ID}
    assert not intents.hold_lock(keys.SWEEP_LOCK_KEY, "this process", 60.0)
    attempts = Attempts(cache.link, most=3, refusal_seconds=900, longest_delay=8.0)
    assert not attempts.admit(wrong(b"origin-1", 9)).refused
    assert attempts.failed(wrong(b"origin-1", 9)) == 1.0, "the third failure, of which the other release counted two"
    assert attempts.admit(wrong(b"origin-1", 8)).refused
    assert attempts.admit(wrong(b"origin-2", 8)).refused
    assert attempts.admit(Candidate(b"origin-2", b"goodkey1")).looked_at
    assert WINDOW_SECONDS == 900


def test_a_plain_key_that_the_last_release_remembers_is_looked_up_once(
    cache: Cache, client: redis.Redis, store: Store
) -> None:
    """It has no word of when Postgres was asked (`relay.redis.key_entries`)."""
    restore(client, document(1))
    assert cache.find_key(PLAIN_HASH).key is None
    assert Lookups(store, cache).api_key(PLAIN_HASH) is None, "this Postgres has not got it"
