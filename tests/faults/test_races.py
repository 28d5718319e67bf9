"""Two at a time, and the wrong moment: claims, keys, clocks, and connections that a statement spoils."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import gevent
import pytest
import redis

from config.settings import RecipientRule
from relay.core.api_keys import KeyRecord
from relay.core.errors import PostgresUnavailable, Unavailable
from relay.core.records import ApiKey, EmailRow
from relay.intake.acceptor import AcceptOptions, Acceptor
from relay.intake.lookups import Lookups
from relay.postgres.database import Database
from relay.postgres.group_commit import Stored
from relay.postgres.store import Store
from relay.redis.cache import Cache
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict
from scripts.database import NewApiKey, execute, query
from tests.support.proxy import Proxy

pytestmark = pytest.mark.usefixtures("green_psycopg")

RAW = b"From: ann@example.com\r\nTo: a@x.example\r\nMessage-ID: <once@example.com>\r\nSubject: s\r\n\r\nHi\r\n"


@pytest.fixture
def cache(redis_url: str) -> Iterator[Cache]:
    cache = Cache(redis_url, timeout=2.0, pause=0.1)
    yield cache
    cache.close()


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    store = Store(postgres_url)
    yield store
    store.close()


@pytest.fixture
def api_key(make_api_key: Callable[..., NewApiKey]) -> NewApiKey:
    return make_api_key()


def _hash(key: NewApiKey) -> str:
    return hashlib.sha256(key.token.encode()).hexdigest()


def _submission(key: NewApiKey, raw: bytes = RAW) -> Submission:
    body = Body(1_000_000)
    body.write(raw)
    login = Login(_hash(key), ApiKey(key.id, key.user_id, "full_access", None))
    return Submission(login, ("a@x.example",), RecipientRule.MERGE, body, "test")


def _rows(postgres_url: str) -> int:
    ((count,),) = query(postgres_url, "SELECT count(*) FROM emails")
    return int(str(count))


class Hooked(Store):
    """A store that lets something happen around an INSERT, or after a key was read."""

    before_insert: Callable[[], None] | None = None
    after_insert: Callable[[], None] | None = None
    after_key: Callable[[], None] | None = None

    def insert(self, rows: Any, recipients: Any) -> Any:
        if self.before_insert is not None:
            self.before_insert()
        outcome = super().insert(rows, recipients)
        if self.after_insert is not None:
            self.after_insert()
        return outcome

    def find_api_key(self, token_hash: str) -> KeyRecord | None:
        record = super().find_api_key(token_hash)
        if self.after_key is not None:
            self.after_key()
        return record


@pytest.fixture
def hooked(postgres_url: str) -> Iterator[Hooked]:
    store = Hooked(postgres_url)
    yield store
    store.close()


def _once(store: Hooked, name: str, what: Callable[[], None]) -> None:
    def hook() -> None:
        setattr(store, name, None)
        what()

    setattr(store, name, hook)


def _acceptor(store: Store, cache: Cache) -> Acceptor:
    return Acceptor(Lookups(store, cache), store, AcceptOptions())


# Time


def test_many_slow_answers_are_not_one_slow_reply(postgres_url: str, api_key: NewApiKey) -> None:
    """Each answer comes in time; the five that a suppressed recipient takes without Redis take six seconds together."""
    execute(
        postgres_url,
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " VALUES (gen_random_uuid(), %s, 'a@x.example', 'bounced')",
        (api_key.user_id,),
    )
    parts = urlsplit(postgres_url)
    with Proxy(parts.port or 5432, parts.hostname or "127.0.0.1") as proxy:
        slow = Store(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl())
        acceptor = Acceptor(Lookups(slow, Cache(None)), slow, AcceptOptions())
        try:
            assert acceptor.store(_submission(api_key)).outcome == "suppressed"  # and connections are open
            proxy.delay_to_client = 1.2
            verdict = acceptor.store(_submission(api_key))
        finally:
            slow.close()
    assert (verdict.outcome, verdict.reply.code) == ("postgres_unavailable", 451)


def test_time_that_is_over_is_no_fault_of_postgres(postgres_url: str, api_key: NewApiKey) -> None:
    """Else a message with a second too little makes all others wait, and hear 451."""
    store = Store(postgres_url)
    assert store.find_api_key(_hash(api_key)) is not None
    (connection,) = store._database._idle
    with pytest.raises(Unavailable):
        store._database.use(time.monotonic() - 0.01, lambda cursor: cursor.execute("SELECT 1"))
    assert store._database._idle == [connection]
    assert not connection.closed
    store.close()
    with Proxy(1) as silent:
        silent.stall()
        database = Database(f"postgresql://127.0.0.1:{silent.port}/x", statement_seconds=1.0, idle_limit=1)
        with pytest.raises(Unavailable):
            database.use(time.monotonic() + 0.2, lambda cursor: cursor.execute("SELECT 1"))
        assert database._failures == 0


# Claims


def test_a_repeat_while_the_first_one_commits_waits_and_gets_its_id(
    hooked: Hooked, cache: Cache, api_key: NewApiKey, postgres_url: str
) -> None:
    _once(hooked, "before_insert", lambda: gevent.sleep(1.0))
    acceptor = _acceptor(hooked, cache)
    first = gevent.spawn(acceptor.store, _submission(api_key))
    gevent.sleep(0.3)
    second: Verdict = gevent.spawn(acceptor.store, _submission(api_key)).get(timeout=30)
    assert (first.get(timeout=30).outcome, second.outcome) == ("queued", "repeated")
    assert second.email_id == first.get().email_id
    assert _rows(postgres_url) == 1


def test_a_waiting_repeat_stores_the_message_when_the_first_one_fails_for_certain(
    hooked: Hooked, cache: Cache, api_key: NewApiKey, postgres_url: str
) -> None:
    def fail() -> None:
        gevent.sleep(1.0)
        raise PostgresUnavailable()

    _once(hooked, "before_insert", fail)
    acceptor = _acceptor(hooked, cache)
    first = gevent.spawn(acceptor.store, _submission(api_key))
    gevent.sleep(0.3)
    second: Verdict = gevent.spawn(acceptor.store, _submission(api_key)).get(timeout=30)
    assert (first.get(timeout=30).reply.code, second.outcome) == (451, "queued")
    assert _rows(postgres_url) == 1


def test_an_unclear_outcome_that_was_a_commit_is_a_repeat_when_it_comes_again(
    hooked: Hooked, cache: Cache, api_key: NewApiKey, postgres_url: str
) -> None:
    def lose_the_answer() -> None:
        raise PostgresUnavailable(unclear=True)

    _once(hooked, "after_insert", lose_the_answer)
    acceptor = _acceptor(hooked, cache)
    assert acceptor.store(_submission(api_key)).reply.code == 451
    assert acceptor.store(_submission(api_key)).outcome == "repeated"
    assert _rows(postgres_url) == 1


def test_an_unclear_outcome_that_was_none_is_stored_once_its_lease_is_over(
    hooked: Hooked, cache: Cache, api_key: NewApiKey, postgres_url: str
) -> None:
    def fail() -> None:
        raise PostgresUnavailable(unclear=True)

    _once(hooked, "before_insert", fail)
    lookups = Lookups(hooked, cache)
    patient = Acceptor(lookups, hooked, AcceptOptions(answer_seconds=1.0))
    assert patient.store(_submission(api_key)).reply.code == 451
    assert patient.store(_submission(api_key)).outcome == "still_in_progress"
    gevent.sleep(0.5)
    assert Acceptor(lookups, hooked, AcceptOptions(lease_seconds=0.4)).store(_submission(api_key)).outcome == "queued"
    assert _rows(postgres_url) == 1


def test_two_repeats_that_take_over_the_claim_of_an_ended_process_store_one_row(
    hooked: Hooked, store: Store, cache: Cache, api_key: NewApiKey, postgres_url: str
) -> None:
    def die() -> None:
        raise PostgresUnavailable(unclear=True)

    _once(hooked, "before_insert", die)
    _acceptor(hooked, cache).store(_submission(api_key))
    gevent.sleep(0.3)
    acceptor = Acceptor(Lookups(store, cache), store, AcceptOptions(lease_seconds=0.2))
    verdicts = [gevent.spawn(acceptor.store, _submission(api_key)) for _ in range(10)]
    outcomes = [verdict.get(timeout=60).outcome for verdict in verdicts]
    assert sorted(outcomes) == ["queued"] + ["repeated"] * 9
    assert _rows(postgres_url) == 1


def test_a_redis_that_forgot_everything_costs_a_copy_and_no_mail(
    store: Store, cache: Cache, api_key: NewApiKey, postgres_url: str, redis_url: str
) -> None:
    acceptor = _acceptor(store, cache)
    assert acceptor.store(_submission(api_key)).outcome == "queued"
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert acceptor.store(_submission(api_key)).outcome == "queued"
    keyed = RAW.replace(b"Subject", b"Idempotency-Key: k\r\nSubject")
    assert acceptor.store(_submission(api_key, keyed)).outcome == "queued"
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert acceptor.store(_submission(api_key, keyed)).outcome == "repeated"
    assert _rows(postgres_url) == 3


# Clocks


def test_a_wrong_clock_of_a_process_takes_no_claim_from_a_running_one(
    hooked: Hooked, cache: Cache, api_key: NewApiKey, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _once(hooked, "before_insert", lambda: gevent.sleep(1.0))
    acceptor = _acceptor(hooked, cache)
    first = gevent.spawn(acceptor.store, _submission(api_key))
    gevent.sleep(0.3)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3600)
    second: Verdict = gevent.spawn(acceptor.store, _submission(api_key)).get(timeout=30)
    assert (first.get(timeout=30).outcome, second.outcome) == ("queued", "repeated")
    assert _rows(postgres_url) == 1


@pytest.mark.parametrize("hours", [-100, -1, 1, 100])
def test_a_claim_of_an_ended_process_does_not_outlive_a_jump_of_redis_clock(
    store: Store, cache: Cache, api_key: NewApiKey, postgres_url: str, redis_url: str, hours: int
) -> None:
    acceptor = _acceptor(store, cache)
    assert acceptor.store(_submission(api_key)).outcome == "queued"
    execute(postgres_url, "DELETE FROM emails")  # as if its holder had died before its commit
    with redis.Redis.from_url(redis_url) as client:
        (name,) = client.keys("smtp-relay:seen:*")
        for field, value in client.hgetall(name).items():
            holder = value.decode().rpartition(":")[0]
            client.hset(name, field, f"{holder}:{int((time.time() + hours * 3600) * 1000)}")
    assert acceptor.store(_submission(api_key)).outcome == "queued"
    assert _rows(postgres_url) == 1


# Keys


def test_a_key_that_is_revoked_while_it_is_looked_up_is_refused_within_moments(
    hooked: Hooked, cache: Cache, api_key: NewApiKey, postgres_url: str, redis_url: str
) -> None:
    """OpenSend deletes the row, and the shared entry, between our SELECT and our SET."""

    def revoke() -> None:
        execute(postgres_url, "DELETE FROM api_keys WHERE id = %s", (api_key.id,))
        with redis.Redis.from_url(redis_url) as client:
            client.delete(f"auth:apikey:{_hash(api_key)}")

    _once(hooked, "after_key", revoke)
    lookups = Lookups(hooked, cache)
    assert lookups.api_key(_hash(api_key)) is not None
    until = time.monotonic() + 15  # the entry would last a minute
    while lookups.api_key(_hash(api_key)) is not None:
        assert time.monotonic() < until
        gevent.sleep(0.1)


def test_a_key_that_stays_is_not_forgotten_by_the_second_look(
    store: Store, cache: Cache, api_key: NewApiKey, redis_url: str
) -> None:
    lookups = Lookups(store, cache)
    assert lookups.api_key(_hash(api_key)) is not None
    gevent.sleep(2.0)
    with redis.Redis.from_url(redis_url) as client:
        assert client.exists(f"auth:apikey:{_hash(api_key)}")


def test_a_key_that_is_made_just_after_it_was_refused_works_within_ten_seconds(
    store: Store, cache: Cache, postgres_url: str, make_api_key: Callable[..., NewApiKey], redis_url: str
) -> None:
    token = "os_live_not_yet"
    token_hash = hashlib.sha256(token.encode()).hexdigest()
    lookups = Lookups(store, cache)
    assert lookups.api_key(token_hash) is None
    make_api_key(token=token)
    with redis.Redis.from_url(redis_url) as client:
        (name,) = client.keys("smtp-relay:unknown-key:*")
        assert 0 < client.pttl(name) <= 10_000
        client.pexpire(name, 50)
    gevent.sleep(0.2)
    assert lookups.api_key(token_hash) is not None


# Postgres's sessions


def test_a_refused_message_of_several_rows_leaves_its_session_fit_for_the_next(
    store: Store, postgres_url: str, make_row: Callable[..., EmailRow]
) -> None:
    execute(postgres_url, "ALTER TABLE emails ADD CONSTRAINT refused CHECK (subject <> 'bad')")
    with pytest.raises(Unavailable):
        store.insert([make_row("bad"), make_row("bad")], ["a@x.example"])
    assert isinstance(store.insert([make_row("good")], ["a@x.example"]), Stored)
    assert isinstance(store.insert([make_row("good"), make_row("good")], ["a@x.example"]), Stored)
    assert _rows(postgres_url) == 3


@pytest.fixture
def make_row() -> Callable[[str], EmailRow]:
    def make(subject: str) -> EmailRow:
        return EmailRow(
            id=str(uuid.uuid4()),
            user_id="user",
            sender="ann@example.com",
            to=("a@x.example",),
            cc=(),
            bcc=(),
            reply_to=(),
            subject=subject,
            html="",
            text="Hi\n",
            headers={},
            attachments=(),
            tags=(),
        )

    return make
